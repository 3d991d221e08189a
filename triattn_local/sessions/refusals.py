"""What SQLite refuses, in words that say what to do: nothing is wrong with a database because its disk is full.

Knows nothing of what is stored.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ..errors import DoesNotFitError, StateError, TriattnError, UsageError


def told(error: sqlite3.Error, path: Path, doing: str = "cannot be used") -> TriattnError:
    """An error of SQLite as one of ours.

    Parameters
    ----------
    path : Path
        The database.
    doing : str
        What could not be done.
    """
    # the name is of Python 3.11 and later; before, the text alone tells, which is SQLite's own and has no translations
    name = getattr(error, "sqlite_errorname", "")
    text, where = str(error), str(path)
    if name.startswith("SQLITE_FULL") or "is full" in text:
        return DoesNotFitError(f"{doing}: the disk is full", where=where, fix="make room on this disk; nothing is lost")
    if name.startswith("SQLITE_IOERR") or "disk I/O error" in text:
        # a full disk too, where the files beside the database do not find room
        return DoesNotFitError(
            f"{doing}: its disk is full, or fails", where=where, fix="make room on this disk; nothing is lost"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or "locked" in text:
        return TriattnError(f"{doing}: another program holds it", where=where, fix="close that program, and try again")
    if name.startswith("SQLITE_NOTADB") or "not a database" in text:
        return StateError("is not a database of sessions", where=where, fix="move it away; a new one is made")
    if name.startswith("SQLITE_CORRUPT") or "malformed" in text:
        return StateError(
            f"{doing}: it is damaged ({text})",
            where=where,
            fix="keep a copy; `sqlite3 FILE .recover` saves what is whole",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")) or (
        "readonly" in text or "unable to open" in text
    ):
        return UsageError(f"{doing}: {text}", where=where, fix="set TRIATTN_SESSIONS to a folder that you can write")
    if name.startswith("SQLITE_NOMEM"):
        return DoesNotFitError(f"{doing}: out of memory", where=where)
    return TriattnError(f"{doing}: {text}", where=where)
