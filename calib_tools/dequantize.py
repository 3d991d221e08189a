"""Packed weights to float32, in torch, on whatever device the packed bytes lie.

gguf-py does the same in NumPy for every type, one core and 16 rows at a time; for the types that most files consist of
this is some times faster on a CPU, and on a GPU it saves the transfer of eight times the bytes. Bit for bit the same
results as gguf-py, which the tests compare and which does the remaining types.

Notation of the blocks as in ggml-common.h: ``d`` scale, ``m`` minimum, ``q`` quants, ``s`` scales of sub-blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as dequantize_numpy

_SLICE = 1 << 21
"""weights that are unpacked at once: bounds what the intermediate steps need"""


def dequantize(packed: torch.Tensor, ggml_type: int) -> torch.Tensor:
    """Unpack rows of weights.

    Parameters
    ----------
    packed : uint8 tensor [n_row, row_bytes]
    ggml_type : int
        A type for which ``can_dequantize`` is true.

    Returns
    -------
    float32 tensor [n_row, n_column], on the same device
    """
    kind = GGMLQuantizationType(ggml_type)
    if kind in _PLAIN:
        return packed.view(_PLAIN[kind]).to(torch.float32)
    n_block, n_bytes = (int(n) for n in GGML_QUANT_SIZES[kind])
    n_row, n_column = len(packed), packed.shape[1] // n_bytes * n_block
    unpack = _UNPACK.get(kind)
    if unpack is None:
        rows = dequantize_numpy(packed.cpu().numpy(), kind)
        return torch.from_numpy(rows.reshape(n_row, n_column)).to(packed.device)
    out = torch.empty(n_row, n_column, dtype=torch.float32, device=packed.device)
    n_slice = max(1, _SLICE // n_column)
    for first in range(0, n_row, n_slice):
        part = packed[first : first + n_slice]
        out[first : first + n_slice] = unpack(part.reshape(-1, n_bytes)).reshape(len(part), n_column)
    return out


def can_dequantize(ggml_type: int) -> bool:
    """Whether ``dequantize`` knows the type, by itself or through gguf-py."""
    try:
        kind = GGMLQuantizationType(ggml_type)
        n_bytes = GGML_QUANT_SIZES[kind][1]
        if kind not in _PLAIN and kind not in _UNPACK:
            dequantize_numpy(np.zeros((1, n_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a byte of each block, float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def _shifts(blocks: torch.Tensor, *amounts: int) -> torch.Tensor:
    return torch.tensor(amounts, dtype=torch.uint8, device=blocks.device)[:, None]


def _nibbles(q: torch.Tensor, n_group: int) -> torch.Tensor:
    """[n, bytes] to [n, 2 * bytes]: of each group first all low nibbles, then all high ones."""
    groups = q.reshape(len(q), n_group, 1, -1)
    return ((groups >> _shifts(q, 0, 4)) & 15).reshape(len(q), -1)


def _fifth_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """32 bits of each block as 0 or 16, [n, 32]."""
    bits = (blocks[:, at : at + 4, None] >> _shifts(blocks, *range(8)).reshape(1, 1, 8)) & 1
    return bits.reshape(len(blocks), 32) << 4


def _q4_0(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:], 1).to(torch.float32) - 8)


def _q4_1(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:], 1).to(torch.float32) + _half(b, 2)


def _q5_0(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * ((_nibbles(b[:, 6:], 1) | _fifth_bits(b, 2)).to(torch.float32) - 16)


def _q5_1(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:], 1) | _fifth_bits(b, 4)).to(torch.float32) + _half(b, 2)


def _q8_0(b: torch.Tensor) -> torch.Tensor:
    return b[:, 2:].contiguous().view(torch.int8).to(torch.float32) * _half(b, 0)


def _scales_and_minima(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d * s and d_min * m of the eight sub-blocks of Q4_K and Q5_K, float32 [n, 8, 1] each."""
    low, minima, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
    minimum = torch.cat([minima & 63, (high >> 4) | ((minima >> 2) & 48)], dim=1)
    d, d_min = _half(b, 0), _half(b, 2)
    return (d * scale.to(torch.float32))[..., None], (d_min * minimum.to(torch.float32))[..., None]


def _q4_k(b: torch.Tensor) -> torch.Tensor:
    scale, minimum = _scales_and_minima(b)
    return scale * _nibbles(b[:, 16:], 4).reshape(-1, 8, 32).to(torch.float32) - minimum


def _q5_k(b: torch.Tensor) -> torch.Tensor:
    scale, minimum = _scales_and_minima(b)
    high = (b[:, None, 16:48] >> _shifts(b, *range(8))) & 1
    q = _nibbles(b[:, 48:], 4).reshape(-1, 8, 32) | (high << 4)
    return scale * q.to(torch.float32) - minimum


def _q6_k(b: torch.Tensor) -> torch.Tensor:
    low = _nibbles(b[:, :128], 2).reshape(-1, 8, 32)
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> _shifts(b, 0, 2, 4, 6)) & 3
    q = (low | (high.reshape(-1, 8, 32) << 4)).to(torch.float32) - 32
    scale = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    return scale[..., None] * q.reshape(-1, 16, 16)


_UNPACK: dict[GGMLQuantizationType, Callable[[torch.Tensor], torch.Tensor]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q5_1: _q5_1,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}
