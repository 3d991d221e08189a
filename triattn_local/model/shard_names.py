"""Names of the files of a split model, by which llama.cpp finds them: ``PREFIX-00001-of-00003.gguf``. Opens nothing."""

from __future__ import annotations

import re
from pathlib import Path

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def ending(number: int, count: int, suffix: str = ".gguf") -> str:
    """How the name of a file ends; the first is 1."""
    return f"-{number:05d}-of-{count:05d}{suffix}"


def numbers(stem: str) -> tuple[int, int] | None:
    """(number, count) of a file, None if it is not named as one of several."""
    shard = _SHARD.search(stem)
    return (int(shard[1]), int(shard[2])) if shard else None


def without_shard(stem: str) -> str:
    return _SHARD.sub("", stem)


def is_first(stem: str) -> bool:
    """Whether a file stands for its model: it is the first shard, or the model is not split."""
    found = numbers(stem)
    return found is None or found[0] == 1


def shards(path: Path) -> tuple[Path, ...]:
    """All files of the model that a file belongs to, in order."""
    found = numbers(path.stem)
    if found is None:
        return (path,)
    base, count = without_shard(path.stem), found[1]
    return tuple(path.with_name(base + ending(n, count, path.suffix)) for n in range(1, count + 1))
