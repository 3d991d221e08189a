"""One of the contexts that are compared: it gets to a depth, decodes blocks there, and keeps their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..config import EvictionConfig
from ..engine.contexts import Context, Model
from ..engine.devices import Device, used_bytes
from ..engine.native import EngineStats
from ..support.closing import Closing
from ..support.progress import Progress
from .fill import UnknownLayoutError, repeat_cells
from .report import Point


class Contestant(Closing):
    """A context at one depth.

    Full attention goes back to its depth after each block; what has evicted cannot, and goes on: its speed does not
    depend on the depth.
    """

    def __init__(
        self, model: Model, eviction: EvictionConfig | None, depth: int, n_seq: int, n_after: int, device: Device
    ) -> None:
        """Make its context.

        Parameters
        ----------
        n_after : int
            Tokens that will be decoded behind the depth, at most.

        Raises
        ------
        DoesNotFitError
            There is no room for the context.
        """
        self._memory_before = used_bytes(device)
        self._device = device
        self.depth, self.n_seq, self.evicts = depth, n_seq, eviction is not None
        self.context: Context = model.context(eviction, depth + n_after, n_seq)
        self.seconds: list[float] = []
        """of each block"""
        self.prefill_tps = 0.0
        self._memory_bytes = 0
        self._at_depth: NDArray[np.uint8] | None = None
        """to go back to, where a block is longer than what a sliding window can be cut by"""
        self._before: EngineStats | None = None

    def close(self) -> None:
        self.context.close()

    def fill(self, tokens: Sequence[int], progress: Progress) -> None:
        """Get full attention to its depth: one batch read, repeated, and the last batch read and timed."""
        n_last = min(self.context.n_batch, self.depth // 2)
        seed = tokens[: min(self.context.n_batch, self.depth - n_last)]
        progress(f"full attention, to depth {self.depth:,}", 0, None)
        self.context.prefill(seed)
        try:
            n_filled = self.depth - n_last
            self.context.set_state(repeat_cells(self.context.state(), n_filled), tokens[:n_filled])
        except UnknownLayoutError:
            self.context.rewind(0)  # the cells are counted from a whole sequence then
            self.context.prefill(tokens[: self.depth - n_last])
        self._read(tokens, progress)
        self.context.copy_to_all()

    def read_on(
        self, state: NDArray[np.uint8] | None, tokens: Sequence[int], n_past: int, progress: Progress
    ) -> NDArray[np.uint8]:
        """Get an evicting cache to its depth from the state of a smaller one; returns the state to go on from."""
        if state is not None:
            self.context.set_state(state, tokens[:n_past])
        self._read(tokens, progress)
        reached = self.context.state()
        self.context.copy_to_all()
        return reached

    def _read(self, tokens: Sequence[int], progress: Progress) -> None:
        rest = tokens[self.context.n_past : self.depth]
        stage = f"reading to depth {self.depth:,}"
        began_s = time.perf_counter()
        self.context.prefill(rest, lambda n: progress(stage, n, len(rest)))
        self.context.synchronize()
        self.prefill_tps = len(rest) / (time.perf_counter() - began_s)

    def warm_up(self, tokens: Sequence[int]) -> None:
        """Decode a block that does not count; what the device holds more than before the context is its own."""
        model = self.context.model
        if not self.evicts and (model.n_window or model.recurs):
            self._at_depth = self.context.state()
        self._decode(tokens)
        self._before = self.context.stats()
        if used := used_bytes(self._device):
            self._memory_bytes = max(0, used - self._memory_before)

    def decode_block(self, tokens: Sequence[int]) -> None:
        self.seconds.append(self._decode(tokens))

    def _decode(self, tokens: Sequence[int]) -> float:
        """Put so many tokens behind every sequence, one by one, and go back to the depth if that can be; seconds."""
        began_s = time.perf_counter()
        for token in tokens:
            self.context.decode_each(token)
            self.context.synchronize()
        took_s = time.perf_counter() - began_s
        if not self.evicts:
            self._go_back()
        return took_s

    def _go_back(self) -> None:
        if self.context.can_rewind(self.depth):
            self._at_depth = None
            self.context.rewind(self.depth)
        elif self._at_depth is not None:
            self.context.set_state(self._at_depth, self.context.tokens[: self.depth])
            self.context.copy_to_all()
        else:
            self.context.rewind(self.depth)  # says why not

    def rounds(self) -> tuple[int, float]:
        """Number of the rounds in the blocks, and their seconds."""
        assert self._before is not None
        after = self.context.stats()
        return after.n_rounds - self._before.n_rounds, (after.t_total_us - self._before.t_total_us) / 1e6

    def point(self, block: int, weights_bytes: int) -> Point:
        """The figures of the blocks so far."""
        speeds = [self.n_seq * block / s for s in self.seconds]
        stats = self.context.stats()
        return Point(
            depth=self.depth,
            n_seq=self.n_seq,
            n_cells=stats.n_cells,
            kv_bytes=stats.kv_bytes + stats.kv_bytes_other,
            memory_bytes=weights_bytes + self._memory_bytes if self._memory_bytes else 0,
            prefill_tps=round(self.prefill_tps, 2),
            decode_tps=round(statistics.median(speeds), 2),
            decode_tps_min=round(min(speeds), 2),
            decode_tps_max=round(max(speeds), 2),
        )
