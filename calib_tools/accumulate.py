"""Running sums that become centres: as much text as one likes, in the memory of one batch.

In float64, where 100,000 terms of like size lose no digit that a float32 result has, so neither the order nor the size
of the batches matters. Knows nothing of where queries and keys come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from triattn_local.model.architectures import RopeType


class HeadSums:
    """Sums over the tokens of one layer's queries, or keys.

    Parameters
    ----------
    n_head, head_dim : int
    n_rot : int
        Rotated dimensions; 0 where RoPE turns nothing, and each dimension is a band of its own.
    rope_type : "norm" or "neox"
        How they pair up.
    """

    def __init__(self, n_head: int, head_dim: int, n_rot: int, rope_type: RopeType) -> None:
        self.n_rot = n_rot
        self.rope_type = rope_type
        self.n_tokens = 0
        self._sum = torch.zeros(n_head, head_dim, dtype=torch.float64)
        self._sum_abs = torch.zeros(n_head, n_rot // 2 or head_dim, dtype=torch.float64)

    def add(self, x_pre: torch.Tensor) -> None:
        """Add vectors before RoPE, any float type and device, [n_token, n_head, head_dim]."""
        # Apple's GPUs have no float64
        x = (x_pre.cpu() if x_pre.device.type == "mps" else x_pre).to(torch.float64)
        n = self.n_rot
        if n == 0:
            length = x.abs()
        elif self.rope_type == "norm":
            length = torch.hypot(x[..., 0:n:2], x[..., 1:n:2])
        else:
            length = torch.hypot(x[..., : n // 2], x[..., n // 2 : n])
        self._sum += x.sum(dim=0).cpu()
        self._sum_abs += length.sum(dim=0).cpu()
        self.n_tokens += len(x)

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """All that the sums hold, for a checkpoint."""
        return {
            "sum": self._sum.numpy().copy(),
            "sum_abs": self._sum_abs.numpy().copy(),
            "n": np.array(self.n_tokens, np.float64),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Go on from what ``state`` gave.

        Raises
        ------
        ValueError
            It comes from sums of another shape.
        """
        if state["sum"].shape != self._sum.shape or state["sum_abs"].shape != self._sum_abs.shape:
            raise ValueError("sums of another shape")
        self._sum, self._sum_abs = torch.from_numpy(state["sum"]), torch.from_numpy(state["sum_abs"])
        self.n_tokens = int(state["n"])

    def mean(self) -> npt.NDArray[np.float32]:
        """E[x], float32 [n_head, head_dim]."""
        return np.asarray((self._sum / self.n_tokens).numpy().astype(np.float32))

    def mean_abs(self) -> npt.NDArray[np.float32]:
        """E|x_f|, float32 [n_head, n_rot / 2], or [n_head, head_dim] where RoPE turns nothing."""
        return np.asarray((self._sum_abs / self.n_tokens).numpy().astype(np.float32))
