"""The outside of a GGUF file: key-value pairs, tensor infos, and where the tensor data begins.

Why not gguf-py's reader: it makes an object of every token of the vocabulary (15 s for Gemma's 262,144), and it gives
no byte spans, which ``metadata`` needs to copy the pairs that it does not understand bit for bit. Here values stay
bytes until they are asked for. Every length is checked against the file before it is believed, since a model file is
what people download, interrupt and truncate.

Knows nothing of what a key means, and never reads tensor data.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFitError, ModelNotFoundError
from .ggml_types import block_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
GGML_TYPE_F32 = 0

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEAD = struct.Struct("<4sIQQ")
_MIN_PAIR = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8


class ValueType(IntEnum):
    """GGUF value types, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


DTYPES: dict[ValueType, np.dtype[np.generic]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""all but strings and arrays have a fixed size"""

INTEGERS = frozenset(kind for kind, dtype in DTYPES.items() if dtype.kind in "iu")
FLOATS = frozenset((ValueType.FLOAT32, ValueType.FLOAT64))


@dataclass(frozen=True)
class Pair:
    """One key-value pair; the offsets are bytes from the start of the file."""

    key: str
    type: ValueType
    """type of the value, or of the items if ``is_array``"""
    is_array: bool
    n: int
    """items of an array, else 1"""
    start: int
    """where the pair begins, with its key"""
    value: int
    """where the value or the first item begins"""
    end: int

    @property
    def type_name(self) -> str:
        name = self.type.name.lower()
        return f"{name}[{self.n}]" if self.is_array else name


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    name: bytes
    shape: tuple[int, ...]
    """ggml order: the fastest dimension first"""
    ggml_type: int
    offset: int
    """bytes from the start of the tensor data"""
    n_bytes: int | None
    """None for a tensor type that neither gguf-py nor the library knows"""


@dataclass(frozen=True)
class GgufFile:
    """What stands before the tensor data of one GGUF file."""

    path: Path
    version: int
    pairs: dict[str, Pair]
    tensors: tuple[TensorInfo, ...]
    infos_start: int
    """the tensor infos are the bytes from here to ``infos_end``"""
    infos_end: int
    data_start: int
    """first byte of the tensor data: ``infos_end`` rounded up to the alignment"""
    file_size: int
    alignment: int
    head: bytes = field(repr=False)
    """all bytes before ``infos_end``"""

    def __contains__(self, key: str) -> bool:
        return key in self.pairs

    @property
    def data_end(self) -> int:
        """Bytes that the file has when all of its tensors are there."""
        ends = [self.data_start + tensor.offset + (tensor.n_bytes or 0) for tensor in self.tensors]
        return max(ends, default=self.infos_end)

    def text(self, key: str, default: str | None = None) -> str | None:
        """String value of a key, or the default if the file does not have it."""
        pair = self._pair(key, frozenset((ValueType.STRING,)), "a string")
        if pair is None:
            return default
        return self.head[pair.value + 8 : pair.end].decode("utf-8", errors="replace")

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Value of an integer key of any width."""
        pair = self._pair(key, INTEGERS, "an integer")
        return default if pair is None else int(self._items(pair)[0])

    def number(self, key: str, default: float | None = None) -> float | None:
        """Value of a float key; must be finite."""
        pair = self._pair(key, FLOATS, "a float")
        if pair is None:
            return default
        number = float(self._items(pair)[0])
        if not math.isfinite(number):
            raise self.broken(f"{key} is {number}")
        return number

    def truth(self, key: str, default: bool | None = None) -> bool | None:
        """Value of a bool key."""
        pair = self._pair(key, frozenset((ValueType.BOOL,)), "a bool")
        return default if pair is None else bool(self._items(pair)[0])

    def array(self, key: str) -> npt.NDArray[np.generic] | None:
        """Items of an array of numbers or bools, a copy; None if the file does not have the key."""
        pair = self.pairs.get(key)
        if pair is None:
            return None
        if not pair.is_array or pair.type is ValueType.STRING:
            raise self.broken(f"{key} must be an array of numbers, not {pair.type_name}")
        return self._items(pair).copy()

    def broken(self, what: str) -> ModelNotFoundError:
        return _broken(self.path, what)

    def _pair(self, key: str, types: frozenset[ValueType], wanted: str) -> Pair | None:
        pair = self.pairs.get(key)
        if pair is not None and (pair.is_array or pair.type not in types):
            raise self.broken(f"{key} must be {wanted}, not {pair.type_name}")
        return pair

    def _items(self, pair: Pair) -> npt.NDArray[np.generic]:
        items: npt.NDArray[np.generic] = np.frombuffer(self.head, DTYPES[pair.type], pair.n, pair.value)
        return items


def read_gguf(path: Path | str) -> GgufFile:
    """Read and check everything before the tensor data, and that the data is all there.

    Raises
    ------
    ModelNotFoundError
        No such file, not a GGUF, a version or byte order that llama.cpp does not read, truncated, or damaged.
    """
    path = Path(path)
    with _mapped(path) as data:
        return _parse(path, data, len(data), needs_data=True)


def read_head(path: Path | str) -> GgufFile:
    """``read_gguf`` of a file that may end anywhere behind its tensor infos, as a header alone does."""
    path = Path(path)
    with _mapped(path) as data:
        return _parse(path, data, len(data), needs_data=False)


def parse_head(path: Path, data: bytes, file_size: int) -> GgufFile:
    """``read_head`` of the first bytes of a file that is elsewhere, and has ``file_size`` bytes there.

    Raises
    ------
    HeadCutError
        The header is longer than these bytes.
    ModelNotFoundError
        As ``read_gguf``.
    """
    return _parse(path, data, file_size, needs_data=True)


class HeadCutError(ModelNotFoundError):
    """The bytes end inside the header."""


def _broken(path: Path, what: str) -> ModelNotFoundError:
    return ModelNotFoundError(what, where=str(path), fix="the file is damaged or incomplete: fetch it again")


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    not_gguf = ModelNotFoundError("is not a GGUF file", where=str(path), fix="give a model in GGUF format")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except FileNotFoundError:
        raise ModelNotFoundError(
            "no such file", where=str(path), fix="see the models with `triattn-local ls`"
        ) from None
    except IsADirectoryError:
        raise ModelNotFoundError("is a folder", where=str(path), fix="give the .gguf file in it") from None
    except OSError as error:
        if error.errno == errno.ENOMEM:  # the file is there, and no room to look at it
            raise DoesNotFitError(
                "out of memory", where=str(path), fix="raise the limit of memory (ulimit -v)"
            ) from None
        raise ModelNotFoundError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:  # an empty file cannot be mapped
        raise not_gguf from error


class _TruncatedError(Exception):
    """A read went past the end of the file."""


class _Cursor:
    """Reads forward through the mapped file, and never past its end."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.pos = 0
        self.size = len(data)

    def left(self) -> int:
        return self.size - self.pos

    def skip(self, n_bytes: int) -> int:
        """Move on and return where we were."""
        if n_bytes > self.left():
            raise _TruncatedError
        here = self.pos
        self.pos += n_bytes
        return here

    def u32(self) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8))[0])

    def string(self) -> bytes:
        n = self.u64()
        start = self.skip(n)
        return self.data[start : start + n]

    def skip_strings(self, n: int) -> None:
        # the one hot loop: a vocabulary has up to half a million strings
        data, pos, unpack = self.data, self.pos, _U64.unpack_from
        try:
            for _ in range(n):
                pos += 8 + unpack(data, pos)[0]
        except (struct.error, OverflowError):  # past the end, or past what an offset can be
            raise _TruncatedError from None
        if pos > self.size:
            raise _TruncatedError
        self.pos = pos


def _parse(path: Path, data: mmap.mmap | bytes, file_size: int, *, needs_data: bool) -> GgufFile:
    if data[:4] != MAGIC:
        raise ModelNotFoundError("is not a GGUF file", where=str(path), fix="give a model in GGUF format")
    cursor = _Cursor(data)
    what = "the header"
    try:
        _, version, n_tensors, n_pairs = _HEAD.unpack_from(data, cursor.skip(_HEAD.size))
        if version & 0xFFFF == 0:
            raise ModelNotFoundError("is a big-endian GGUF", where=str(path), fix="fetch the little-endian file")
        if version not in VERSIONS:
            raise ModelNotFoundError(
                f"has GGUF version {version}", where=str(path), fix="fetch or convert it as GGUF version 3"
            )
        # a count that cannot be true would make us loop for hours, not merely fail
        if n_pairs * _MIN_PAIR + n_tensors * _MIN_TENSOR > file_size - cursor.pos:
            raise _broken(path, f"{n_pairs} keys and {n_tensors} tensors do not fit into {file_size} bytes")

        pairs: dict[str, Pair] = {}
        for i in range(n_pairs):
            what = f"key {i + 1} of {n_pairs}"
            pair = _read_pair(path, cursor)
            if pair.key in pairs:
                raise _broken(path, f"has the key {pair.key} twice")
            pairs[pair.key] = pair

        infos_start = cursor.pos
        tensors: list[TensorInfo] = []
        for i in range(n_tensors):
            what = f"tensor info {i + 1} of {n_tensors}"
            tensors.append(_read_tensor_info(path, cursor))
    except _TruncatedError:
        cut = _broken(path, f"ends inside {what}, at byte {cursor.size}")
        raise HeadCutError(cut.what, where=cut.where, fix=cut.fix) from None

    infos_end = cursor.pos
    header = GgufFile(path, version, pairs, (), infos_start, infos_end, 0, file_size, 0, data[:infos_end])
    alignment = header.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment is None or alignment <= 0 or alignment & (alignment - 1):
        raise _broken(path, f"general.alignment is {alignment}, not a power of two")
    data_start = infos_end + (-infos_end) % alignment
    _check_tensors(path, tensors, data_start, file_size if needs_data else None, alignment)
    return replace(header, tensors=tuple(tensors), data_start=data_start, alignment=alignment)


def _read_pair(path: Path, cursor: _Cursor) -> Pair:
    start = cursor.pos
    raw_key = cursor.string()
    try:
        key = raw_key.decode("utf-8")
    except UnicodeDecodeError:
        raise _broken(path, f"has a key that is not text: {raw_key[:40]!r}") from None
    if not key:
        raise _broken(path, "has an empty key")
    number = cursor.u32()
    is_array, n = number == ValueType.ARRAY, 1
    if is_array:
        number, n = cursor.u32(), cursor.u64()
    try:
        kind = ValueType(number)
    except ValueError:
        raise _broken(path, f"{key} has the unknown value type {number}") from None
    if kind is ValueType.ARRAY:  # llama.cpp does not read them either
        raise _broken(path, f"{key} is an array of arrays")
    value = cursor.pos
    if kind is ValueType.STRING:
        cursor.skip_strings(n)
    else:
        cursor.skip(n * DTYPES[kind].itemsize)
    return Pair(key, kind, is_array, n, start, value, cursor.pos)


def _read_tensor_info(path: Path, cursor: _Cursor) -> TensorInfo:
    name = cursor.string()
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:
        raise _broken(path, f"tensor {name[:64]!r} has {n_dims} dimensions")
    shape = tuple(cursor.u64() for _ in range(n_dims))
    ggml_type = cursor.u32()
    offset = cursor.u64()
    return TensorInfo(name, shape, ggml_type, offset, _tensor_bytes(shape, ggml_type))


def _tensor_bytes(shape: tuple[int, ...], ggml_type: int) -> int | None:
    block = block_of(ggml_type)
    return None if block is None else math.prod(shape) // block[0] * block[1]


def _check_tensors(
    path: Path, tensors: list[TensorInfo], data_start: int, file_size: int | None, alignment: int
) -> None:
    seen: set[bytes] = set()
    for tensor in tensors:
        name = tensor.name.decode("utf-8", errors="replace")
        if tensor.name in seen:
            raise _broken(path, f"has the tensor {name} twice")
        seen.add(tensor.name)
        if tensor.offset % alignment:
            raise _broken(path, f"tensor {name} begins at {tensor.offset}, not a multiple of {alignment}")
        end = data_start + tensor.offset + (tensor.n_bytes or 0)
        if file_size is not None and end > file_size:
            raise _broken(path, f"is truncated: tensor {name} should end at byte {end}, the file ends at {file_size}")
