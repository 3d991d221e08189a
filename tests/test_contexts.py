"""One place makes contexts: the same settings take the same bytes, and a cut that a window cannot take is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest
from served import Served
from talk import Talk
from texts import prose

from triattn_local.benchmark.contestant import Contestant
from triattn_local.calib_tools.engine_runtime import RuntimeEngine
from triattn_local.config import EvictionConfig, RopeScaling, RuntimeConfig, kv_overrides
from triattn_local.engine import native
from triattn_local.engine.context_options import ContextOptions
from triattn_local.engine.contexts import Model
from triattn_local.engine.devices import devices
from triattn_local.engine.runtime import Done, Runtime
from triattn_local.errors import StateError
from triattn_local.evaluation.runner import _Watched
from triattn_local.planning import MemoryProbe, plan_run
from triattn_local.planning.accounting import Shape
from triattn_local.settings import Settings

N_CTX, BUDGET, N_BATCH = 32768, 512, 256
GIVEN = {"ctx": N_CTX, "budget": BUDGET, "batch": N_BATCH, "policy": "streaming", "cache_type_k": "f16"}
GIVEN["rope_scaling"] = "none"  # SmolLM2 was trained for less, and how much room this takes is all that is asked
FLAGS = ["--ctx", str(N_CTX), "--budget", str(BUDGET), "--batch", str(N_BATCH), "--policy", "streaming"]
FLAGS += ["--rope-scaling", "none"]
TYPES = ["--cache-type-k", "f16", "--cache-type-v", "f16"]

EVICTION = EvictionConfig(budget_tokens=BUDGET, policy="streaming")
CONFIG = RuntimeConfig(n_ctx=N_CTX, n_batch=N_BATCH, n_ubatch=N_BATCH, n_threads=1)


def kv_bytes(stats: native.EngineStats) -> int:
    return stats.kv_bytes + stats.kv_bytes_other


def planned(path: Path, budget: int | None) -> int:
    options = {"n_ctx": N_CTX, "n_batch": N_BATCH, "n_ubatch": N_BATCH, "type_k": "f16", "type_v": "f16"}
    with MemoryProbe(path) as probe:
        return probe.context(Shape(**options, budget=budget, window=EVICTION.window)).kv  # type: ignore[arg-type]


def of_run(path: Path) -> int:
    program = str(Path(sys.executable).parent / "triattn-local")
    command = [program, "run", str(path), "Hello", "-n", "1", "--json", *FLAGS, *TYPES]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(json.loads(out.splitlines()[-1])["kv_bytes"])


def of_chat(path: Path) -> int:
    settings = Settings.load({**GIVEN, "cache_type_v": "f16"}, environ={})
    plan = plan_run(path, settings)
    with Runtime.load(path, plan.config, plan.eviction) as rt:
        return rt.stats().kv_bytes


def of_bench(path: Path) -> int:
    cpu = next(device for device in devices() if device.kind == "cpu")
    with Model(path, CONFIG) as model, Contestant(model, EVICTION, N_CTX - 8, 1, 8, cpu) as contestant:
        return kv_bytes(contestant.context.stats())


def of_eval(path: Path) -> int:
    with Model(path, CONFIG) as model, _Watched(model, EVICTION, ContextOptions.of(CONFIG)) as context:
        return kv_bytes(context.stats())


def of_llama(path: Path) -> int:
    llama = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_batch=N_BATCH, n_ubatch=N_BATCH, kv_overrides=kv_overrides(EVICTION), verbose=False
    )
    stats, evicts = native.get_stats(llama.ctx)
    llama.close()
    assert evicts
    return kv_bytes(stats)


EVICTING = {"run": of_run, "chat": of_chat, "bench": of_bench, "eval": of_eval, "Llama": of_llama}


@pytest.fixture(params=["smollm2", "gemma3", "qwen25"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(str(request.param))  # type: ignore[no-any-return]


def test_the_same_settings_take_the_same_bytes(model: Path) -> None:
    wanted = planned(model, BUDGET)
    assert {name: of(model) for name, of in EVICTING.items()} == dict.fromkeys(EVICTING, wanted)


def test_the_server_takes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    with Served(model, tmp_path / "log", *FLAGS, *TYPES) as served:
        lines = [line for line in served.get("/metrics").splitlines() if "kv_bytes " in line and line[0] != "#"]
    assert [int(float(line.split()[1])) for line in lines] == [planned(model, BUDGET)]


def test_full_attention_takes_the_same_bytes_where_it_is_run_and_where_it_is_watched(model: Path) -> None:
    wanted = planned(model, None)
    with Runtime.load(model, CONFIG) as rt:
        assert rt.stats().kv_bytes == wanted
    with RuntimeEngine(model, n_ctx=N_CTX, n_batch=N_BATCH, n_threads=1) as engine:
        # without eviction the library tells what a state may take: cells and their bytes
        assert kv_bytes(engine.context.stats()) == wanted


def test_every_option_has_its_place_in_the_library_and_on_the_command_line() -> None:
    options = ContextOptions(
        n_ctx=1000,
        n_batch=64,
        n_ubatch=128,
        n_seq_max=3,
        type_k="q8_0",
        flash_attn=False,
        rope_scaling=RopeScaling("yarn", 4.0, 32768),
    )
    params = llama_cpp.llama_context_default_params()
    fields = options.c_fields()
    assert fields.keys() <= {name for name, *_ in params._fields_}, "ctypes takes any name in silence"
    assert (fields["n_ctx"], fields["n_ubatch"], fields["swa_full"]) == (3000, 64, False)
    flags = options.server_flags()
    assert (fields["rope_scaling_type"], fields["rope_freq_scale"], fields["yarn_orig_ctx"]) == (2, 0.25, 32768)
    assert flags["--ctx-size"] == "3000"
    assert (flags["--rope-scaling"], flags["--rope-scale"], flags["--yarn-orig-ctx"]) == ("yarn", "4", "32768")
    assert flags["--ubatch-size"] == "64"
    assert flags["--no-kv-unified"] is None
    # all fields of the library's but swa_full, which llama-server has off
    assert len(flags) == len(fields) - 1


# ---------------------------------------------------------------------- cuts


@pytest.fixture(scope="module")
def tokens(gemma3: Path) -> list[int]:
    with Model(gemma3, vocab_only=True) as model:
        return model.vocabulary.tokenize(prose(1600))[:1100]


@pytest.fixture(params=[None, EvictionConfig(budget_tokens=700, window=600, n_keep=4, policy="streaming")])
def windowed(request: pytest.FixtureRequest, gemma3: Path) -> Iterator[Runtime]:
    config = RuntimeConfig(n_ctx=4096, n_batch=128, n_ubatch=128, n_threads=1)
    with Runtime.load(gemma3, config, request.param) as rt:
        yield rt


def answer(rt: Runtime, prompt: list[int]) -> tuple[list[int], int]:
    """Twelve tokens, and how many of the prompt were in the cache."""
    done = next(event for event in rt.generate(prompt, max_tokens=12, ignore_eos=True) if isinstance(event, Done))
    return rt.tokens[len(prompt) :], done.n_cached


def test_a_cut_behind_which_the_window_is_gone_is_read_anew(windowed: Runtime, tokens: list[int]) -> None:
    rt = windowed
    assert rt.forgets
    other = tokens[100:110]
    answer(rt, tokens)
    first = rt.stats().pos_whole
    assert 0 < first < 1100
    near, far = tokens[: first + 5], tokens[: first - 1]
    again, n_cached = answer(rt, [*near, *other])
    assert n_cached == len(near), "the window is whole behind it"
    rt.reset()
    assert again == answer(rt, [*near, *other])[0], "as if it was read from the start"

    rt.reset()
    answer(rt, tokens)
    with pytest.raises(StateError, match="cannot be cut"):
        rt.context.rewind(len(far))
    assert rt.stats().n_past == 1111, "refused untouched"
    again, n_cached = answer(rt, [*far, *other])
    assert n_cached == 0
    rt.reset()
    assert again == answer(rt, [*far, *other])[0]


def test_the_library_refuses_it_too_so_that_llama_reads_anew(gemma3: Path, tokens: list[int]) -> None:
    """Llama() cuts the cache itself, and asks nobody but the library whether that can be."""
    eviction = EvictionConfig(budget_tokens=1000, window=900, n_keep=4, policy="streaming")

    def load() -> llama_cpp.Llama:
        return llama_cpp.Llama(
            str(gemma3),
            n_ctx=4096,
            n_batch=128,
            n_ubatch=128,
            n_threads=1,
            n_threads_batch=1,
            kv_overrides=kv_overrides(eviction),
            verbose=False,
        )

    def draw(llama: llama_cpp.Llama, prompt: list[int]) -> list[int]:
        drawn = llama.generate(prompt, temp=0.0)
        return [next(drawn) for _ in range(12)]

    llama = load()
    draw(llama, tokens)
    short = [*tokens[:500], *tokens[100:110]]
    again = draw(llama, short)
    llama.close()
    fresh = load()
    assert again == draw(fresh, short)
    fresh.close()


def test_a_state_of_a_window_goes_back_by_one_token(windowed: Runtime, tokens: list[int]) -> None:
    rt = windowed
    wanted = answer(rt, tokens)[0]
    rt.reset()
    list(rt.generate(tokens, max_tokens=0))
    snapshot = rt.snapshot()
    assert snapshot.pos_whole == len(tokens) - 1
    rt.reset()
    rt.restore(snapshot)
    assert rt.stats().pos_whole == snapshot.pos_whole
    assert answer(rt, tokens) == (wanted, len(tokens) - 1)


def test_answering_anew_and_editing_on_a_windowed_model(windowed: Runtime, tmp_path: Path) -> None:
    talk = Talk(windowed, tmp_path)
    text = prose(1400).split()
    for turn in range(3):
        talk.ask(" ".join(text[turn * 330 : (turn + 1) * 330]), max_tokens=12)
        assert talk.ready.n_again == 0
    first = talk.path.pop().content
    talk.answer(max_tokens=12)
    assert talk.ready.n_again == 0
    assert talk.n_read == 1
    assert talk.path[-1].content == first, "the same question, the same answer"
    talk.path = talk.path[:3]
    talk.path.pop()  # the second question is asked in other words
    talk.ask("What is this about?", max_tokens=12)
    assert talk.ready.n_again == 0, "a snapshot of the first answer is there"
    talk.snapshots.close()


def test_what_an_aborted_batch_made_a_window_forget_is_read_anew(gemma3: Path, tokens: list[int]) -> None:
    """Micro-batches of an aborted batch have taken the cells of tokens that the window before it needs."""
    with Model(gemma3, RuntimeConfig(n_ctx=4096, n_batch=1024, n_ubatch=64, n_threads=1)) as model:
        context = model.context(None)
        context.prefill(tokens[:400])
        # as an abort in the last micro-batch leaves it
        context._decode([(token, 400 + i, 0, False) for i, token in enumerate(tokens[400:1050])], tokens[400:1050])
        del context.tokens[400:]
        assert context.pos_cut > 400
        context._after_abort(400)
        assert context.n_past == 0
        assert llama_cpp.llama_memory_seq_pos_max(context._memory, 0) == -1


def test_full_attention_is_timed_at_its_depth_again_however_long_a_block_is(gemma3: Path, tokens: list[int]) -> None:
    """A block that is longer than the micro-batch which a window's cache has room for."""
    cpu = next(device for device in devices() if device.kind == "cpu")
    config = RuntimeConfig(n_batch=64, n_ubatch=64, n_threads=1)
    n_block = 300  # 512 + 64 tokens are 768 cells: 256 to go back by
    with Model(gemma3, config) as model, Contestant(model, None, 600, 1, n_block, cpu) as contestant:
        contestant.context.prefill(tokens[:600])
        contestant.warm_up(tokens[600 : 600 + n_block])
        assert contestant.context.n_past == 600
        logits = contestant.context.decode(tokens[600:601], n_logits=1)[0].copy()
        contestant.context.rewind(0)
        contestant.context.prefill(tokens[:600])
        wanted = contestant.context.decode(tokens[600:601], n_logits=1)[0]
        assert abs(logits - wanted).max() < 1e-2 * abs(wanted).max()
