"""The tensor types of ggml: how many values stand in a block of one, and in how many bytes.

Asked of the library that will load the file, for it alone decides what can be loaded: gguf-py's table is released apart
from it, lacks newer types, and has a wrong size for Q8_1. Without a library that table is what there is.
"""

from __future__ import annotations

import ctypes
import functools

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType


@functools.cache
def block_of(number: int) -> tuple[int, int] | None:
    """(values, bytes) of one block of a type, by its number in ggml.h; None for a type that is not known."""
    try:
        from llama_cpp import llama_cpp
    except (ImportError, OSError, RuntimeError):
        return _of_gguf_py(number)
    # beyond the count the library would read past the end of its table
    if not 0 <= number < llama_cpp.GGML_TYPE_COUNT:
        return None
    n_values, n_bytes = llama_cpp._lib.ggml_blck_size, llama_cpp._lib.ggml_type_size
    n_values.restype, n_bytes.restype = ctypes.c_int64, ctypes.c_size_t
    block = int(n_values(number)), int(n_bytes(number))
    return block if all(block) else None  # types that were given up have blocks of nothing


def _of_gguf_py(number: int) -> tuple[int, int] | None:
    try:
        n_values, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    except (ValueError, KeyError):
        return None
    return int(n_values), int(n_bytes)
