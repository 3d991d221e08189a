"""How fast a forgetting cache decodes, beside full attention, in one process.

Three contexts of one model take turns, block by block, so that a machine that slows down slows all of them: full
attention at a small depth, full attention at a large one, and TriAttention at the large one. A block is one window of
tokens, so that each block of TriAttention holds one round. The limit of TriAttention's decode is full attention at a
depth equal to its budget; the report says how far it is from that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._logger import set_verbose

from . import native
from .config import EvictionConfig, RuntimeConfig
from .errors import DoesNotFitError, TriattnError, UsageError
from .model_info import read_model_info
from .runtime import ggml_type, physical_cores

Progress = Callable[[str, int, int], None]
"""called with the stage, what is done and what there is in all"""


@dataclass(frozen=True)
class Side:
    """One context's figures. Speeds are medians over the blocks, in tokens per second."""

    name: str
    depth: int
    """logical tokens before the first block"""
    decode_tps: float
    decode_tps_min: float
    decode_tps_max: float
    prefill_tps: float
    n_cells: int
    kv_bytes: int


@dataclass(frozen=True)
class BenchReport:
    """One run. Ratios are medians of the ratios block by block."""

    model: str
    threads: int
    cache_type_k: str
    cache_type_v: str
    flash_attn: bool
    mode: str
    policy: str
    budget: int
    window: int
    n_blocks: int
    block_tokens: int
    full_shallow: Side
    full_deep: Side
    evicting: Side
    ratio_to_limit: float
    """evicting at the large depth / full attention at the small one"""
    speedup: float
    """evicting / full attention, both at the large depth"""
    kv_ratio: float
    """full attention's KV bytes at the large depth / the evicting cache's"""
    n_rounds: int
    round_ms: float
    """mean of the rounds while decoding"""
    round_share: float
    """part of the evicting side's decode time that rounds took"""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class _Model:
    def __init__(self, path: Path, config: RuntimeConfig) -> None:
        native.library()
        set_verbose(config.verbose)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = config.n_gpu_layers if config.n_gpu_layers >= 0 else 0x7FFFFFFF
        self.handle: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise TriattnError(native.last_error() or "llama.cpp cannot load it", where=str(path))
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))

    def close(self) -> None:
        llama_cpp.llama_model_free(self.handle)


class _Context:
    """One sequence in one context; None as eviction: full attention."""

    def __init__(self, model: _Model, config: RuntimeConfig, eviction: EvictionConfig | None, n_ctx: int) -> None:
        native.set_params(model.handle, eviction)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = config.n_batch
        params.n_ubatch = min(config.n_ubatch, config.n_batch)
        params.n_threads = params.n_threads_batch = config.n_threads or physical_cores()
        params.type_k, params.type_v = ggml_type(config.cache_type_k), ggml_type(config.cache_type_v)
        params.flash_attn_type = int(config.flash_attn)
        params.swa_full = False
        self.handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            why = native.last_error()
            raise TriattnError(why) if why else DoesNotFitError(f"no room for a context of {n_ctx} tokens")
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._n_batch = config.n_batch
        self.n_past = 0

    def close(self) -> None:
        llama_cpp.llama_free(self.handle)

    def decode(self, tokens: Sequence[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise TriattnError(f"llama.cpp failed with status {status} at position {self.n_past}", where="llama_decode")
        self.n_past += len(tokens)

    def prefill(self, tokens: Sequence[int], progress: Progress, stage: str) -> float:
        """Read a prompt; tokens per second."""
        start_s = time.perf_counter()
        for i in range(0, len(tokens), self._n_batch):
            self.decode(tokens[i : i + self._n_batch])
            progress(stage, min(i + self._n_batch, len(tokens)), len(tokens))
        llama_cpp.llama_synchronize(self.handle)
        return len(tokens) / (time.perf_counter() - start_s)

    def time_block(self, tokens: Sequence[int]) -> float:
        """Decode token by token; seconds."""
        start_s = time.perf_counter()
        for token in tokens:
            self.decode([token])
            llama_cpp.llama_synchronize(self.handle)
        return time.perf_counter() - start_s

    def rewind(self, n_past: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_past, -1):
            raise TriattnError(f"cannot rewind to {n_past}")
        self.n_past = n_past


def run_bench(
    path: Path,
    config: RuntimeConfig,
    eviction: EvictionConfig,
    *,
    stats_path: Path | None = None,
    depth: int = 8000,
    n_blocks: int = 5,
    progress: Progress = lambda stage, done, total: None,
) -> BenchReport:
    """Measure decode at `depth` with eviction and without, and without at depth = budget.

    Raises
    ------
    UsageError
        The depth does not reach beyond the budget, or there are no blocks.
    TriattnError
        The model cannot be loaded, or cannot evict.
    """
    if depth <= eviction.budget_tokens + eviction.window:
        raise UsageError(
            f"depth {depth} is not beyond budget + window = {eviction.budget_tokens + eviction.window}",
            where="--depth",
            fix="give a larger --depth or a smaller --budget",
        )
    if n_blocks < 1:
        raise UsageError(f"{n_blocks} blocks measure nothing", where="--blocks", fix="give 1 or more")
    read_model_info(path)
    block = eviction.window
    shallow = eviction.budget_tokens

    model = _Model(path, config)
    contexts: list[_Context] = []
    try:
        if stats_path is not None:
            native.load_stats(model.handle, stats_path)
        tokens = _tokens(depth + block * (n_blocks + 1), model.n_vocab)

        def context(evicts: EvictionConfig | None, n_ctx: int) -> _Context:
            contexts.append(_Context(model, config, evicts, n_ctx))
            return contexts[-1]

        evicting = context(eviction, depth + block * (n_blocks + 1))
        full_deep = context(None, depth + block)
        full_shallow = context(None, shallow + block)

        prefill_tps = {
            "evicting": evicting.prefill(tokens[:depth], progress, "prompt, evicting"),
            "deep": full_deep.prefill(tokens[:depth], progress, "prompt, full attention"),
            "shallow": full_shallow.prefill(tokens[:shallow], progress, "prompt, full attention, short"),
        }

        # one block each that does not count
        for c in contexts:
            c.time_block(tokens[c.n_past : c.n_past + block])
        full_deep.rewind(depth)
        full_shallow.rewind(shallow)

        before, _ = native.get_stats(evicting.handle)
        seconds: dict[str, list[float]] = {"evicting": [], "deep": [], "shallow": []}
        for i in range(n_blocks):
            progress("decode", i, n_blocks)
            seconds["shallow"].append(full_shallow.time_block(tokens[shallow : shallow + block]))
            seconds["evicting"].append(evicting.time_block(tokens[evicting.n_past : evicting.n_past + block]))
            seconds["deep"].append(full_deep.time_block(tokens[depth : depth + block]))
            full_deep.rewind(depth)
            full_shallow.rewind(shallow)
        progress("decode", n_blocks, n_blocks)
        after, _ = native.get_stats(evicting.handle)

        def side(name: str, key: str, at: int, c: _Context) -> Side:
            speeds = [block / s for s in seconds[key]]
            sizes, _ = native.get_stats(c.handle)
            return Side(
                name=name,
                depth=at,
                decode_tps=round(statistics.median(speeds), 2),
                decode_tps_min=round(min(speeds), 2),
                decode_tps_max=round(max(speeds), 2),
                prefill_tps=round(prefill_tps[key], 2),
                n_cells=sizes.n_cells,
                kv_bytes=sizes.kv_bytes + sizes.kv_bytes_other,
            )

        sides = {
            "full_shallow": side("full attention", "shallow", shallow, full_shallow),
            "full_deep": side("full attention", "deep", depth, full_deep),
            "evicting": side(eviction.policy, "evicting", depth, evicting),
        }
        n_rounds = after.n_rounds - before.n_rounds
        round_s = (after.t_total_us - before.t_total_us) / 1e6
        return BenchReport(
            model=path.name,
            threads=config.n_threads or physical_cores(),
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
            mode=eviction.mode,
            policy=eviction.policy,
            budget=eviction.budget_tokens,
            window=eviction.window,
            n_blocks=n_blocks,
            block_tokens=block,
            **sides,
            ratio_to_limit=_median_ratio(seconds["shallow"], seconds["evicting"]),
            speedup=_median_ratio(seconds["deep"], seconds["evicting"]),
            kv_ratio=round(sides["full_deep"].kv_bytes / sides["evicting"].kv_bytes, 2),
            n_rounds=n_rounds,
            round_ms=round(1000 * round_s / max(n_rounds, 1), 3),
            round_share=round(round_s / sum(seconds["evicting"]), 4),
        )
    finally:
        for c in contexts:
            c.close()
        model.close()


def _median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def _tokens(n: int, n_vocab: int) -> list[int]:
    """Speed does not depend on what the tokens say; they are varied, the same in every run, and no special ones."""
    return [n_vocab // 4 + (i * 7919) % (n_vocab // 2) for i in range(n)]
