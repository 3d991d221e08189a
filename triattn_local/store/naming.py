"""Names of model files: quantisation, shards, and what a person may call a model.

Knows file names only; opens nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

DEFAULT_QUANT = "Q4_K_M"

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:(?:I?Q\d|TQ\d)(?:_[A-Z0-9]+)*|MXFP4(?:_[A-Z]+)*|BF16|F16|F32|FP16|FP32))(?=$|[-.])", re.I
)


def is_gguf_name(file_name: str) -> bool:
    """Whether a file is named as a model: ``.gguf``, in small or large letters."""
    return file_name.lower().endswith(".gguf")


def without_gguf(file_name: str) -> str:
    return file_name[: -len(".gguf")] if is_gguf_name(file_name) else file_name


def quant_label(file_name: str) -> str:
    """The quantisation that a file's name tells (``Q4_K_M``, ``UD-Q4_K_XL``), or else its stem."""
    stem = without_shard(without_gguf(file_name.rsplit("/", 1)[-1]))
    labels = _QUANT.findall(stem)
    return str(labels[-1]).upper() if labels else stem


def quant_names(file_name: str) -> set[str]:
    """What can stand behind the colon for this file, in small letters."""
    stem = Path(file_name).stem
    return {quant_label(file_name).lower(), stem.lower(), without_shard(stem).lower()}


def without_shard(stem: str) -> str:
    return _SHARD.sub("", stem)


def is_first(stem: str) -> bool:
    """Whether a file stands for its model: it is the first shard, or the model is not split."""
    shard = _SHARD.search(stem)
    return not shard or int(shard[1]) == 1


def shards(first: Path) -> list[Path]:
    """All files of the model whose first shard is given, in order."""
    shard = _SHARD.search(first.stem)
    if not shard:
        return [first]
    base = first.stem[: shard.start()]
    return [first.with_name(f"{base}-{n:05d}-of-{shard[2]}{first.suffix}") for n in range(1, int(shard[2]) + 1)]
