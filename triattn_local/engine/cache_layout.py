"""What decides how rows lie in a KV cache, besides the model: two contexts that differ in it cannot share a state.

llama.cpp compares the types of a state that it reads, and no more: rows that are rotated, or were turned by other RoPE
frequencies, it reads as garbage. Knows nothing of sequences and files of them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..config import RuntimeConfig
from ..model.gguf_file import read_gguf
from ..model.model_info import ModelInfo

ROTATION_OFF = "LLAMA_ATTN_ROT_DISABLE"
"""variable by which llama.cpp leaves the Hadamard rotation of quantised rows out"""

_LONG = re.compile(rb"(blk\.\d+\.)?rope_factors_long\.weight")


def cache_layout(info: ModelInfo, config: RuntimeConfig) -> dict[str, str | int | bool]:
    """The layout of a context that is made now, in this process and environment."""
    layout: dict[str, str | int | bool] = {
        "cache_type_k": config.cache_type_k,
        "cache_type_v": config.cache_type_v,
        "flash_attn": config.flash_attn,
    }
    if any(_is_quantised(kind) for kind in (config.cache_type_k, config.cache_type_v)):
        layout["rotated"] = not _number(os.environ.get(ROTATION_OFF, ""))
    if config.rope_scaling is not None:  # keys lie in the cache as they were turned
        scaling = config.rope_scaling
        layout["rope_scaling"] = f"{scaling.kind} {scaling.factor:g} of {scaling.n_ctx_orig}"
    if _has_long_factors(info.shards):
        layout["rope_factors"] = "long" if config.n_ctx > info.n_ctx_orig else "short"
    return layout


def _is_quantised(cache_type: str) -> bool:
    return not cache_type.startswith(("f", "bf"))


def _number(text: str) -> int:
    """As C's atoi reads it."""
    match = re.match(r"\s*([+-]?\d+)", text)
    return int(match[1]) if match else 0


def _has_long_factors(shards: tuple[Path, ...]) -> bool:
    """Whether llama.cpp chooses RoPE frequencies by the length of the context (longrope)."""
    return any(_LONG.fullmatch(tensor.name) for shard in shards for tensor in read_gguf(shard).tensors)
