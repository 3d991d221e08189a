"""A real model with other metadata: its tensors stay the bytes that they are."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from triattn_local.model.gguf_file import ValueType, read_gguf

Value = str | int | float | bool | None


def retouched(
    source: Path,
    target: Path,
    changes: Mapping[str, tuple[ValueType, Value] | str | None],
    raw: Mapping[str, bytes] | None = None,
) -> Path:
    """Copy a GGUF with these keys set, as (type, value) or as text, or taken out (None); or as bytes of whole pairs."""
    file = read_gguf(source)
    pairs = {pair.key: file.head[pair.start : pair.end] for pair in file.pairs.values()}
    for key, change in changes.items():
        if change is None:
            pairs.pop(key, None)
        else:
            kind, value = (ValueType.STRING, change) if isinstance(change, str) else change
            pairs[key] = _string(key) + struct.pack("<I", kind) + _raw(kind, value)
    pairs.update(raw or {})
    head = struct.pack("<4sIQQ", b"GGUF", file.version, len(file.tensors), len(pairs))
    head += b"".join(pairs.values()) + file.head[file.infos_start : file.infos_end]
    head += bytes(-len(head) % file.alignment)
    with source.open("rb") as data:
        data.seek(file.data_start)
        target.write_bytes(head + data.read())
    return target


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


_FORMS = {
    ValueType.UINT8: "<B",
    ValueType.UINT16: "<H",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
}


def _raw(kind: ValueType, value: Value) -> bytes:
    return _string(str(value)) if kind is ValueType.STRING else struct.pack(_FORMS[kind], value)
