"""One model at one depth after another, full attention and TriAttention in one process.

At each depth three contexts decode blocks in turns, so that a machine that slows down slows all of them: full attention
at that depth, TriAttention at that depth, and full attention at a depth of the budget, which is the limit that eviction
can reach. A block is one window of tokens, so that each block of TriAttention holds one round of every sequence. Where
the three do not fit into memory together, they are measured one after another, each with as many sequences as fit.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import EvictionConfig
from ..engine.contexts import Model
from ..engine.devices import Device, free_memory, used_bytes
from ..errors import DoesNotFitError
from ..model.model_info import ModelInfo, padded
from ..support.progress import Progress
from .contestant import Contestant
from .job import Job
from .report import DepthRow, Point, median_ratio

_SPARE = 1 << 30
"""bytes that are left free beside a cache: compute buffers, and what the device's libraries take"""


@dataclass(frozen=True)
class _Outcome:
    """What is left of a side when its context is closed."""

    point: Point
    seconds: list[float]
    n_rounds: int
    rounds_s: float
    kv_bytes_other: int
    """of the KV bytes, those of layers that do not evict, all sequences"""


class Measuring:
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

    def measure(self, depth: int, weights_bytes: int) -> DepthRow:
        """One depth, which must be beyond the last one.

        Raises
        ------
        DoesNotFitError
            Not even one evicting sequence fits.
        """
        if self._in_turns:
            try:
                return self._side_by_side(depth, weights_bytes)
            except DoesNotFitError:
                self._in_turns = False
        return self._one_by_one(depth, weights_bytes)

    def _side_by_side(self, depth: int, weights_bytes: int) -> DepthRow:
        with ExitStack() as stack:
            contestants = [
                stack.enter_context(self._open(evicts, at, self._job.n_seq))
                for evicts, at in ((False, self._eviction.budget_tokens), (True, depth), (False, depth))
            ]
            for i in range(self._job.n_blocks):
                self._progress(f"decoding at depth {depth:,}", i, self._job.n_blocks)
                for contestant in contestants:
                    contestant.decode_block(self._behind(contestant))
            limit, evicting, full = (self._outcome(contestant, weights_bytes) for contestant in contestants)
        return self._row(limit, evicting, full)

    def _one_by_one(self, depth: int, weights_bytes: int) -> DepthRow:
        budget, n_seq = self._eviction.budget_tokens, self._job.n_seq
        evicting = self._alone(True, depth, n_seq, weights_bytes)
        limit = None if evicting is None else self._alone(False, budget, evicting.point.n_seq, weights_bytes)
        if evicting is None or limit is None:
            raise DoesNotFitError(
                f"no room for one sequence with budget {budget} beside the weights",
                where=self._device.name,
                fix="give a smaller --budget or --batch, --cache-type-k q8_0 and --cache-type-v q8_0",
            )
        return self._row(limit, evicting, self._alone(False, depth, n_seq, weights_bytes))

    def _open(self, evicts: bool, depth: int, n_seq: int) -> Contestant:
        """A context that has reached its depth and is warm."""
        if n_seq > self._room(evicts, depth):
            raise DoesNotFitError(f"no room for {n_seq} sequences at depth {depth}")
        eviction = self._eviction if evicts else None
        contestant = Contestant(self._model, eviction, depth, n_seq, self._n_after(evicts), self._device)
        try:
            if not evicts:
                contestant.fill(self._tokens, self._progress)
            else:
                reached = contestant.read_on(self._state, self._tokens, self._n_past, self._progress)
                if self._n_past < depth:
                    self._state, self._n_past, self._prefill_tps = reached, depth, contestant.prefill_tps
                contestant.prefill_tps = self._prefill_tps
            contestant.warm_up(self._behind(contestant))
        except BaseException:
            contestant.close()
            raise
        return contestant

    def _n_after(self, evicts: bool) -> int:
        """Tokens behind the depth: what cannot evict goes back after each block."""
        return self._block * (self._job.n_blocks + 1 if evicts else 1)

    def _room(self, evicts: bool, depth: int) -> int:
        """Sequences that can fit; asked first, for some systems promise memory, and end the program later."""
        eviction = self._eviction
        n_cells = depth + self._n_after(evicts)
        if evicts:
            n_cells = min(n_cells, eviction.budget_tokens + eviction.window + self._model.config.n_batch)
        n_cells = padded(n_cells)
        free = self._device.total_bytes - used_bytes(self._device) if self._device.is_gpu else 0
        if not self._is_all_there:
            free += free_memory()
        return max(0, free - _SPARE) // (n_cells * self._cell_bytes)

    def _alone(self, evicts: bool, depth: int, n_seq: int, weights_bytes: int) -> _Outcome | None:
        """Measure one side with as many sequences as fit, n_seq at most; None: not even one does."""
        n = min(n_seq, self._room(evicts, depth))
        while n > 0:
            try:
                with self._open(evicts, depth, n) as contestant:
                    for i in range(self._job.n_blocks):
                        self._progress(f"decoding {n} sequences at depth {depth:,}", i, self._job.n_blocks)
                        contestant.decode_block(self._behind(contestant))
                    return self._outcome(contestant, weights_bytes)
            except DoesNotFitError:
                n = n * 3 // 4
        return None

    def _behind(self, contestant: Contestant) -> list[int]:
        n_past = contestant.context.n_past
        return self._tokens[n_past : n_past + self._block]

    def _outcome(self, contestant: Contestant, weights_bytes: int) -> _Outcome:
        n_rounds, rounds_s = contestant.rounds()
        point = contestant.point(self._block, weights_bytes)
        return _Outcome(point, contestant.seconds, n_rounds, rounds_s, contestant.context.stats().kv_bytes_other)

    def _row(self, limit: _Outcome, evicting: _Outcome, full: _Outcome | None) -> DepthRow:
        point = evicting.point
        # whether it fits or not: as many cells as the depth and a block behind it take
        cell_bytes = (point.kv_bytes - evicting.kv_bytes_other) // point.n_cells
        kv_bytes_full = padded(point.depth + self._block) * cell_bytes + evicting.kv_bytes_other // point.n_seq

        def speedup(other: _Outcome) -> float:
            share = point.n_seq / other.point.n_seq
            return median_ratio([s * share for s in other.seconds], evicting.seconds)

        return DepthRow(
            depth=point.depth,
            limit=limit.point,
            full=None if full is None else full.point,
            evicting=point,
            of_limit=speedup(limit),
            speedup=None if full is None else speedup(full),
            kv_ratio=round(kv_bytes_full * point.n_seq / point.kv_bytes, 2),
            kv_bytes_full=kv_bytes_full,
            in_turns=self._in_turns,
            n_rounds=evicting.n_rounds,
            round_ms=round(1000 * evicting.rounds_s / max(evicting.n_rounds, 1), 3),
            round_share=round(evicting.rounds_s / sum(evicting.seconds), 4),
        )


def _tokens(n: int, n_vocab: int) -> list[int]:
    """Speed does not depend on what the tokens say; they are varied, the same in every run, and no special ones."""
    return [n_vocab // 4 + (i * 7919) % (n_vocab // 2) for i in range(n)]
