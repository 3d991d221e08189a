"""Python's view of ggml's graph nodes, for the evaluation callback.

The binding passes nodes as bare addresses. This mirrors ``struct ggml_tensor`` of ggml.h with ctypes, checks the
mirror's size against the library's before it is trusted, and reads data through the backend, so that it may lie on a
GPU. Knows nothing of models and attention.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from triattn_local.errors import BackendMissingError

MAX_DIMS = 4
MAX_SRC = 10
MAX_NAME = 64
MAX_OP_PARAMS = 16

GGML_TYPE_F32 = 0

_OBJECT_BYTES = 32
"""sizeof(struct ggml_object), which ``ggml_tensor_overhead`` adds"""


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor``"""

    _fields_ = [  # ctypes wants a plain list
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * MAX_DIMS),
        ("nb", ctypes.c_size_t * MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * MAX_OP_PARAMS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * MAX_NAME),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class Node:
    """One node of a graph that is being computed; valid only inside the callback that received it."""

    __slots__ = ("address", "raw")

    def __init__(self, address: int) -> None:
        self.address = address
        self.raw = GgmlTensor.from_address(address)

    @property
    def name(self) -> str:
        return bytes(self.raw.name).decode("utf-8", errors="replace")

    @property
    def op(self) -> str:
        """Name of the operation that makes the node, such as "ROPE"."""
        return _op_name(self.raw.op)

    @property
    def key(self) -> tuple[str, str]:
        """Name and operation: what tells a node apart in every graph of one model."""
        return self.name, self.op

    @property
    def shape(self) -> tuple[int, ...]:
        """ggml order, the fastest dimension first."""
        return tuple(self.raw.ne)

    def src(self, i: int) -> Node | None:
        address = self.raw.src[i]
        return Node(address) if address else None

    def root(self) -> Node:
        """The tensor that owns the data; ggml keeps views of views flat, so it is one step away."""
        return Node(self.raw.view_src) if self.raw.view_src else self

    def f32_params(self, first: int, n: int) -> tuple[float, ...]:
        """Operation parameters that the operation reads as floats."""
        raw = np.frombuffer(self.raw.op_params, dtype=np.float32, count=n, offset=4 * first)
        return tuple(float(value) for value in raw)

    def n_bytes(self) -> int:
        return int(_library().ggml_nbytes(self.address))

    def read(self, into: npt.NDArray[np.uint8]) -> None:
        """Copy the first ``len(into)`` bytes of the data, from wherever it lies."""
        pointer = into.ctypes.data_as(ctypes.c_void_p)
        _library().ggml_backend_tensor_get(self.address, pointer, 0, into.nbytes)


@cache
def _library() -> Any:
    """llama.cpp's library, through which ggml's symbols are found too.

    Raises
    ------
    BackendMissingError
        Its tensors are not laid out as this module believes.
    """
    from llama_cpp import llama_cpp

    library = llama_cpp._lib
    library.ggml_op_name.argtypes = [ctypes.c_int]
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_nbytes.argtypes = [ctypes.c_void_p]
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_tensor_overhead.argtypes = []
    library.ggml_tensor_overhead.restype = ctypes.c_size_t
    n_bytes = int(library.ggml_tensor_overhead()) - _OBJECT_BYTES
    if n_bytes != ctypes.sizeof(GgmlTensor):
        raise BackendMissingError(
            f"llama.cpp has tensors of {n_bytes} bytes, the calibration knows those of {ctypes.sizeof(GgmlTensor)}",
            fix="pip install ./native",
        )
    return library


@cache
def _op_name(op: int) -> str:
    return str(_library().ggml_op_name(op).decode())
