"""A stop amid a batch: heard at once, and the cache is as if the batch had never begun."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from engine import Engine
from machine import slowness
from texts import prose

from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.runtime import Done, Prefill, Runtime, Token
from triattn_local.support.stop import Stop

pytestmark = pytest.mark.slow


def test_a_stop_is_an_event_with_a_byte() -> None:
    stop = Stop()
    assert not stop.is_set()
    assert not stop.flag.value
    stop.set()
    assert stop.is_set()
    assert stop.wait(0)
    assert stop.flag.value
    stop.clear()
    assert not stop.is_set()
    assert not stop.flag.value


class Aborting:
    """Has a context give up after so many operations."""

    def __init__(self, engine: Engine) -> None:
        self._ctx = engine.ctx
        self._n_left = 0

        def call(_: object) -> bool:
            self._n_left -= 1
            return self._n_left <= 0

        self._call = llama_cpp.ggml_abort_callback(call)

    def after(self, n: int) -> None:
        self._n_left = n
        llama_cpp.llama_set_abort_callback(self._ctx, self._call, None)

    def never(self) -> None:
        llama_cpp.llama_set_abort_callback(self._ctx, llama_cpp.ggml_abort_callback(0), None)


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_batches_that_are_aborted_and_read_again(name: str, request: pytest.FixtureRequest) -> None:
    """Rounds due at their beginning are finished; read again, logits and what heads hold are the same, bit for bit."""
    path: Path = request.getfixturevalue(f"{name}_triattn")
    eviction = EvictionConfig(budget_tokens=256, window=32)
    sizes = {"n_ctx": 2048, "n_batch": 128, "n_ubatch": 64}
    with Engine(path, eviction, **sizes) as plain, Engine(path, eviction, **sizes) as engine:  # type: ignore[arg-type]
        tokens = plain.tokenize(prose(900))[:768]
        assert len(tokens) == 768
        aborting = Aborting(engine)
        remained: set[int] = set()
        for i in range(0, len(tokens), 128):
            batch = tokens[i : i + 128]
            want = plain.decode(batch)
            for n in (1, 250, 700):
                aborting.after(n)
                status, _ = engine.try_decode(batch)
                assert status == 2
                remained.add(engine.next_pos() - i)
                assert engine.rm(i)
                assert engine.next_pos() == i
            aborting.never()
            assert np.array_equal(engine.decode(batch), want)
        assert remained == {0, 64}, "amid the first micro-batch, and amid the second"
        assert engine.stats().n_rounds == plain.stats().n_rounds >= 3
        for il in native.get_layers(plain.ctx):
            for one, other in zip(native.get_kept(plain.ctx, il, 0), native.get_kept(engine.ctx, il, 0), strict=True):
                assert np.array_equal(one, other)
        want_tokens, _ = plain.greedy(want, 8)
        assert engine.greedy(want, 8)[0] == want_tokens


@pytest.mark.parametrize("budget", [512, None], ids=["evicting", "full"])
def test_a_stop_is_heard_amid_a_batch_and_the_answer_is_the_same(budget: int | None, smollm2_triattn: Path) -> None:
    config = RuntimeConfig(n_ctx=2048, n_batch=256, n_ubatch=256)
    eviction = EvictionConfig(budget_tokens=budget) if budget else None
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        prompt = rt.tokenize(prose(1100))[:1024]
        assert len(prompt) == 4 * config.n_batch
        want = [event.id for event in rt.generate(prompt, max_tokens=12) if isinstance(event, Token)]
        rt.reset()

        stop, read_s, set_s = Stop(), [0.0], 0.0

        def press() -> None:
            nonlocal set_s
            set_s = time.perf_counter()
            stop.set()

        for event in rt.generate(prompt, max_tokens=12, cancel=stop):
            if isinstance(event, Prefill):
                read_s.append(event.elapsed_s)
                if len(read_s) == 4:
                    threading.Timer(0.3 * (read_s[3] - read_s[2]), press).start()
        waited_s = time.perf_counter() - set_s
        assert isinstance(event, Done)
        assert (event.reason, event.n_generated) == ("cancelled", 0)
        assert len(read_s) == 4, "the fourth batch was not finished"
        assert rt.stats().n_past == 3 * config.n_batch
        assert waited_s < 0.2 * slowness()

        events = list(rt.generate(prompt, max_tokens=12, cancel=Stop()))
        assert [event.id for event in events if isinstance(event, Token)] == want
        assert isinstance(events[-1], Done)
        assert events[-1].n_cached == 3 * config.n_batch, "nothing of it was lost"
