"""Files that are there whole or not at all.

A temporary file in the same folder, synced, then renamed over the name asked for. Its writer holds a lock on it while
it lives, so that what a killed process left behind is known as such and cleared away by the next one. Knows nothing of
what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DISK_FULL, DoesNotFitError, UsageError
from .formats import size
from .paths import is_dir, is_file

_MAKE_ROOM = "make room or write to another disk; statistics alone need little (convert --sidecar)"

_CREATING_S = 1.0
"""a file without a lock that is older than this has lost its writer"""


@contextlib.contextmanager
def atomic_write(dst: Path, n_bytes: int, *, fix: str = _MAKE_ROOM, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that takes the name ``dst`` only when it is whole and on the disk, and else leaves no trace.

    Parameters
    ----------
    n_bytes : int
        What is going to be written; checked against the free disk first.
    fix : str
        What else can be done when the disk is too small.
    mode : int
        Of the file, less the umask.

    Raises
    ------
    DoesNotFitError
        The disk is too full, or fills up meanwhile.
    UsageError
        The name is a folder, or cannot be written to.
    """
    _clear_leftovers(dst)
    check_writable(dst, n_bytes, fix=fix)
    temporary = dst.parent / f".{_short(dst.name)}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            # not mkstemp: it ignores the umask, and a model is to be readable like any other file
            with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as out:
                _lock(out)
                yield out
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(dst)
        except BaseException:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(dst.parent)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent != dst.parent:
            raise  # of what is read meanwhile
        if error.errno in DISK_FULL:
            raise _disk_full(dst, n_bytes, None, fix) from None
        raise _not_writable(dst, error) from None


def write_whole(dst: Path, data: bytes, *, mode: int = 0o666) -> None:
    """``atomic_write`` of what is in memory. Raises the same."""
    with atomic_write(dst, len(data), mode=mode) as out:
        out.write(data)


def check_writable(dst: Path, n_bytes: int, *, fix: str = _MAKE_ROOM) -> None:
    """Check what can be known before ``atomic_write`` about a name and the disk behind it.

    For work that takes long and writes at its end.

    Raises
    ------
    DoesNotFitError, UsageError
        As ``atomic_write``.
    """
    if is_dir(dst):
        raise UsageError("is a folder", where=str(dst), fix="give the name of a file")
    try:
        if not is_file(dst):
            with contextlib.suppress(FileNotFoundError):
                dst.lstat()  # a name that is too long, or behind a folder that may not be entered
        n_free = shutil.disk_usage(dst.parent).free
        if not os.access(dst.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _not_writable(dst, error) from None
    if n_free < n_bytes:
        raise _disk_full(dst, n_bytes, n_free, fix)


def _lock(file: BinaryIO) -> bool:
    """Whether we hold the file now; not if another process does, nor on file systems without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_LONGEST = 200
"""bytes of a name that has room for more behind it: file systems end at 255"""


def _short(name: str) -> str:
    """The name, or what stands for one that is too long to be made longer."""
    raw = os.fsencode(name)
    return name if len(raw) <= _LONGEST else hashlib.sha256(raw).hexdigest()


def _clear_leftovers(dst: Path) -> None:
    """Delete temporary files of this name whose writers are dead."""
    try:
        left = list(dst.parent.glob(f".{glob.escape(_short(dst.name))}.*.tmp"))
    except OSError:  # what keeps us from looking will keep us from writing, with a better reason
        return
    for path in left:
        with contextlib.suppress(OSError), path.open("rb") as file:
            # one that is being created this moment is not locked yet
            if _lock(file) and time.time() - path.stat().st_mtime > _CREATING_S:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; Windows has no such thing."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _not_writable(dst: Path, error: OSError) -> UsageError:
    fix = (
        "give a shorter name" if error.errno == errno.ENAMETOOLONG else "give a name in a folder that you may write to"
    )
    return UsageError(f"cannot be written: {error.strerror}", where=str(dst), fix=fix)


def _disk_full(dst: Path, n_bytes: int, n_free: int | None, fix: str) -> DoesNotFitError:
    free = "the disk is full" if n_free is None else f"the disk has {size(n_free, 'MiB')} free"
    return DoesNotFitError(
        f"needs {size(n_bytes, 'MiB')}, {free}",
        where=str(dst),
        fix=fix,
    )
