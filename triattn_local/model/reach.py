"""How long a context a model can be given: what it was trained for, and how far a scaling of RoPE takes it.

TriAttention's statistics are of queries before RoPE, so a scaling leaves them valid; only the frequencies and the
attention factor c change, which the library applies itself.
"""

from __future__ import annotations

import dataclasses

from ..config import RopeScaling
from ..errors import UsageError
from .model_info import ModelInfo

YARN_MOST = 4.0
"""times the original context: what makers say that they tried; Qwen3's 131,072 are 4 times 32,768"""

_ORIGINAL = dict.fromkeys(("qwen2", "qwen2moe", "qwen3", "qwen3moe"), 32768)
"""context that YaRN starts from where a file does not say it: Qwen3's 40,960 are 32,768 and room for the answer"""


def n_ctx_original(info: ModelInfo) -> int:
    """Context in tokens that a scaling stretches."""
    return min(info.n_ctx_orig, _ORIGINAL.get(info.arch, info.n_ctx_orig))


def reach(info: ModelInfo, kind: str | None) -> int:
    """The longest context in tokens that makes sense with a scaling of this kind; None and "none": as trained."""
    if kind in (None, "none"):
        return info.n_ctx_train
    return max(info.n_ctx_train, int(n_ctx_original(info) * YARN_MOST))


def scaling_for(info: ModelInfo, kind: str | None, n_ctx: int) -> RopeScaling | None:
    """The scaling to run a context of so many tokens with; None: what the file says.

    Raises
    ------
    UsageError
        The model was not trained for that many tokens, and no scaling that was asked for takes it there.
    """
    if kind == "none":
        return RopeScaling("none", 1.0, n_ctx_original(info))
    if n_ctx > reach(info, kind):
        raise _too_long(info, kind, n_ctx)
    if kind is None or n_ctx <= info.n_ctx_train:
        return None  # scaling costs a little everywhere, and is not needed
    original = n_ctx_original(info)
    return RopeScaling(kind, n_ctx / original, original)


def scaled(info: ModelInfo, scaling: RopeScaling | None) -> ModelInfo:
    """The model as a context with this scaling sees it."""
    if scaling is None:
        return info
    return dataclasses.replace(
        info,
        rope_scaling=scaling.kind,
        rope_freq_scale=1.0 / scaling.factor,
        n_ctx_orig=scaling.n_ctx_orig,
    )


def _too_long(info: ModelInfo, kind: str | None, n_ctx: int) -> UsageError:
    most = reach(info, kind)
    if kind is None:
        told = f"the model was trained for {info.n_ctx_train:,} tokens, not for {n_ctx:,}"
    else:
        told = f"--rope-scaling {kind} takes the model to {most:,} tokens, not to {n_ctx:,}"
    fix = f"give --ctx {most} or less"
    if kind is None and n_ctx <= (stretched := reach(info, "yarn")):
        fix += f", or --rope-scaling yarn, which takes it to {stretched:,}"
    return UsageError(told, where="--ctx", fix=fix)
