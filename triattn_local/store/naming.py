"""Names of model files: quantisation, and what a person may call a model.

Knows file names only; opens nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..model.shard_names import without_shard

DEFAULT_QUANT = "Q4_K_M"

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
