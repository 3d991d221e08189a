"""A sequence on disk: its tokens, the state of its cache, and what they belong to.

Layout: magic, version, length of a JSON header, header, tokens (int32), state (as llama.cpp wrote it). Written whole or
not at all. What was evicted lies beside it, in a file that the engine adds rows to and maps them from. Knows nothing of
how a state is made or used.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import StateError, from_system
from ..support.atomic import atomic_write

_MAGIC = b"TRIATTNS"
_VERSION = 1
_PREFIX = struct.Struct("<8sII")


@dataclass(frozen=True)
class Snapshot:
    """One sequence at one moment."""

    model: str
    """fingerprint of the model"""
    context: dict[str, str | int | bool]
    """what the context must share for the state to be read: cache types, flash attention, eviction"""
    tokens: list[int]
    """tokens whose keys and values the state holds or has evicted"""
    pending: int | None
    """token drawn last and not decoded yet"""
    state: bytes
    pos_whole: int = 0
    """restored, it can be rewound to here and later"""
    rows: Path | None = None
    """file with the rows that were evicted before, and that the state names; None: they are gone with the context"""


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write to a temporary file in the same folder, sync, rename. Its file of rows is synced before.

    Raises
    ------
    DoesNotFitError, TriattnError
        The disk is full, or the folder cannot be written to; what was there before stays.
    """
    if snapshot.rows is not None:
        _sync(snapshot.rows)
    tokens = np.asarray(snapshot.tokens, "<i4").tobytes()
    told = {
        "model": snapshot.model,
        "context": snapshot.context,
        "n_tokens": len(snapshot.tokens),
        "pending": snapshot.pending,
        "n_state": len(snapshot.state),
        "sha256": hashlib.sha256(tokens + snapshot.state).hexdigest(),
        "pos_whole": snapshot.pos_whole,
        "rows": None if snapshot.rows is None else snapshot.rows.name,  # a file in the same folder
    }
    header = json.dumps(told, sort_keys=True).encode()
    n_bytes = _PREFIX.size + len(header) + len(tokens) + len(snapshot.state)
    with atomic_write(path, n_bytes) as file:
        file.write(_PREFIX.pack(_MAGIC, _VERSION, len(header)))
        file.write(header)
        file.write(tokens)
        file.write(snapshot.state)


def read_snapshot(path: Path) -> Snapshot:
    """Read and check a snapshot.

    Raises
    ------
    StateError
        Not there, not a snapshot, of another version, or damaged.
    """
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as err:
        raise StateError(f"cannot be read: {err.strerror}", where=where) from err
    if len(data) < _PREFIX.size or data[:8] != _MAGIC:
        raise StateError("is not a saved session", where=where)
    _, version, n_header = _PREFIX.unpack_from(data)
    if version != _VERSION:
        raise StateError(f"has version {version}, this program reads {_VERSION}", where=where)
    body = _PREFIX.size + n_header
    payload = data[body:]
    try:
        header = json.loads(data[_PREFIX.size : body])
        same = {name: header[name] for name in ("model", "context", "pending")}
        n_token_bytes, rows = 4 * int(header["n_tokens"]), header.get("rows")
        is_whole = len(payload) == n_token_bytes + header["n_state"]
        is_whole = is_whole and hashlib.sha256(payload).hexdigest() == header["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise StateError("is damaged: its header cannot be read", where=where) from err
    if not is_whole:
        raise StateError("is damaged: its contents do not match its checksum", where=where)
    return Snapshot(
        **same,
        tokens=np.frombuffer(payload[:n_token_bytes], "<i4").tolist(),
        state=payload[n_token_bytes:],
        pos_whole=header.get("pos_whole", 0),
        rows=None if rows is None else path.parent / Path(rows).name,
    )


def rows_beside(path: Path) -> list[Path]:
    """The files of rows of the snapshot at `path` and of those that were there before it."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*.rows"))


def new_rows_beside(path: Path) -> Path:
    """A name for the rows of the snapshot that is going to be at `path`, until when those of the present one stay."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.rows")


def _sync(path: Path) -> None:
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as err:
        raise from_system(err) or StateError(f"cannot be written: {err.strerror}", where=str(path)) from err
