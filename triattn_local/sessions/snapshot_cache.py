"""Snapshots of a conversation's cache, in memory and on disk, each within its limit.

On disk a session is a folder: a file for each snapshot, and one for evicted rows, which all of them share.
What was put last stays longest. The disk is written by a thread of its own, so that nobody waits for it. Knows nothing
of models: a snapshot is a value with a size.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..engine.snapshot import Snapshot, read_snapshot, write_snapshot
from ..errors import StateError, TriattnError, from_system
from ..support.paths import is_file


@dataclass(frozen=True)
class CachedSnapshot:
    """A snapshot and where it was found."""

    snapshot: Snapshot
    origin: Literal["memory", "disk"]


class SnapshotCache:
    """Snapshots by session and message. Its methods may be called from several threads.

    Parameters
    ----------
    folder : Path, optional
        Where files go; None keeps nothing on disk.
    memory_bytes, disk_bytes : int
        Limits of the two; 0 keeps nothing there. A snapshot larger than a limit is not kept there.
    on_error : callable, optional
        Told what the writing thread could not do.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        memory_bytes: int,
        disk_bytes: int,
        on_error: Callable[[TriattnError], None] | None = None,
    ) -> None:
        self.folder = folder
        self.memory_limit, self.disk_limit = memory_bytes, disk_bytes
        self.on_error = on_error
        self._memory: OrderedDict[tuple[str, int], Snapshot] = OrderedDict()
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "snapshots")
        self._last: Future[None] | None = None

    @property
    def memory_bytes(self) -> int:
        with self._lock:
            return sum(_size(snapshot) for snapshot in self._memory.values())

    @property
    def disk_bytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def put(
        self, session: str, message: int, snapshot: Snapshot, *, in_memory: bool = True, on_disk: bool = True
    ) -> None:
        """Keep it, and drop the oldest ones beyond the limits."""
        size = _size(snapshot)
        with self._lock:
            self._memory.pop((session, message), None)
            if in_memory and size <= self.memory_limit:
                self._memory[session, message] = snapshot
                used = sum(_size(s) for s in self._memory.values())
                while used > self.memory_limit:
                    _, dropped = self._memory.popitem(last=False)
                    used -= _size(dropped)
        path = self._path(session, message)
        if on_disk and path is not None and size <= self.disk_limit:
            self._last = self._writer.submit(self._write, path, snapshot)

    def rows(self, session: str, layout: str) -> Path | None:
        """The file for what a session has evicted, in a folder that is there. None: there is no room for more.

        Parameters
        ----------
        layout : str
            Rows of another one (model, cache types) have a file of their own.
        """
        if self.folder is None or self.disk_limit == 0:
            return None
        folder = self.folder / session
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.report(from_system(error) or TriattnError(str(error), where=str(folder)))
            return None
        path = folder / f"{layout}.rows"
        return None if is_file(path) and _disk_size(path.stat()) > self.disk_limit else path

    def report(self, error: TriattnError) -> None:
        """Tell whoever listens what could not be kept."""
        if self.on_error is not None:
            self.on_error(error)

    def find(self, session: str, message: int) -> CachedSnapshot | None:
        """A snapshot from memory, else from disk; a damaged file counts as none, and is removed."""
        with self._lock:
            if (session, message) in self._memory:
                self._memory.move_to_end((session, message))
                return CachedSnapshot(self._memory[session, message], "memory")
        path = self._path(session, message)
        if path is None or not is_file(path):
            return None
        try:
            return CachedSnapshot(read_snapshot(path), "disk")
        except StateError:
            with contextlib.suppress(OSError):  # a folder that may not be written keeps it
                path.unlink(missing_ok=True)
            return None

    def forget(self, session: str) -> None:
        """Drop all snapshots of a session."""
        with self._lock:
            for key in [key for key in self._memory if key[0] == session]:
                del self._memory[key]
        if self.folder is not None:
            self._writer.submit(self._remove, self.folder / session)

    def wait(self) -> None:
        """Until all that was put is on the disk."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        self._writer.shutdown()

    def _path(self, session: str, message: int) -> Path | None:
        return None if self.folder is None else self.folder / session / f"{message}.tri"

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_snapshot(path, snapshot)
            self._drop_oldest(path)
        except (TriattnError, OSError) as error:
            self.report(from_system(error) or TriattnError(str(error), where=str(path)))

    def _drop_oldest(self, newest: Path) -> None:
        """Keep within the limit. Rows go with the last snapshot of their session."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, old in files:
            if used <= self.disk_limit:
                break
            if old == newest or old.suffix == ".rows":
                continue
            old.unlink(missing_ok=True)
            used -= size
            if old.parent != newest.parent and not any(old.parent.glob("*.tri")):
                for rows in old.parent.glob("*.rows"):
                    used -= _disk_size(rows.stat())
                    rows.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time written, bytes, path)"""
        found = []
        for path in self.folder.glob("*/*") if self.folder is not None else ():
            if path.suffix not in (".tri", ".rows"):
                continue
            try:
                status = path.stat()
            except OSError:  # another process removed it meanwhile
                continue
            found.append((status.st_mtime, _disk_size(status), path))
        return found

    def _remove(self, folder: Path) -> None:
        for path in [*folder.glob("*.tri"), *folder.glob("*.rows")]:
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _disk_size(status: os.stat_result) -> int:
    """Files of rows have holes."""
    return min(status.st_size, 512 * status.st_blocks)


def _size(snapshot: Snapshot) -> int:
    return len(snapshot.state) + 4 * len(snapshot.tokens)
