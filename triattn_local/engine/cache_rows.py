"""Rows of the KV cache as numbers, whatever type they are stored in.

What lies in the cache is the library's (``native.get_rows``); here it is dequantised, and the Hadamard rotation of a
quantised cache undone. For those who compare the engine with the equations. Knows nothing of which rows matter.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from . import native


def read_rows(
    ctx: int, il: int, head_kv: int, cells: NDArray[np.int32], *, is_v: bool = False, seq_id: int = 0
) -> NDArray[np.float32]:
    """Cached keys after RoPE, or values: float32 [n_cells, head_dim]."""
    raw = native.get_rows(ctx, il, head_kv, cells, seq_id=seq_id, is_v=is_v)
    type_number, n_rot = native.get_rows_info(ctx, is_v=is_v)
    kind = gguf.GGMLQuantizationType(type_number)
    if kind == gguf.GGMLQuantizationType.F16:
        rows = raw.view(np.float16).astype(np.float32)
    elif kind == gguf.GGMLQuantizationType.F32:
        rows = raw.view(np.float32)
    else:
        rows = gguf.dequantize(raw, kind).astype(np.float32)
    if n_rot:
        rows = (rows.reshape(len(rows), -1, n_rot) @ hadamard(n_rot)).reshape(len(rows), -1)
    return rows


def hadamard(n: int) -> NDArray[np.float32]:
    """The orthonormal Hadamard matrix, its own inverse; n is a power of two."""
    h: NDArray[np.float32] = np.ones((1, 1), np.float32)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.float32(np.sqrt(n))
