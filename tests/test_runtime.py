"""The Python face on real models: past the cache and fluent, saved, restored, rewound, and what forgetting costs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from engine import Engine
from packed import U32, Packed
from texts import prose

from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig
from triattn_local.engine.cache_layout import cache_layout
from triattn_local.engine.runtime import Done, Prefill, Runtime, Token
from triattn_local.engine.snapshot import rows_beside
from triattn_local.errors import StateError, StatsError, UsageError
from triattn_local.evaluation.texts import read_text
from triattn_local.model.model_info import read_model_info

pytestmark = pytest.mark.slow


def pad256(n: int) -> int:
    return -(-n // 256) * 256


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_long_prompt_and_a_long_answer_in_a_small_cache(smollm2_triattn: Path) -> None:
    """5,000 tokens read and 600 written with 512 kept: cells bounded, memory flat, rounds counted, text fluent."""
    eviction = EvictionConfig(budget_tokens=512, cold="off")  # else what is evicted stays in memory
    config = RuntimeConfig(n_ctx=8192)
    # at 0.7 this small model is apt to go in circles, which one depends on the seed
    sampling = SamplingConfig(temperature=1.0, repeat_penalty=1.1, seed=1)
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        prompt = rt.tokenize(prose(4600))[:5000]
        assert len(prompt) == 5000
        text, resident, ids = "", [], []
        for event in rt.generate(prompt, max_tokens=600, sampling=sampling, ignore_eos=True):
            if isinstance(event, Token):
                text += event.text
                ids.append(event.id)
                if event.n_generated % 100 == 0:
                    resident.append(resident_bytes())
            elif isinstance(event, Done):
                assert (event.reason, event.n_prompt, event.n_generated) == ("length", 5000, 600)
            else:
                assert isinstance(event, Prefill)
        stats = rt.stats()
    assert stats.n_cells <= pad256(512 + 128 + config.n_batch)
    assert stats.n_cells_used <= 512 + 128
    assert stats.n_past == 5599
    assert stats.n_evictions >= 9 + 4
    assert stats.tokens_evicted == 5599 - stats.n_cells_used
    assert stats.kv_bytes_full >= 6 * stats.kv_bytes
    # n_past grew by 500 tokens between the first and the last of these: full attention would hold 22 MiB more
    assert resident[-1] - resident[0] < 4 << 20
    words = text.split()
    assert len(words) > 250
    assert sum(w.strip(".,!?;:\"'()").isascii() for w in words) > 0.95 * len(words)
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(set(trigrams)) > 0.6 * len(trigrams), "it does not turn in circles"


def stream_nll(model: Path, eviction: EvictionConfig | None, n_tokens: int, budget: int) -> tuple[float, int, int]:
    """NLL of the tokens beyond the budget, rounds, cells: a held-out text, streamed in batches of 128."""
    with Engine(model, eviction, n_ctx=4096, n_batch=128) as engine:
        tokens = engine.tokenize(read_text("novel"))[: n_tokens + 1]
        assert len(tokens) == n_tokens + 1
        total, count = 0.0, 0
        for i in range(0, n_tokens, 128):
            logits = engine.decode(tokens[i : i + 128], all_logits=True).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            target = np.array(tokens[i + 1 : i + 129])
            nll = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(target)), target]
            if i >= budget + 128:
                total, count = total + float(nll.sum()), count + len(nll)
        stats = engine.stats()
        return total / count, stats.n_rounds, stats.n_cells


def test_forgetting_costs_less_with_the_centres_than_at_random(qwen25_triattn: Path) -> None:
    """Rounds that happened, cells that are bounded, and NLL beside full attention, in one run."""
    budget, n_tokens = 256, 1280
    full, _, full_cells = stream_nll(qwen25_triattn, None, n_tokens, budget)
    results = {}
    for policy in ("triattention", "streaming", "random"):
        eviction = EvictionConfig(budget_tokens=budget, policy=policy)
        nll, n_rounds, n_cells = stream_nll(qwen25_triattn, eviction, n_tokens, budget)
        assert n_rounds >= 7
        assert n_cells == pad256(budget + 128 + 128) < full_cells
        results[policy] = nll - full
        print(f"{policy}: {results[policy]:+.4f} nats, {n_rounds} rounds, {n_cells} of {full_cells} cells")
    assert results["triattention"] < results["streaming"]
    assert results["triattention"] < results["random"]
    assert results["triattention"] < 0.1


def test_needle_inside_the_budget_is_found(qwen25_triattn: Path) -> None:
    """A fact said in the window is used, with rounds on the way; one that full attention finds too."""
    question = "The secret number of the lighthouse is 4817. What is the secret number of the lighthouse? Answer:"
    for eviction in (None, EvictionConfig(budget_tokens=512)):
        with Runtime.load(qwen25_triattn, RuntimeConfig(n_ctx=4096, n_batch=128), eviction) as rt:
            prompt = rt.tokenize(prose(900) + "\n" + question)
            text = "".join(e.text for e in rt.generate(prompt, max_tokens=10) if isinstance(e, Token))
            assert (rt.stats().n_evictions > 2) == (eviction is not None)
        assert "4817" in text


_CONTINUE = """
import json, sys
from pathlib import Path
from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig
from triattn_local.engine.runtime import Runtime, Token
model, saved, n = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
with Runtime.load(model, RuntimeConfig(n_ctx=4096), EvictionConfig(budget_tokens=256, window=32, cold="off")) as rt:
    rt.load_state(saved)
    sampling = SamplingConfig(temperature=0.8, seed=7, repeat_penalty=1.1)
    ids = [e.id for e in rt.generate(None, max_tokens=n, sampling=sampling, ignore_eos=True) if isinstance(e, Token)]
print(json.dumps(ids))
"""


def test_a_saved_session_goes_on_in_a_new_process(smollm2_triattn: Path, tmp_path: Path) -> None:
    """With a temperature too: the draw of a position depends on the seed and the position."""
    sampling = SamplingConfig(temperature=0.8, seed=7, repeat_penalty=1.1)
    saved = tmp_path / "session.tri"
    with Runtime.load(
        smollm2_triattn, RuntimeConfig(n_ctx=4096), EvictionConfig(budget_tokens=256, window=32, cold="off")
    ) as rt:

        def ids(prompt: list[int] | None, n: int) -> list[int]:
            events = rt.generate(prompt, max_tokens=n, sampling=sampling, ignore_eos=True)
            return [e.id for e in events if isinstance(e, Token)]

        prompt = rt.tokenize(prose(600))
        whole = ids(prompt, 160)
        rt.reset()
        first = ids(prompt, 80)
        assert first == whole[:80], "same seed, same text"
        assert rt.stats().n_evictions > 4
        size = rt.save(saved)
        assert size < saved.stat().st_size < size + 20_000
        rest = ids(None, 80)
        assert first + rest == whole
    done = subprocess.run(
        [sys.executable, "-c", _CONTINUE, str(smollm2_triattn), str(saved), "80"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert json.loads(done.stdout) == rest


def test_damaged_or_foreign_sessions_are_refused_and_change_nothing(smollm2_triattn: Path, tmp_path: Path) -> None:
    saved = tmp_path / "session.tri"
    eviction = EvictionConfig(budget_tokens=256, window=32)
    with Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=2048), eviction) as rt:
        prompt = rt.tokenize(prose(300))
        list(rt.generate(prompt, max_tokens=4))
        rt.save(saved)
        data = saved.read_bytes()
        for damage in (data[:100], data[:-1], data[:-5] + b"\0" * 5, b"GGUF" + data[4:], b""):
            (tmp_path / "bad.tri").write_bytes(damage)
            with pytest.raises(StateError):
                rt.load_state(tmp_path / "bad.tri")
        with pytest.raises(StateError, match="cannot be read"):
            rt.load_state(tmp_path / "none.tri")
        assert rt.stats().n_past == len(prompt) + 3
        rt.load_state(saved)
    with (
        Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=2048), None) as rt,
        pytest.raises(StateError, match="evicts"),
    ):
        rt.load_state(saved)


def test_a_saved_session_has_its_evicted_rows_beside_it(smollm2_triattn: Path, tmp_path: Path) -> None:
    config, eviction = RuntimeConfig(n_ctx=2048), EvictionConfig(budget_tokens=256, window=32, cold="auto")
    path = tmp_path / "a.tri"
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        list(rt.generate(rt.tokenize(prose(60)), max_tokens=2))
        rt.save(path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.tri"], "nothing was evicted yet"
        tokens = rt.tokenize(prose(900))
        list(rt.generate(tokens, max_tokens=2))
        rt.save(path)
        [rows] = rows_beside(path)
        n_bytes = rows.stat().st_size
        list(rt.generate([*rt.tokens, *tokens[:40]], max_tokens=2))
        rt.save(path)
        assert rows_beside(path) == [rows], "the same conversation adds to it"
        assert rows.stat().st_size == n_bytes, "within the slab that was begun"
        tokens = list(rt.tokens)
        there = [e.id for e in rt.generate(None, max_tokens=60) if isinstance(e, Token)]
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        rt.load_state(path)
        assert rt.stats().pos_whole == 0
        assert [e.id for e in rt.generate(None, max_tokens=60) if isinstance(e, Token)] == there
        done = list(rt.generate(tokens[:400], max_tokens=2))[-1]
        assert isinstance(done, Done)
        assert done.n_cached == 399
        list(rt.generate(rt.tokenize("Another text. " + prose(900)), max_tokens=2))
        rt.save(path)
        assert len(rows_beside(path)) == 1
        rows = rows_beside(path)[0]
    with Runtime.load(smollm2_triattn, config, replace(eviction, cold="off")) as rt:
        rt.load_state(path)  # goes on with what its heads hold
        assert rt.stats().pos_whole > 0
    with Runtime.load(smollm2_triattn, config, eviction) as one, Runtime.load(smollm2_triattn, config, eviction) as two:
        one.load_state(path)
        with pytest.raises(StateError, match="another program has it open"):
            two.load_state(path)
    rows.rename(tmp_path / "elsewhere")
    with (
        Runtime.load(smollm2_triattn, config, eviction) as rt,
        pytest.raises(StateError, match="is not there; with --cold off"),
    ):
        rt.load_state(path)


@pytest.mark.parametrize("eviction", [None, EvictionConfig(budget_tokens=256, window=32)])
def test_rows_that_are_rotated_are_not_read_as_others(
    smollm2_triattn: Path, eviction: EvictionConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RuntimeConfig(n_ctx=1024, cache_type_k="q8_0", cache_type_v="q8_0")
    monkeypatch.delenv("LLAMA_ATTN_ROT_DISABLE", raising=False)
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        list(rt.generate(rt.tokenize(prose(100)), max_tokens=4))
        saved = rt.snapshot()
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")  # of no consequence any more
        rt.restore(saved)
    with Runtime.load(smollm2_triattn, config, eviction) as rt:
        with pytest.raises(StateError, match="rotated = True, this context has False"):
            rt.restore(saved)
        plain = rt.snapshot()
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "0")
    with (
        Runtime.load(smollm2_triattn, config, eviction) as rt,
        pytest.raises(StateError, match="rotated = False, this context has True"),
    ):
        rt.restore(plain)


def test_frequencies_of_long_contexts_are_part_of_the_layout(tmp_path: Path) -> None:
    name = "rope_factors_long.weight"
    model = Packed().set("ARCH.rope.scaling.original_context_length", U32, 64)
    plain = read_model_info(model.write(tmp_path / "plain.gguf"))
    model.tensors[name] = (0, (2,), np.ones(2, "<f4").tobytes())
    long = read_model_info(model.write(tmp_path / "long.gguf"))
    short_ctx, long_ctx = RuntimeConfig(n_ctx=64, n_batch=64), RuntimeConfig(n_ctx=512)
    assert cache_layout(plain, short_ctx) == cache_layout(plain, long_ctx)
    assert cache_layout(long, short_ctx)["rope_factors"] == "short"
    assert cache_layout(long, long_ctx)["rope_factors"] == "long"
    assert "rotated" not in cache_layout(long, long_ctx)  # f16 rows never are


@pytest.mark.parametrize("cold", ["off", "auto"])
def test_what_a_prompt_shares_is_not_read_again(cold: Literal["off", "auto"], smollm2_triattn: Path) -> None:
    eviction = EvictionConfig(budget_tokens=256, window=64, cold=cold)
    with Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=2048), eviction) as rt:
        prompt = rt.tokenize(prose(500))[:500]

        def cached(tokens: list[int]) -> int:
            events = list(rt.generate(tokens, max_tokens=2))
            done = events[-1]
            assert isinstance(done, Done)
            return done.n_cached

        assert cached(prompt) == 0
        assert (rt.stats().pos_whole > 0) == (cold == "off")
        assert cached([*prompt, 5, 6, 7]) == 500, "appended"
        assert cached([*prompt[:-3], 9, 9]) == 497, "the window can be rewound"
        assert cached(prompt[:100]) == (0 if cold == "off" else 99), "what was evicted for good must be read anew"
        assert rt.stats().n_past >= 100


def test_stop_texts_and_cancel(smollm2_triattn: Path) -> None:
    import threading

    with Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=1024, n_batch=64), None) as rt:
        prompt = rt.tokenize("One two three four five six seven")
        events = list(rt.generate(prompt, max_tokens=30))
        text = "".join(e.text for e in events if isinstance(e, Token))
        word = text.split()[2]
        stopped = list(rt.generate(prompt, max_tokens=30, stop=[word]))
        assert "".join(e.text for e in stopped if isinstance(e, Token)) == text[: text.index(word)]
        assert isinstance(stopped[-1], Done)
        assert stopped[-1].reason == "stop"
        cancel = threading.Event()
        cancel.set()
        (done,) = rt.generate(rt.tokenize(prose(200)), cancel=cancel)
        assert isinstance(done, Done)
        assert (done.reason, done.n_generated) == ("cancelled", 0)


def test_bad_input(smollm2: Path, smollm2_triattn: Path) -> None:
    with pytest.raises(StatsError, match="no TriAttention statistics"):
        Runtime.load(smollm2, RuntimeConfig(), EvictionConfig())
    with pytest.raises(UsageError, match="batch of 512"):
        Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=256), EvictionConfig())
    with Runtime.load(smollm2_triattn, RuntimeConfig(n_ctx=512), None) as rt:
        with pytest.raises(UsageError, match="empty"):
            list(rt.generate([]))
        with pytest.raises(UsageError, match="exceeds the context"):
            list(rt.generate([5] * 600))
