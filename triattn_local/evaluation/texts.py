"""Held-out texts of six kinds: what they are and where they come from is in data/README."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from triattn_local.errors import UsageError
from triattn_local.support.paths import decode

from .problems import worked

BUNDLED = ("novel", "speech", "manual", "c", "python")
KINDS = (*BUNDLED, "reasoning")

_REASONING_CHARS = 44_000


def read_text(kind: str) -> str:
    """One of KINDS, about 44,000 characters; a path: that file."""
    if kind == "reasoning":
        return worked(seed=20, n_chars=_REASONING_CHARS)
    if kind in BUNDLED:
        return (resources.files(__package__) / "data" / f"{kind}.txt").read_text("utf-8")
    try:
        return decode(Path(kind).read_bytes()).replace("\r\n", "\n")
    except OSError as err:
        raise UsageError(
            f"cannot be read: {err.strerror}", where=kind, fix=f"give a text file, or one of {', '.join(KINDS)}"
        ) from err
    except UnicodeDecodeError as err:
        raise UsageError(f"is not UTF-8 at byte {err.start}", where=kind, fix="convert it to UTF-8") from err


def sha256(kind: str) -> str:
    return hashlib.sha256(read_text(kind).encode()).hexdigest()
