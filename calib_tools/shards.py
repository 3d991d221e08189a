"""The output of a split model: its first file is written anew, the others stay, under names that go with it.

llama.cpp finds the files of a model by the name of the first (``PREFIX-00001-of-00003.gguf``). The statistics are in
that one, so a converted model is a new first file and links to the others, which cost no disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from triattn_local.errors import UsageError
from triattn_local.model.model_info import ModelInfo, shard_paths
from triattn_local.model.shard_names import ending


def default_output(info: ModelInfo, sidecar: bool) -> Path:
    """Beside it: ``MODEL.triattn.gguf``, ``MODEL.triattn-00001-of-00003.gguf``, or ``MODEL.triattn-stats.gguf``."""
    stem = info.path.stem if info.path.suffix.lower() == ".gguf" else info.path.name
    if sidecar:
        return info.path.with_name(f"{stem}.triattn-stats.gguf")
    if info.split is None:
        return info.path.with_name(f"{stem}.triattn.gguf")
    end = ending(1, info.split.count)
    return info.path.with_name(f"{info.path.name.removesuffix(end)}.triattn{end}")


def check_names(info: ModelInfo, out: Path) -> None:
    """Check that a split model can have this name for its first file.

    Raises
    ------
    UsageError
        It does not end as llama.cpp wants it, or another file has the name that the second or a later one would get.
    """
    if info.split is None:
        return
    end = ending(1, info.split.count)
    if not out.name.endswith(end) or out.name == end:
        raise UsageError(
            f"is split into {info.split.count} files, and llama.cpp finds the others by the name of the first",
            where=str(info.path),
            fix=f"give -o a name that ends in {end}, or write --sidecar",
        )
    for source, link in _others(info, out):
        if os.path.lexists(link) and not _same(source, link):
            raise UsageError(
                "exists already, and is another file than the model's",
                where=str(link),
                fix="give another name with -o, or move it away",
            )


def link_others(info: ModelInfo, out: Path) -> None:
    """Give the second and later files of a split model a name that goes with ``out``: hard links, or symbolic ones.

    Raises
    ------
    UsageError
        The file system has neither.
    """
    if info.split is None:
        return
    for source, link in _others(info, out):
        if _same(source, link):
            continue
        with contextlib.suppress(OSError):
            os.link(source, link)
            continue
        try:
            link.symlink_to(source.resolve())
        except OSError as error:
            raise UsageError(
                f"cannot be linked to {source}: {error.strerror}",
                where=str(link),
                fix="write to the folder of the model, or write --sidecar",
            ) from None


def _others(info: ModelInfo, out: Path) -> list[tuple[Path, Path]]:
    """The later files, and what they are called beside ``out``."""
    return list(zip(info.shards[1:], shard_paths(out, info.split)[1:], strict=True))


def _same(source: Path, link: Path) -> bool:
    return link.exists() and link.samefile(source)
