"""What a model and its contexts take, by llama.cpp's own accounting: it is asked, nothing is allocated.

llama.cpp loads a model and makes a context "without allocation": it reads the header, plans every buffer, and can tell
their sizes. KV bytes and compute buffers come from the library, to the byte; weights are added up from the header. So a
file whose tensor data is a hole will do, and a model of 20 GB is accounted for in a second.

Knows nothing of what fits: ``placement`` and ``planner`` do.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from ..config import EvictionConfig, RuntimeConfig
from ..engine import native
from ..engine.context_options import ContextOptions
from ..engine.contexts import Context, Model
from ..engine.layers import layers_of
from ..errors import DoesNotFitError, ModelNotFoundError, TriattnError
from ..model.gguf_file import read_gguf
from ..model.model_info import ModelInfo, read_model_info
from ..support.closing import Closing

HOST = "host"
"""memory that is no card's"""

_LAYER = re.compile(rb"blk\.(\d+)\.")
_INPUT = (b"token_embd", b"token_types", b"position_embd", b"per_layer_token_embd")


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights, by where llama.cpp puts them."""

    input: int
    """token embeddings: always in main memory"""
    layers: tuple[int, ...]
    output: int
    """final norm and output matrix: with the last layers, or in main memory"""
    shared: int
    """part of ``input`` that the output uses too, and that a card needs a second copy of"""

    @property
    def total(self) -> int:
        """Of the file, in one place."""
        return self.input + sum(self.layers) + self.output


@dataclass(frozen=True, kw_only=True)
class Shape(ContextOptions):
    """A context to account for, and how it forgets. Tokens."""

    budget: int | None
    """None: full attention"""
    window: int


@dataclass(frozen=True)
class ContextBytes:
    """What one context takes, before it is known where."""

    n_cells: int
    """cells of the caches that grow with the context, all sequences"""
    kv: int
    """all caches"""
    compute: dict[str, int]
    """device as the library names its buffers, or ``HOST`` -> bytes"""

    @property
    def compute_most(self) -> int:
        """The largest of the compute buffers: what a device needs that does all the work."""
        return max(self.compute.values())


class MemoryProbe(Closing):
    """A model loaded without its weights. Contexts are made, asked and freed."""

    def __init__(self, path: Path, n_gpu_layers: int = 0, tensor_split: tuple[int, ...] | None = None) -> None:
        """Read the header.

        Raises
        ------
        ModelNotFoundError
            Not a model that llama.cpp can load.
        """
        self.path = path
        self.info: ModelInfo = read_model_info(path)
        self.weights = _weights(self.info)
        config = RuntimeConfig(n_gpu_layers=n_gpu_layers, tensor_split=tensor_split)
        with _log() as lines:
            try:
                self.model = Model(path, config, no_alloc=True)
            except ModelNotFoundError:
                raise
            except TriattnError as error:
                raise ModelNotFoundError(
                    _reason(lines), where=str(path), fix="take another file of this model"
                ) from error
        self.layers = layers_of(self.model)
        self._known: dict[Shape, ContextBytes] = {}

    def context(self, shape: Shape) -> ContextBytes:
        """What a context of this shape takes.

        Raises
        ------
        DoesNotFitError
            Not even llama.cpp's plan of it can be made.
        """
        if shape not in self._known:
            self._known[shape] = self._ask(shape)
        return self._known[shape]

    def _ask(self, shape: Shape) -> ContextBytes:
        # which tokens are kept does not change how many: so no statistics are needed
        eviction = None
        if shape.budget is not None:
            n_keep = min(EvictionConfig.n_keep, shape.budget - shape.window - 1)
            eviction = EvictionConfig(
                budget_tokens=shape.budget, window=shape.window, n_keep=n_keep, policy="streaming"
            )
        with _log() as lines:
            try:
                context = Context(self.model, eviction, shape)
            except DoesNotFitError:
                raise DoesNotFitError(_reason(lines), where=f"a context of {shape.n_ctx} tokens") from None
            except TriattnError as error:
                raise DoesNotFitError(error.what, where=f"a context of {shape.n_ctx} tokens") from error
        with context:
            stats, buffers = context.stats(), native.get_compute(context.handle)
        compute: dict[str, int] = {}
        for buffer, n_bytes in buffers.items():
            # the CPU's buffer may lie in memory that a card can read fast: CUDA_Host
            device = HOST if buffer == "CPU" or buffer.endswith("_Host") else buffer
            compute[device] = compute.get(device, 0) + n_bytes
        return ContextBytes(stats.n_cells, stats.kv_bytes + stats.kv_bytes_other, compute)

    def close(self) -> None:
        self.model.close()


def _weights(info: ModelInfo) -> WeightBytes:
    layers = [0] * info.n_layer
    first = rest = 0
    has_output = False
    for shard in info.shards:
        for tensor in read_gguf(shard).tensors:
            name = tensor.name.decode("utf-8", "replace")
            if tensor.n_bytes is None:
                raise ModelNotFoundError(
                    f"tensor {name} has type {tensor.ggml_type}, which this llama.cpp does not know",
                    where=str(shard),
                    fix="take another quantisation of this model, or update triattn-local",
                )
            layer = _LAYER.match(tensor.name)
            has_output = has_output or tensor.name == b"output.weight"
            if layer is not None:
                if int(layer[1]) < info.n_layer:  # those of multi-token prediction are not loaded
                    layers[int(layer[1])] += tensor.n_bytes
            elif tensor.name.startswith(_INPUT):
                first += tensor.n_bytes
            else:
                rest += tensor.n_bytes
    return WeightBytes(first, tuple(layers), rest, 0 if has_output else first)


_log_lock = threading.Lock()


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    """llama.cpp's log meanwhile, instead of where it goes otherwise."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(_level: int, text: bytes, _user_data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    from llama_cpp._logger import llama_log_callback

    with _log_lock:
        llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
        try:
            yield lines
        finally:
            llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def _reason(lines: Sequence[str]) -> str:
    """The first thing that went wrong, in llama.cpp's words."""
    for line in "".join(lines).splitlines():
        if "error" in line.lower() or "failed" in line.lower():
            return "llama.cpp cannot load it: " + line.partition(": ")[2].strip()
    return "llama.cpp cannot load it"
