"""What the loaded library says of a model's layers, and how that is told.

Nobody else knows all of it: which layers evict depends on what an architecture's code does, not on its file alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..config import RuntimeConfig
from ..model.model_info import ModelInfo
from . import native
from .contexts import Model
from .native import LayerInfo


def layers_of(model: Model) -> tuple[LayerInfo, ...]:
    """Each layer of a loaded model, those of multi-token prediction left out.

    Raises
    ------
    BackendMissingError
        The library is older than the question.
    """
    return tuple(native.get_layer(model.handle, il) for il in range(model.info.n_layer))


def ask_layers(info: ModelInfo) -> tuple[LayerInfo, ...]:
    """The same of a file, whose header alone is loaded.

    Raises
    ------
    BackendMissingError
        There is no library, or an older one.
    TriattnError
        llama.cpp cannot load the file.
    """
    with Model(info.path, RuntimeConfig(n_gpu_layers=0), no_alloc=True) as model:
        return layers_of(model)


def layers_text(layers: Sequence[LayerInfo]) -> str:
    """How many evict and how RoPE turns their keys; and why the others do not."""
    evicting = Counter(_turned(layer) for layer in layers if layer.why_kept is None)
    kept = Counter(layer.why_kept for layer in layers if layer.why_kept is not None)
    told = [f"{n} of {len(layers)} evict, {how}" for how, n in evicting.items()] or [f"none of {len(layers)} evicts"]
    for why, n in kept.items():
        reason = why.replace("it ", "each ", 1) if why.startswith("it ") and n > 1 else why
        told.append(reason if n == len(layers) else f"{n} {'does' if n == 1 else 'do'} not: {reason}")
    return "; ".join(told)


def _turned(layer: LayerInfo) -> str:
    if layer.rope_type is None:
        return "without RoPE"
    return f"{layer.n_rot} of {layer.head_dim} dimensions turned ({layer.rope_type})"
