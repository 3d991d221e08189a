"""Which engine calibrates a model: the faster one that fits, and why.

The runtime engine computes with llama.cpp's kernels on packed weights, and needs the whole model in memory. The torch
engine computes in float32 from weights that it unpacks, and needs a layer. On a CPU torch was twice as fast on a small
model and as fast on a larger one (docs/calibration.md); of a mixture of experts llama.cpp computes only the ones that
a token wants. A GPU is faster than either on a CPU, for whichever of the two can use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triattn_local.engine.devices import devices, free_memory
from triattn_local.model.model_info import ModelInfo
from triattn_local.support.formats import size

from .decoder import why_unsupported
from .engine_torch import best_device
from .weights import Weights

EngineName = Literal["torch", "runtime"]
ENGINES = ("auto", "torch", "runtime")

RESERVE_BYTES = 768 << 20
"""what a context of calibration needs beside the weights: graph, cache, buffers"""


@dataclass(frozen=True)
class EngineChoice:
    """What runs the model, and why that."""

    engine: EngineName
    why: str
    """a clause"""


def choose(info: ModelInfo, weights: Weights, n_gpu_layers: int = -1) -> EngineChoice:
    """The engine for a model, on this machine as it is now."""
    if reason := why_unsupported(info, weights):
        return EngineChoice("runtime", f"the torch engine {reason}")
    n_bytes = sum(path.stat().st_size for path in info.shards) + RESERVE_BYTES
    gpus = [] if n_gpu_layers == 0 else [d for d in devices() if d.is_gpu]
    device = best_device(n_gpu_layers)
    if gpus:
        n_free, where = sum(gpu.free_bytes for gpu in gpus), gpus[0].name
    else:
        n_free, where = free_memory(), "memory"
    if n_bytes > n_free:
        return EngineChoice(
            "torch", f"the model needs {size(n_bytes, 'GiB')} in {where}, {size(n_free, 'GiB')} are free"
        )
    if gpus:
        return EngineChoice("runtime", f"the model fits into {where} ({size(n_bytes, 'GiB')} of {size(n_free, 'GiB')})")
    if device.type != "cpu":
        return EngineChoice("torch", f"torch has a GPU ({device.type}), and llama.cpp is built without")
    if any("_exps." in name for name in weights.names):
        return EngineChoice("runtime", "llama.cpp computes only the experts that a token wants")
    return EngineChoice("torch", "on a CPU it is as fast or faster, and needs one layer of the model in memory")
