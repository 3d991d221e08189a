"""What llama.cpp really allocates for a model and a context, as its log tells it: what plans are compared with."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._logger import llama_log_callback

from triattn_local.config import EvictionConfig
from triattn_local.engine import native
from triattn_local.engine.context_options import ggml_type
from triattn_local.planning.accounting import Shape

_SIZES = {
    "weights": re.compile(r"(\S+) model buffer size = +([\d.]+) MiB"),
    "kv": re.compile(r"(\S+) KV buffer size = +([\d.]+) MiB"),
    "compute": re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB"),
    "later": re.compile(r"(\S+) compute buffer size (?:is|of) +([\d.]+) MiB"),
}


@dataclass(frozen=True)
class Allocation:
    """Bytes."""

    weights: int
    kv: int
    """by the library's statistics, to the byte"""
    compute: int
    compute_later: int
    """when the context was freed: rounds may have made it larger"""
    n_cells: int
    n_rounds: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + max(self.compute, self.compute_later)


def allocate(
    path: Path, shape: Shape, *, tokens: list[int] | None = None, policy: str = "streaming", mmap: bool = False
) -> Allocation:
    """Load the model, make the context, decode the tokens in batches, free everything.

    Weights are not repacked for the CPU: that would be a second copy of what is mapped.
    """
    native.library()
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, user_data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mmap else llama_cpp.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = False
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert model, "".join(lines)[-2000:]
        eviction = None
        if shape.budget is not None:
            eviction = EvictionConfig(budget_tokens=shape.budget, window=shape.window, policy=policy)  # type: ignore[arg-type]
        native.set_params(model, eviction)
        cparams = llama_cpp.llama_context_default_params()
        cparams.n_ctx = shape.n_ctx * shape.n_seq_max
        cparams.n_batch, cparams.n_ubatch, cparams.n_seq_max = shape.n_batch, shape.n_ubatch, shape.n_seq_max
        cparams.kv_unified = shape.kv_unified
        cparams.type_k, cparams.type_v = ggml_type(shape.type_k), ggml_type(shape.type_v)
        cparams.flash_attn_type = int(shape.flash_attn)
        cparams.swa_full = False
        context: Any = llama_cpp.llama_init_from_model(model, cparams)
        assert context, "".join(lines)[-2000:]
        for i in range(0, len(tokens or ()), shape.n_batch):
            batch = (tokens or [])[i : i + shape.n_batch]
            array = (llama_cpp.llama_token * len(batch))(*batch)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(batch))) == 0
        stats, _ = native.get_stats(context)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))
    text = "".join(lines)
    sizes = {name: round(sum(float(size) for _, size in found.findall(text)) * 2**20) for name, found in _SIZES.items()}
    return Allocation(
        weights=sizes["weights"],
        kv=stats.kv_bytes + stats.kv_bytes_other,
        compute=sizes["compute"],
        compute_later=sizes["later"],
        n_cells=stats.n_cells,
        n_rounds=stats.n_rounds,
    )
