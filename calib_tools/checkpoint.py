"""What a calibration has done so far, in a file: so that one that was interrupted goes on instead of beginning anew.

Written whole or not at all, and read only by the calibration that wrote it: same model, same tokens, same engine.
Knows nothing of what the arrays mean.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triattn_local.errors import CalibrationError
from triattn_local.support.atomic import atomic_write

VERSION = 1

_FIX = "leave out --resume to begin anew"


@dataclass(frozen=True)
class Checkpoint:
    """One moment of a calibration."""

    task: Mapping[str, str | int]
    """what is calibrated, on what and how: a checkpoint of another task is not for us"""
    n_done: int
    """layers or sequences that are done"""
    arrays: Mapping[str, npt.NDArray[Any]]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file by a newer moment.

    Raises
    ------
    DoesNotFitError, UsageError
        The disk is full, or the file cannot be written.
    """
    header = {"version": VERSION, "task": dict(checkpoint.task), "n_done": checkpoint.n_done}
    n_bytes = sum(array.nbytes + 1024 for array in checkpoint.arrays.values())
    with atomic_write(path, n_bytes) as out:
        np.savez(out, __header__=np.array(json.dumps(header)), **checkpoint.arrays)  # type: ignore[arg-type]


def read_checkpoint(path: Path, task: Mapping[str, str | int]) -> Checkpoint | None:
    """The checkpoint of a task; None if there is no file.

    Raises
    ------
    CalibrationError
        It is damaged, or belongs to another task; the message says what differs.
    """
    if not path.exists():
        return None
    with _opened(path) as file:
        header = json.loads(str(file["__header__"]))
        version, theirs, n_done = header["version"], header["task"], int(header["n_done"])
        arrays = {name: file[name] for name in file.files if name != "__header__"}
    if version != VERSION:
        raise CalibrationError(f"has version {version}, this program reads {VERSION}", where=str(path), fix=_FIX)
    for name, ours in task.items():
        if theirs.get(name) != ours:
            raise CalibrationError(
                f"belongs to another calibration: {name} was {theirs.get(name)}, and is {ours}",
                where=str(path),
                fix=_FIX,
            )
    return Checkpoint(theirs, n_done, arrays)


def saved_task(path: Path) -> Mapping[str, str | int]:
    """The task of a checkpoint, whatever it is; empty if there is no file.

    Raises
    ------
    CalibrationError
        It is damaged.
    """
    if not path.exists():
        return {}
    with _opened(path) as file:
        task = json.loads(str(file["__header__"]))["task"]
        return {str(name): value for name, value in task.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive; whatever is wrong in it says that it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise CalibrationError("is no checkpoint, or a damaged one", where=str(path), fix=_FIX) from None
