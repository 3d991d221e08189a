"""Random weights, quantised by ggml itself: valid blocks of any type, whatever that type looks like inside.

Knows nothing of models and files.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..engine import native

STD = 0.02
"""standard deviation of the weights, as models are initialised with: activations stay finite through any depth"""

_N_COLUMNS = 256
"""a multiple of every type's block"""
_N_ROWS = 8209
"""a prime number, so that few rows of a matrix are equal when it is filled with the same rows again and again"""


@functools.cache
def random_blocks(kind: GGMLQuantizationType) -> bytes:
    """Two million normal weights of zero mean in blocks of this type, the same in every process."""
    weights = np.random.default_rng(0).standard_normal((_N_ROWS, _N_COLUMNS), np.float32)
    weights *= STD
    block, size = GGML_QUANT_SIZES[kind]
    blocks = np.empty(weights.size // int(block) * int(size), np.uint8)
    # size_t ggml_quantize_chunk(enum ggml_type type, const float * src, void * dst,
    #     int64_t start, int64_t nrows, int64_t n_per_row, const float * imatrix);
    # libggml is a dependency of libllama: the loader finds its symbols through the same handle
    quantize = native.library().ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    n_bytes = quantize(int(kind), weights.ctypes.data, blocks.ctypes.data, 0, _N_ROWS, _N_COLUMNS, None)
    assert n_bytes == blocks.nbytes, f"{kind.name}: {n_bytes} bytes for {blocks.nbytes}"
    return blocks.tobytes()
