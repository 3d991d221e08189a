"""Families of models that evict: one tiny model of each, and what the library says of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
from tiny_models import (
    write_deci,
    write_falcon_h1,
    write_granite_hybrid,
    write_lfm2,
    write_nemotron_h,
    write_qwen35,
    write_tiny,
)


@dataclass(frozen=True)
class Family:
    """A kind of model."""

    write: Callable[[Path], Path]
    others: str
    """architectures of the same kind"""
    layers: Sequence[int] = range(4)
    """that evict, of four"""
    unrotated: Sequence[int] = ()
    """of these, those whose keys RoPE does not turn"""
    metadata: Callable[[gguf.GGUFWriter], object] | None = None
    """what the file of such a model must say beside its shape"""
    is_hybrid: bool = False
    """some layers have a recurrent state: no rewind"""


def partial(path: Path) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_dimension_count(16)

    return write_tiny(path, "phi3", fused_qkv=True, leave_out=("ffn_gate",), add=add)


def windows(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(64)
    writer.add_logit_scale(1.0)


def no_rope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_finetuned(False)
    writer.add_logit_scale(1.0)


FAMILIES: dict[str, Family] = {
    "llama": Family(write_tiny, "mistral3, qwen2, qwen3, qwen3moe and the other plain decoders"),
    "phi3": Family(partial, "half of a head turned: glm4, minimax-m2, stablelm"),
    "smollm3": Family(lambda path: write_tiny(path, "smollm3"), "llama4, afmoe, smallthinker", unrotated=(3,)),
    "granite": Family(
        lambda path: write_tiny(path, "granite", add=no_rope),
        "RoPE turned off in the file",
        unrotated=range(4),
        metadata=no_rope,
    ),
    "cohere2": Family(
        lambda path: write_tiny(path, "cohere2", leave_out=("ffn_norm",), add=windows),
        "cohere2moe, exaone4, exaone-moe, muse-glimmer, maple",
        (3,),
        (3,),
        windows,
    ),
    "lfm2": Family(write_lfm2, "lfm2moe", (1, 3), is_hybrid=True),
    "qwen35": Family(write_qwen35, "Qwen3.5, 3.6, 3.8", (1, 3), is_hybrid=True),
    "qwen35moe": Family(lambda path: write_qwen35(path, "qwen35moe"), "the same with experts", (1, 3), is_hybrid=True),
    "qwen3next": Family(lambda path: write_qwen35(path, "qwen3next", None), "", (3,), is_hybrid=True),
    "falcon-h1": Family(write_falcon_h1, "attention and a state in each layer", is_hybrid=True),
    "granitehybrid": Family(write_granite_hybrid, "Mamba 2: plamo2", (1, 3), (1, 3), is_hybrid=True),
    "nemotron_h": Family(write_nemotron_h, "nemotron_h_moe, jamba", (1, 3), (1, 3), is_hybrid=True),
    "deci": Family(write_deci, "layers without attention", (0, 2, 3)),
}
