"""Running sums that become centres: as much text as one likes, in the memory of one batch.

In float64, where 100,000 terms of like size lose no digit that a float32 result has, so neither the order nor the size
of the batches matters. Knows nothing of where queries and keys come from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from triattn_local.architectures import RopeType


class HeadSums:
    """Sums over the tokens of one layer's queries, or keys.

    Parameters
    ----------
    n_head, head_dim : int
    n_rot : int
        Rotated dimensions.
    rope_type : "norm" or "neox"
        How they pair up.
    """

    def __init__(self, n_head: int, head_dim: int, n_rot: int, rope_type: RopeType) -> None:
        self.n_rot = n_rot
        self.rope_type = rope_type
        self.n_tokens = 0
        self._sum = torch.zeros(n_head, head_dim, dtype=torch.float64)
        self._sum_abs = torch.zeros(n_head, n_rot // 2, dtype=torch.float64)

    def add(self, x_pre: torch.Tensor) -> None:
        """Add vectors before RoPE, any float type and device, [n_token, n_head, head_dim]."""
        x = x_pre.to(torch.float64)
        n = self.n_rot
        if self.rope_type == "norm":
            real, imag = x[..., 0:n:2], x[..., 1:n:2]
        else:
            real, imag = x[..., : n // 2], x[..., n // 2 : n]
        self._sum += x.sum(dim=0).cpu()
        self._sum_abs += torch.hypot(real, imag).sum(dim=0).cpu()
        self.n_tokens += len(x)

    def mean(self) -> npt.NDArray[np.float32]:
        """E[x], float32 [n_head, head_dim]."""
        return np.asarray((self._sum / self.n_tokens).numpy().astype(np.float32))

    def mean_abs(self) -> npt.NDArray[np.float32]:
        """E|x_f|, float32 [n_head, n_rot / 2]."""
        return np.asarray((self._sum_abs / self.n_tokens).numpy().astype(np.float32))
