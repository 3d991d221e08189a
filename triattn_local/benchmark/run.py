"""Full attention and TriAttention in one process, at one depth after another.

At each depth three contexts decode blocks in turns, so that a machine that slows down slows all of them: full attention
at that depth, TriAttention at that depth, and full attention at a depth of the budget, which is the limit that eviction
can reach. A block is one window of tokens, so that each block of TriAttention holds one round of every sequence. Where
the three do not fit into memory together, they are measured one after another, each with as many sequences as fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import EvictionConfig, RuntimeConfig
from ..contexts import Model
from ..devices import Device, capped, devices, free_memory, nvidia_driver, used_bytes
from ..errors import DoesNotFitError, UsageError
from ..model_info import ModelInfo, read_model_info
from ..runtime import physical_cores
from .report import Point, Report, Row, median_ratio
from .side import Progress, Side

_MAX_DEPTH, _MAX_SEQ = 2**24, 256
_SPARE = 1 << 30
"""bytes that are left free beside a cache: compute buffers, and what the device's libraries take"""


@dataclass(frozen=True)
class Job:
    """What to measure."""

    depths: tuple[int, ...] = (4096, 8192)
    """logical tokens of each sequence, rising"""
    n_blocks: int = 5
    n_seq: int = 1
    """sequences that decode in one batch, at most"""
    vram_bytes: int | None = None
    """hold the device's memory to this; None: all that there is"""
    beyond_training: bool = False
    """also depths beyond the context that the model was trained for"""

    def __post_init__(self) -> None:
        for depth in self.depths:
            if not 0 < depth <= _MAX_DEPTH:
                raise UsageError(f"{depth} tokens", where="--depths", fix=f"give 1 ... {_MAX_DEPTH}")
        if not self.depths or list(self.depths) != sorted(set(self.depths)):
            raise UsageError("must rise", where="--depths", fix="give such as 2k,4k,8k")
        if self.n_blocks < 1:
            raise UsageError(f"{self.n_blocks} blocks measure nothing", where="--blocks", fix="give 1 or more")
        if not 1 <= self.n_seq <= _MAX_SEQ:
            raise UsageError(f"{self.n_seq} sequences", where="--parallel", fix=f"give 1 ... {_MAX_SEQ}")


def parse_depths(text: str) -> tuple[int, ...]:
    """``2k,4096`` -> tokens; k is 1,024.

    Raises
    ------
    UsageError
        It is no such list.
    """
    depths = []
    for part in text.lower().split(","):
        digits = part.strip().removesuffix("k")
        if not digits.isascii() or not digits.isdigit():
            raise UsageError(f"{part!r} is no number of tokens", where="--depths", fix="give such as 2k,4k,8k")
        depths.append(int(digits) * (1024 if part.strip().endswith("k") else 1))
    return tuple(depths)


def run_bench(
    path: Path,
    config: RuntimeConfig,
    eviction: EvictionConfig,
    job: Job,
    *,
    stats_path: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    on_row: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure one model.

    Parameters
    ----------
    on_row : callable, optional
        Called after each depth with what there is so far.

    Raises
    ------
    UsageError
        A depth does not reach beyond the budget.
    DoesNotFitError
        Not even one evicting sequence fits.
    TriattnError
        The model cannot be loaded, or cannot evict.
    """
    info = read_model_info(path)
    lowest = eviction.budget_tokens + eviction.window
    if job.depths[0] <= lowest:
        raise UsageError(
            f"depth {job.depths[0]} is not beyond budget + window = {lowest}",
            where="--depths",
            fix="give larger --depths or a smaller --budget",
        )
    depths = tuple(d for d in job.depths if job.beyond_training or d <= info.n_ctx_train) or job.depths
    device = _device(config)
    with ExitStack() as stack:
        if job.vram_bytes is not None:
            stack.enter_context(capped(device, job.vram_bytes))
        before = used_bytes(device)
        model = stack.enter_context(Model(path, config, stats_path))
        measuring = _Measuring(model, info, eviction, job, device, progress)
        measuring.warm_up()
        report = Report(
            model=path.name,
            device=f"{device.name} ({device.description})",
            driver=nvidia_driver() if device.is_gpu else None,
            vram_bytes=job.vram_bytes,
            weights_bytes=max(0, used_bytes(device) - before),
            threads=config.n_threads or physical_cores(),
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
            mode=eviction.mode,
            policy=eviction.policy,
            budget=eviction.budget_tokens,
            window=eviction.window,
            n_batch=config.n_batch,
            n_blocks=job.n_blocks,
            block_tokens=eviction.window,
            left_out=tuple(d for d in job.depths if d not in depths),
            rows=(),
        )
        for depth in depths:
            row = measuring.measure(depth, report.weights_bytes)
            report = dataclasses.replace(report, rows=(*report.rows, row))
            on_row(report)
    return report


def _device(config: RuntimeConfig) -> Device:
    """Where the layers go: the GPU with the most memory, if any is used."""
    found = devices()
    gpus = [device for device in found if device.is_gpu]
    if gpus and config.n_gpu_layers != 0:
        return max(gpus, key=lambda device: device.total_bytes)
    return next(device for device in found if device.kind == "cpu")


@dataclass(frozen=True)
class _Outcome:
    """What is left of a side when its context is closed."""

    point: Point
    seconds: list[float]
    n_rounds: int
    rounds_s: float
    kv_bytes_full: int


class _Measuring:
    """One model, and how far its evicting sequence has been read."""

    def __init__(
        self,
        model: Model,
        info: ModelInfo,
        eviction: EvictionConfig,
        job: Job,
        device: Device,
        progress: Progress,
    ) -> None:
        config = model.config
        self._model, self._eviction, self._job = model, eviction, job
        self._device, self._progress = device, progress
        self._block = eviction.window
        self._tokens = _tokens(job.depths[-1] + self._block * (job.n_blocks + 1), model.vocabulary.n_vocab)
        self._cell_bytes = info.kv_bytes_per_token(config.cache_type_k, config.cache_type_v)
        self._is_all_there = device.is_gpu and not 0 <= config.n_gpu_layers < info.n_layer
        self._in_turns = True
        self._state: NDArray[np.uint8] | None = None
        self._n_past = 0
        self._prefill_tps = 0.0

    def warm_up(self) -> None:
        """Touch the weights, and let the device load what it needs: that is no part of any context's memory."""
        with self._model.context(None, 512) as context:
            context.prefill(self._tokens[:32])
            context.decode(self._tokens[32:33], n_logits=1)
            context.synchronize()

    def measure(self, depth: int, weights_bytes: int) -> Row:
        """One depth, which must be beyond the last one."""
        budget, n_seq = self._eviction.budget_tokens, self._job.n_seq
        if self._in_turns:
            try:
                with ExitStack() as stack:
                    sides = [
                        stack.enter_context(self._open(evicts, at, n_seq))
                        for evicts, at in ((False, budget), (True, depth), (False, depth))
                    ]
                    for i in range(self._job.n_blocks):
                        self._progress(f"decoding at depth {depth:,}", i, self._job.n_blocks)
                        for side in sides:
                            self._decode_block(side)
                    limit, evicting, full = (self._outcome(side, weights_bytes) for side in sides)
                    return self._row(limit, evicting, full)
            except DoesNotFitError:
                self._in_turns = False
        alone = self._alone(True, depth, n_seq, weights_bytes)
        if alone is None:
            raise DoesNotFitError(
                f"no room for one sequence with budget {budget} beside the weights",
                where=self._device.name,
                fix="give a smaller --budget or --batch, --cache-type-k q8_0 and --cache-type-v q8_0",
            )
        return self._row(
            self._alone(False, budget, alone.point.n_seq, weights_bytes),
            alone,
            self._alone(False, depth, n_seq, weights_bytes),
        )

    def _open(self, evicts: bool, depth: int, n_seq: int) -> Side:
        """A context that has reached its depth and is warm."""
        if n_seq > self._room(evicts, depth):
            raise DoesNotFitError(f"no room for {n_seq} sequences at depth {depth}")
        eviction = self._eviction if evicts else None
        side = Side(self._model, eviction, depth, n_seq, self._n_after(evicts), self._device)
        try:
            if not evicts:
                side.fill(self._tokens, self._progress)
            else:
                reached = side.read_on(self._state, self._tokens, self._n_past, self._progress)
                if self._n_past < depth:
                    self._state, self._n_past, self._prefill_tps = reached, depth, side.prefill_tps
                side.prefill_tps = self._prefill_tps
            side.warm_up(self._behind(side))
        except BaseException:
            side.close()
            raise
        return side

    def _n_after(self, evicts: bool) -> int:
        """Tokens behind the depth: what cannot evict goes back after each block."""
        return self._block * (self._job.n_blocks + 1 if evicts else 1)

    def _room(self, evicts: bool, depth: int) -> int:
        """Sequences that can fit; asked first, for some systems promise memory, and end the program later."""
        eviction = self._eviction
        n_cells = depth + self._n_after(evicts)
        if evicts:
            n_cells = min(n_cells, eviction.budget_tokens + eviction.window + self._model.config.n_batch)
        free = self._device.total_bytes - used_bytes(self._device) if self._device.is_gpu else 0
        if not self._is_all_there:
            free += free_memory()
        return max(0, free - _SPARE) // (n_cells * self._cell_bytes)

    def _alone(self, evicts: bool, depth: int, n_seq: int, weights_bytes: int) -> _Outcome | None:
        """Measure one side with as many sequences as fit, n_seq at most; None: not even one does."""
        n = min(n_seq, self._room(evicts, depth))
        while n > 0:
            try:
                with self._open(evicts, depth, n) as side:
                    for i in range(self._job.n_blocks):
                        self._progress(f"decoding {n} sequences at depth {depth:,}", i, self._job.n_blocks)
                        self._decode_block(side)
                    return self._outcome(side, weights_bytes)
            except DoesNotFitError:
                n = n * 3 // 4
        return None

    def _decode_block(self, side: Side) -> None:
        side.decode_block(self._behind(side))

    def _behind(self, side: Side) -> list[int]:
        n_past = side.context.n_past
        return self._tokens[n_past : n_past + self._block]

    def _outcome(self, side: Side, weights_bytes: int) -> _Outcome:
        stats = side.context.stats()
        n_rounds, rounds_s = side.rounds()
        full = (stats.kv_bytes_full + stats.kv_bytes_other) // side.n_seq
        return _Outcome(side.point(self._block, weights_bytes), side.seconds, n_rounds, rounds_s, full)

    def _row(self, limit: _Outcome | None, evicting: _Outcome, full: _Outcome | None) -> Row:
        assert limit is not None  # it has fewer cells than the evicting cache
        point = evicting.point

        def speedup(other: _Outcome) -> float:
            share = point.n_seq / other.point.n_seq
            return median_ratio([s * share for s in other.seconds], evicting.seconds)

        return Row(
            depth=point.depth,
            limit=limit.point,
            full=None if full is None else full.point,
            evicting=point,
            of_limit=speedup(limit),
            speedup=None if full is None else speedup(full),
            kv_ratio=round(evicting.kv_bytes_full * point.n_seq / point.kv_bytes, 2),
            kv_bytes_full=evicting.kv_bytes_full,
            in_turns=self._in_turns,
            n_rounds=evicting.n_rounds,
            round_ms=round(1000 * evicting.rounds_s / max(evicting.n_rounds, 1), 3),
            round_share=round(evicting.rounds_s / sum(evicting.seconds), 4),
        )


def _tokens(n: int, n_vocab: int) -> list[int]:
    """Speed does not depend on what the tokens say; they are varied, the same in every run, and no special ones."""
    return [n_vocab // 4 + (i * 7919) % (n_vocab // 2) for i in range(n)]
