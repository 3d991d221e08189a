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

from .config import EvictionConfig, RuntimeConfig
from .contexts import Context, Model
from .errors import UsageError
from .runtime import physical_cores

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


def _prefill(context: Context, tokens: Sequence[int], progress: Progress, stage: str) -> float:
    """Tokens per second."""
    start_s = time.perf_counter()
    context.prefill(tokens, lambda n: progress(stage, n, len(tokens)))
    context.synchronize()
    return len(tokens) / (time.perf_counter() - start_s)


def _time_block(context: Context, tokens: Sequence[int]) -> float:
    """Decode token by token; seconds."""
    start_s = time.perf_counter()
    for token in tokens:
        context.decode([token], n_logits=1)
        context.synchronize()
    return time.perf_counter() - start_s


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
    block = eviction.window
    shallow = eviction.budget_tokens

    model = Model(path, config, stats_path)
    contexts: list[Context] = []
    try:
        tokens = _tokens(depth + block * (n_blocks + 1), model.vocabulary.n_vocab)

        def context(evicts: EvictionConfig | None, n_ctx: int) -> Context:
            contexts.append(model.context(evicts, n_ctx))
            return contexts[-1]

        evicting = context(eviction, depth + block * (n_blocks + 1))
        full_deep = context(None, depth + block)
        full_shallow = context(None, shallow + block)

        prefill_tps = {
            "evicting": _prefill(evicting, tokens[:depth], progress, "prompt, evicting"),
            "deep": _prefill(full_deep, tokens[:depth], progress, "prompt, full attention"),
            "shallow": _prefill(full_shallow, tokens[:shallow], progress, "prompt, full attention, short"),
        }

        # one block each that does not count
        for c in contexts:
            _time_block(c, tokens[c.n_past : c.n_past + block])
        full_deep.rewind(depth)
        full_shallow.rewind(shallow)

        before = evicting.stats()
        seconds: dict[str, list[float]] = {"evicting": [], "deep": [], "shallow": []}
        for i in range(n_blocks):
            progress("decode", i, n_blocks)
            seconds["shallow"].append(_time_block(full_shallow, tokens[shallow : shallow + block]))
            seconds["evicting"].append(_time_block(evicting, tokens[evicting.n_past : evicting.n_past + block]))
            seconds["deep"].append(_time_block(full_deep, tokens[depth : depth + block]))
            full_deep.rewind(depth)
            full_shallow.rewind(shallow)
        progress("decode", n_blocks, n_blocks)
        after = evicting.stats()

        def side(name: str, key: str, at: int, c: Context) -> Side:
            speeds = [block / s for s in seconds[key]]
            sizes = c.stats()
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
