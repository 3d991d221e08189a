"""Statistics in and out of GGUF files: the only module that knows the key names.

A model's GGUF is copied with our keys added to its metadata; every other pair, the tensor infos and the tensor data
stay the bytes that they were, so stock llama.cpp loads the copy as it did the original. A sidecar is the same keys in
a file without tensors, for when a copy of 20 GB is not wanted. Whatever goes wrong, the name asked for either holds
the complete file or what it held before.

Knows nothing of how statistics are measured, nor whether they are any good: ``TriattnStats.validate`` does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ModelNotFoundError, StatsError, UsageError
from ..support.atomic import atomic_write
from ..support.progress import Count
from .gguf_file import DEFAULT_ALIGNMENT, MAGIC, GgufFile, ValueType, read_gguf
from .model_info import ModelInfo, fingerprint
from .stats import VERSION, TriattnStats, head_dim_of

PREFIX = "triattention."
KEY_VERSION = PREFIX + "version"
KEY_N_TOKENS = PREFIX + "n_tokens"
KEY_CORPUS = PREFIX + "corpus"
KEY_TOOL = PREFIX + "tool"
KEY_MODEL = PREFIX + "model"
KEY_LAYERS = PREFIX + "layers"
KEY_Q_MEAN = PREFIX + "q_mean.{il}"
KEY_Q_ABS = PREFIX + "q_abs.{il}"
KEY_K_MEAN = PREFIX + "k_mean.{il}"

SIDECAR_TYPE = "triattention"
"""``general.type`` of a sidecar, where a model says "model" """

_CHUNK = 1 << 26
_READ = 1 << 22
_FIX = "calibrate the model again with `triattn-local convert`"

T = TypeVar("T")


def read_stats(path: Path | str) -> TriattnStats | None:
    """Statistics in a model's GGUF or in a sidecar; None if it holds none.

    They are read, not judged: see ``TriattnStats.validate`` and ``check_belongs``.

    Raises
    ------
    ModelNotFoundError
        Not a readable GGUF.
    StatsError
        A key is missing, has the wrong type, or an array cannot have the shape that its model gives it; or the
        version is unknown.
    """
    file = read_gguf(path)
    if KEY_VERSION not in file:
        return None
    version = _scalar(file, KEY_VERSION, file.integer)
    if version != VERSION:
        raise StatsError(
            f"{KEY_VERSION} is {version}, this program reads {VERSION}",
            where=str(path),
            fix="update triattn-local, or " + _FIX,
        )
    model = _scalar(file, KEY_MODEL, file.text)
    head_dim = head_dim_of(model)
    layers = tuple(int(il) for il in _array(file, KEY_LAYERS, ValueType.INT32))
    q_mean, q_abs, k_mean = [], [], []
    has_keys = any(KEY_K_MEAN.format(il=il) in file for il in layers)
    for il in layers:
        q_mean.append(_rows(file, KEY_Q_MEAN.format(il=il), head_dim))
        if has_keys:
            k_mean.append(_rows(file, KEY_K_MEAN.format(il=il), head_dim))
        key = KEY_Q_ABS.format(il=il)
        flat = _array(file, key, ValueType.FLOAT32)
        n_head = len(q_mean[-1])
        if flat.size == 0 or flat.size % n_head:
            raise _damaged(file, f"{key} has {flat.size} values, not a multiple of {n_head} heads")
        q_abs.append(flat.reshape(n_head, -1))
    return TriattnStats(
        layers=layers,
        q_mean=tuple(q_mean),
        q_abs=tuple(q_abs),
        k_mean=tuple(k_mean),
        n_tokens=_scalar(file, KEY_N_TOKENS, file.integer),
        corpus=_scalar(file, KEY_CORPUS, file.text),
        tool=_scalar(file, KEY_TOOL, file.text),
        model=model,
        version=version,
    )


def usable_stats(info: ModelInfo, source: Path | None = None, lacks: str = "has no statistics") -> TriattnStats:
    """Statistics of a model, inside it or in a sidecar, once they are checked.

    Raises
    ------
    StatsError
        There are none (`lacks` says so), they are damaged, or another model's.
    """
    source = source or info.path
    stats = read_stats(source)
    if stats is None:
        raise StatsError(lacks, where=str(source), fix=f"triattn-local convert {info.path}")
    stats.check_belongs(fingerprint(info.path))
    stats.validate(info)
    return stats


def write_with_stats(src: Path | str, dst: Path | str, stats: TriattnStats, progress: Count | None = None) -> str:
    """Copy a model's GGUF with the statistics in its metadata, replacing any that it had.

    All other pairs, the tensor infos and the tensor data are the same bytes as in ``src``, which is never touched; the
    copy is read again and compared before it gets its name. The same input gives the same bytes.

    Parameters
    ----------
    src : Path or str
        The model; of a split model the first file, and the others stay where they are.
    dst : Path or str
        Replaced in one step when it is complete.
    progress : callable, optional
        Called with (bytes done, bytes in all), of copying and of comparing.

    Returns
    -------
    str
        sha256 of the tensor data in ``src`` and in ``dst``, see ``hash_tensor_data``.

    Raises
    ------
    ModelNotFoundError
        ``src`` is not a readable GGUF, or a later file of a split model, or changed meanwhile.
    UsageError
        ``dst`` is ``src``, or cannot be written.
    DoesNotFitError
        The disk does not hold the copy.
    """
    src, dst = Path(src), Path(dst)
    file = read_gguf(src)
    index = file.integer("split.no", 0) or 0
    if index > 0:
        raise ModelNotFoundError(
            f"is file {index + 1} of a split model, and only the first one's metadata is read",
            where=str(src),
            fix="give the first file, or write a sidecar",
        )
    refuse_same_file(src, dst)

    kept = b"".join(file.head[p.start : p.end] for p in file.pairs.values() if not p.key.startswith(PREFIX))
    n_kept = sum(not key.startswith(PREFIX) for key in file.pairs)
    ours = _encode(stats)
    head = _header(file.version, len(file.tensors), n_kept + len(ours), kept + b"".join(ours))
    head += file.head[file.infos_start : file.infos_end]
    head += bytes(-len(head) % file.alignment)

    n_data = max(0, file.file_size - file.data_start)

    def tell(n_bytes: int) -> None:
        if progress is not None:
            progress(n_bytes, 2 * n_data)

    with atomic_write(dst, len(head) + n_data) as out, src.open("rb") as data:
        out.write(head)
        out.flush()
        for n_done in _copy(data, out, file.data_start, n_data):
            tell(n_done)
        out.flush()
        return _compare(file, Path(out.name), len(head), lambda n_done: tell(n_data + n_done))


def write_sidecar(dst: Path | str, stats: TriattnStats, info: ModelInfo) -> None:
    """Write the statistics alone, as a GGUF without tensors.

    Raises
    ------
    UsageError
        ``dst`` cannot be written, or is the model itself.
    DoesNotFitError
        The disk is full.
    """
    dst = Path(dst)
    refuse_same_file(info.path, dst)
    pairs = [
        _pair("general.architecture", ValueType.STRING, info.arch),
        _pair("general.type", ValueType.STRING, SIDECAR_TYPE),
        *_encode(stats),
    ]
    head = _header(3, 0, len(pairs), b"".join(pairs))
    head += bytes(-len(head) % DEFAULT_ALIGNMENT)
    with atomic_write(dst, len(head)) as out:
        out.write(head)


def refuse_same_file(model: Path, dst: Path) -> None:
    """Check that an output is not the model, by whatever name or link.

    Raises
    ------
    UsageError
        It is.
    """
    # what cannot be looked at is not the model, and will fail with a better reason when it is written
    with contextlib.suppress(OSError):
        if dst.samefile(model):
            raise UsageError("would replace the model itself", where=str(dst), fix="give another name with -o")


def hash_tensor_data(path: Path | str) -> str:
    """sha256 of what makes the weights: the tensor infos and the tensor data, as they lie in the file."""
    file = read_gguf(path)
    digest = hashlib.sha256(file.head[file.infos_start : file.infos_end])
    with file.path.open("rb") as data:
        data.seek(file.data_start)
        while chunk := data.read(_READ):
            digest.update(chunk)
    return digest.hexdigest()


def _compare(file: GgufFile, copy: Path, data_start: int, tell: Callable[[int], None]) -> str:
    """Read model and copy side by side; the hash that both have, as ``hash_tensor_data`` gives it."""
    digest = hashlib.sha256(file.head[file.infos_start : file.infos_end])
    n_done = 0
    with file.path.open("rb") as ours, copy.open("rb") as theirs:
        ours.seek(file.data_start)
        theirs.seek(data_start)
        while True:
            chunk = ours.read(_READ)
            if chunk != theirs.read(_READ):
                raise ModelNotFoundError("changed while it was copied, or the disk errs", where=str(file.path))
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            n_done += len(chunk)
            tell(n_done)


def _damaged(file: GgufFile, what: str) -> StatsError:
    return StatsError(what, where=str(file.path), fix=_FIX)


def _scalar(file: GgufFile, key: str, read: Callable[[str], T | None]) -> T:
    try:
        value = read(key)
    except ModelNotFoundError as error:  # the file is fine, our key in it is not
        raise _damaged(file, error.what) from None
    if value is None:
        raise _damaged(file, f"has no {key}")
    return value


def _array(file: GgufFile, key: str, kind: ValueType) -> npt.NDArray[np.float32]:
    pair = file.pairs.get(key)
    if pair is None:
        raise _damaged(file, f"has no {key}")
    if not pair.is_array or pair.type is not kind:
        raise _damaged(file, f"{key} must be {kind.name.lower()}[], not {pair.type_name}")
    values = file.array(key)
    assert values is not None
    return values  # type: ignore[return-value]  # int32 where that was asked for


def _rows(file: GgufFile, key: str, head_dim: int) -> npt.NDArray[np.float32]:
    flat = _array(file, key, ValueType.FLOAT32)
    if flat.size == 0 or flat.size % head_dim:
        raise _damaged(file, f"{key} has {flat.size} values, not a multiple of head dimension {head_dim}")
    return flat.reshape(-1, head_dim)


def stats_values(stats: TriattnStats) -> Iterator[tuple[str, ValueType, int | str | npt.NDArray[np.generic]]]:
    """(key, type, value) of each of our keys, for whoever writes a file of his own; an array's type is its items'."""
    yield KEY_VERSION, ValueType.UINT32, stats.version
    yield KEY_N_TOKENS, ValueType.UINT32, stats.n_tokens
    yield KEY_CORPUS, ValueType.STRING, stats.corpus
    yield KEY_TOOL, ValueType.STRING, stats.tool
    yield KEY_MODEL, ValueType.STRING, stats.model
    yield KEY_LAYERS, ValueType.INT32, np.array(stats.layers, dtype="<i4")
    for i, il in enumerate(stats.layers):
        yield KEY_Q_MEAN.format(il=il), ValueType.FLOAT32, stats.q_mean[i].astype("<f4")
        yield KEY_Q_ABS.format(il=il), ValueType.FLOAT32, stats.q_abs[i].astype("<f4")
        if stats.k_mean:
            yield KEY_K_MEAN.format(il=il), ValueType.FLOAT32, stats.k_mean[i].astype("<f4")


def _encode(stats: TriattnStats) -> list[bytes]:
    """One pair of raw bytes for each of our keys."""
    return [
        _array_pair(key, kind, value) if isinstance(value, np.ndarray) else _pair(key, kind, value)
        for key, kind, value in stats_values(stats)
    ]


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _pair(key: str, kind: ValueType, value: int | str) -> bytes:
    raw = _string(value) if isinstance(value, str) else struct.pack("<I", value)
    return _string(key) + struct.pack("<I", kind) + raw


def _array_pair(key: str, kind: ValueType, values: npt.NDArray[np.generic]) -> bytes:
    return _string(key) + struct.pack("<IIQ", ValueType.ARRAY, kind, values.size) + values.tobytes()


def _header(version: int, n_tensors: int, n_pairs: int, pairs: bytes) -> bytes:
    return struct.pack("<4sIQQ", MAGIC, version, n_tensors, n_pairs) + pairs


def _copy(src: BinaryIO, dst: BinaryIO, start: int, n_bytes: int) -> Iterator[int]:
    """Copy bytes behind what ``dst`` holds, inside the kernel where it can; yields the bytes done so far."""
    n_done = 0
    while n_done < n_bytes:
        n = _copy_in_kernel(src.fileno(), dst.fileno(), min(_CHUNK, n_bytes - n_done), start + n_done)
        if n == 0:
            break
        n_done += n
        yield n_done
    src.seek(start + n_done)
    while n_done < n_bytes:
        chunk = src.read(min(_READ, n_bytes - n_done))
        if not chunk:
            raise ModelNotFoundError("became shorter while it was copied", where=src.name)
        dst.write(chunk)
        n_done += len(chunk)
        yield n_done


def _copy_in_kernel(src: int, dst: int, n_bytes: int, offset: int) -> int:
    """Bytes copied; 0 where the system, or this pair of file systems, cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(src, dst, n_bytes, offset_src=offset)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY):
            return 0
        raise
