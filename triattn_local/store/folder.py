"""The models folder: what is in it, which model a name means, and how a file gets in.

A file appears whole and verified, or not at all: it is made in ``.partial`` on the same file system and put in its
place in one step. Knows nothing of where models come from, and of a GGUF only its first four bytes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import DISK_FULL, DoesNotFitError, ModelNotFoundError, TriattnError
from ..model.shard_names import is_first, shards, without_shard
from ..support import formats
from ..support.atomic import sync_folder
from ..support.paths import exists, expanded, is_dir, is_file, refusal
from ..support.progress import Progress
from .naming import DEFAULT_QUANT, is_gguf_name, quant_label, without_gguf

MIB = 1 << 20
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PREFIX = re.compile(r"^(?:https?://)?(?:huggingface\.co|hf\.co)/")


def split_repo(name: str) -> tuple[str, str] | None:
    """``org/repo[:quant]`` of the hub, also with the hub's address before it -> (org/repo, quant or "")."""
    repo, _, quant = _HUB_PREFIX.sub("", name).partition(":")
    return (repo, quant) if _REPO.fullmatch(repo) else None


@dataclass(frozen=True)
class Entry:
    """A model in the folder."""

    name: str
    """what ``resolve`` takes for it"""
    path: Path
    """the file, or the first shard"""
    size_bytes: int
    """of all shards"""
    n_shards: int


def entries(models: Path) -> list[Entry]:
    """The models in the folder, by name.

    Raises
    ------
    ModelNotFoundError
        This user may not look into the folder.
    """
    why = refusal(models)
    if why is None and is_dir(models) and not os.access(models, os.R_OK | os.X_OK):
        why = os.strerror(errno.EACCES)
    if why is not None:
        raise ModelNotFoundError(
            f"cannot be looked into: {why}", where=str(models), fix="set TRIATTN_MODELS to a folder of yours"
        )
    found: list[Entry] = []
    for path in _gguf_files(models) if is_dir(models) else []:
        inside = path.relative_to(models)
        if not is_first(path.stem) or not is_file(path):
            continue
        files = shards(path)
        size = sum(file.stat().st_size for file in files if is_file(file))
        found.append(Entry(inside.with_suffix("").as_posix(), path, size, len(files)))
    return found


def _gguf_files(models: Path) -> list[Path]:
    """Files that are named as models, by path; what is hidden is left out, linked folders are entered."""
    found: list[Path] = []
    entered = {models.resolve()}
    for here, folders, names in os.walk(models, followlinks=True):
        found += [Path(here, name) for name in names if is_gguf_name(name) and not name.startswith(".")]
        folders[:] = [
            name for name in folders if not name.startswith(".") and _is_new(Path(here, name), models, entered)
        ]
    return sorted(found)


def _is_new(folder: Path, models: Path, entered: set[Path]) -> bool:
    """Whether a folder is still to be looked into: not a link to what is found without it, nor round in a circle."""
    real, root = folder.resolve(), models.resolve()
    inside = real.is_relative_to(root) and folder.is_symlink()
    if inside or root.is_relative_to(real) or real in entered:
        return False
    entered.add(real)
    return True


def resolve(name: str, models: Path) -> Path:
    """Find a model: a path, ``demo``, or a name in the folder, with or without folders, ``.gguf`` and shard number.

    Raises
    ------
    ModelNotFoundError
        There is none of that name, several, the file is not a GGUF, or may not be looked at.
    """
    path = expanded(name)
    if is_file(path):
        return _checked_gguf(path)
    if (path.is_absolute() or path.suffix == ".gguf") and (why := refusal(path)):
        raise ModelNotFoundError(
            f"cannot be looked at: {why}", where=str(path), fix="this user needs the right to enter its folder"
        )
    if name == "demo":
        path = models / DEMO_FILE
        if not is_file(path):
            raise ModelNotFoundError("the demo model is not here yet", where=str(models), fix="triattn-local pull demo")
        return _checked_gguf(path)

    here = entries(models)
    wanted = without_gguf(_HUB_PREFIX.sub("", name)).lower()
    matches = [entry for entry in here if wanted in _names(entry)]
    if len(matches) == 1:
        return _checked_gguf(matches[0].path)
    if matches:
        names = ", ".join(entry.name for entry in matches)
        raise ModelNotFoundError(f"{name!r} may be any of {names}", where=str(models), fix="give one of these names")

    if is_gguf_name(path.name) and len(path.parts) > 1:
        raise ModelNotFoundError("no such file", where=str(path), fix="triattn-local ls shows the models there are")
    near = difflib.get_close_matches(wanted, [entry.name for entry in here], 1, 0.5)
    if near:
        fix = f"did you mean {near[0]!r}?"
    elif split_repo(name):
        fix = f"triattn-local pull {name}"
    else:
        fix = "triattn-local ls shows the models there are, triattn-local pull demo fetches a small one"
    raise ModelNotFoundError(f"no model {name!r}", where=str(models), fix=fix)


def _names(entry: Entry) -> set[str]:
    """What an entry answers to, in small letters."""
    names = {entry.name, entry.path.stem, without_shard(entry.path.stem), without_shard(entry.name)}
    repo = entry.name.rpartition("/")[0]
    if repo:
        label = quant_label(entry.path.name)
        names.add(f"{repo}:{label}")
        if label == DEFAULT_QUANT:
            names.add(repo)
    return {name.lower() for name in names}


def remove(name: str, models: Path) -> list[Path]:
    """Remove a model of the folder, all its shards; of a linked one the links alone. Returns what was removed.

    Raises
    ------
    ModelNotFoundError
        As ``resolve``, or the file lies elsewhere.
    TriattnError
        It cannot be removed.
    """
    path = resolve(name, models)
    inside = Path(os.path.abspath(path))  # noqa: PTH100  # a link is not followed
    root = Path(os.path.abspath(models))  # noqa: PTH100
    if not inside.is_relative_to(root):
        raise ModelNotFoundError("is not in the models folder", where=str(path), fix="remove it where it lies")
    files = [file for file in shards(inside) if os.path.lexists(file)]
    with folder_errors(inside.parent):
        for file in files:
            file.unlink()
    folder = inside.parent
    with contextlib.suppress(OSError):  # it holds more
        while folder != root:
            folder.rmdir()
            folder = folder.parent
    return files


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _checked_gguf(path: Path) -> Path:
    try:
        if not is_gguf(path):
            raise ModelNotFoundError(
                "is not a GGUF", where=str(path), fix="triattn-local ls shows the models there are"
            )
    except OSError as error:
        raise ModelNotFoundError(f"cannot be read: {error.strerror}", where=str(path)) from None
    missing = [shard.name for shard in shards(path) if not is_file(shard)]
    if missing:
        raise ModelNotFoundError(f"shard {missing[0]} is missing", where=str(path.parent), fix="pull the model again")
    return path


def need_disk(folder: Path, size: int) -> None:
    while not exists(folder) and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DoesNotFitError(
            f"needs {formats.size(size, 'MiB')} of disk, {formats.size(free, 'MiB')} are free",
            where=str(folder),
            fix="free some space, or set TRIATTN_MODELS (models) or HF_HOME (the hub's cache) to another disk",
        )


@contextlib.contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Say in our words what the file system refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DoesNotFitError(
                "disk full", where=str(folder), fix="free some space, or set TRIATTN_MODELS to another disk"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise TriattnError(
                f"cannot be written: {error.strerror}",
                where=str(error.filename or folder),
                fix="set TRIATTN_MODELS to a folder that you can write",
            ) from None
        raise


@contextlib.contextmanager
def no_trace(folder: Path, models: Path) -> Iterator[None]:
    """Whoever brings nothing leaves no empty folder behind, below the models folder."""
    try:
        yield
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            partial = folder / ".partial"
            if list(folder.iterdir()) == [partial] and all(path.suffix == ".lock" for path in partial.iterdir()):
                for path in partial.iterdir():
                    path.unlink()
                partial.rmdir()
            while folder != models:
                folder.rmdir()
                folder = folder.parent
        raise


def _partial(folder: Path) -> Path:
    path = folder / ".partial"
    path.mkdir(exist_ok=True)
    return path


@contextlib.contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """One process at a time brings a model; the others wait for it and then find it there."""
    with FileLock(_partial(folder) / f"{name}.lock"):
        yield


@contextlib.contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """A folder on the same file system that is gone afterwards, with what an earlier, killed run left of this model."""
    partial = _partial(folder)
    for stale in partial.glob(f"{name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".tmp", dir=partial))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def place(source: Path, target: Path) -> None:
    source.replace(target)
    sync_folder(target.parent)


def sha256_of(path: Path, stage: str, progress: Progress) -> str:
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(4 * MIB):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, done, total)
    return digest.hexdigest()
