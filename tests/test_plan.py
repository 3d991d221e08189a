"""Plans: their numbers are what llama.cpp then allocates, their choices fit, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import typer.main
from allocation import allocate
from tiny_models import write_tiny

from triattn_local import planning
from triattn_local.cli import app, run_app
from triattn_local.config import RopeScaling
from triattn_local.errors import DoesNotFitError, ModelNotFoundError, StatsError, UsageError
from triattn_local.geometry import GEOMETRIES, find_geometry, write_geometry, write_outline
from triattn_local.model.gguf_file import read_gguf
from triattn_local.model.model_info import read_model_info
from triattn_local.planning import (
    Choice,
    Machine,
    MemoryProbe,
    Planner,
    PlanRequest,
    choice_text,
    open_header,
    plan_run,
)
from triattn_local.planning.accounting import HOST, ContextBytes, Shape, WeightBytes
from triattn_local.planning.machine import GIB, Memory, parse_cards
from triattn_local.planning.placement import Load, kv_by_layer, place, round_bytes
from triattn_local.settings import Settings
from triattn_local.support.formats import parse_size

F16 = Shape(n_ctx=8192, n_batch=512, n_ubatch=512, type_k="f16", type_v="f16", budget=1024, window=128)


def with_card(*vram: int, ram: int = 16 * GIB) -> Machine:
    cards = tuple(Memory(f"GPU {i}", size, GIB) for i, size in enumerate(vram))
    return Machine(cards, Memory("RAM", ram, GIB // 2), is_here=False)


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 32B without its weights."""
    return write_outline(find_geometry("qwen3-32b"), tmp_path_factory.mktemp("outline") / "qwen3-32b.gguf")


@pytest.fixture(scope="module")
def probe(outline: Path) -> Iterator[MemoryProbe]:
    with MemoryProbe(outline) as probe:
        yield probe


def summed(path: Path, shape: Shape) -> tuple[ContextBytes, int]:
    """The plan's numbers: the context, and everything together."""
    with MemoryProbe(path) as probe:
        context = probe.context(shape)
        assert sum(kv_by_layer(probe.info, shape, context)) == context.kv
        compute = max(context.compute_most, round_bytes(probe.info, shape))
        return context, probe.weights.total + context.kv + compute


# what is allocated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3", "qwen25"])
@pytest.mark.parametrize(
    "changes",
    [
        {"budget": None, "n_ctx": 4096},
        {},
        {"type_k": "q8_0", "type_v": "q4_0"},
        {"budget": 512, "n_seq_max": 4},
        {"budget": 512, "n_seq_max": 4, "kv_unified": True},
        {"flash_attn": False},
    ],
    ids=["full", "budget", "quantised", "streams", "unified", "no-flash"],
)
def test_real_models_take_what_the_plan_says(
    name: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    path, shape = request.getfixturevalue(name), dataclasses.replace(F16, **changes)
    context, total = summed(path, shape)
    there = allocate(path, shape)
    assert (context.n_cells, context.kv) == (there.n_cells, there.kv)
    assert total == pytest.approx(there.total, rel=0.03)


@pytest.mark.slow
def test_rounds_stay_within_the_plan(tmp_path: Path) -> None:
    """With a small vocabulary a round needs more than the logits do, and the compute buffer grows."""
    path = write_geometry(find_geometry("qwen3-8b").cut(2, 512), tmp_path / "m.gguf")
    shape = dataclasses.replace(F16, budget=2048, n_batch=64, n_ubatch=64)
    _, total = summed(path, shape)
    there = allocate(path, shape, tokens=[300 + i % 200 for i in range(2300)], policy="triattention")
    path.unlink()
    assert there.n_rounds > 0
    assert there.compute_later > there.compute
    assert there.total <= total
    assert total == pytest.approx(there.total, rel=0.03)


@pytest.mark.slow
def test_a_32b_in_few_layers_takes_what_the_plan_says(tmp_path: Path) -> None:
    """Issue 7's promise on four of its layers: at 131,072 tokens, KV bytes to the byte, the sum within 3 %."""
    path = write_geometry(find_geometry("qwen3-32b").cut(4, 1024), tmp_path / "m.gguf")
    for budget in (4096, None):
        shape = dataclasses.replace(F16, n_ctx=131072, budget=budget)
        context, total = summed(path, shape)
        there = allocate(path, shape, mmap=True)
        assert (context.n_cells, context.kv) == (there.n_cells, there.kv)
        assert total == pytest.approx(there.total, rel=0.03)
    path.unlink()


@pytest.mark.parametrize("name", ["qwen3.5-27b", "qwen3.8-27b", "qwen3.5-35b-a3b"])
def test_a_hybrid_takes_its_keys_and_its_states(name: str, tmp_path: Path) -> None:
    """Attention layers cache keys and values, all others a state for each sequence, however long it is."""
    geometry = find_geometry(name).cut(n_vocab=4096)  # which caches do not see
    net = geometry.delta_net
    assert net is not None
    n_full = len(geometry.full_layers)
    per_token = 2 * 2 * geometry.n_head_kv * geometry.head_dim  # K and V in two bytes
    with MemoryProbe(write_outline(geometry, tmp_path / "m.gguf")) as probe:
        for budget, n_ctx, n_seq_max in ((4096, 131072, 1), (None, 32768, 1), (4096, 131072, 2)):
            shape = dataclasses.replace(F16, n_ctx=n_ctx, budget=budget, n_seq_max=n_seq_max)
            context = probe.context(shape)
            states = net.state_bytes * n_seq_max
            assert context.kv == n_full * context.n_cells * per_token + (geometry.n_layer - n_full) * states
            assert all(
                n_bytes == (context.n_cells * per_token if il in geometry.full_layers else states)
                for il, n_bytes in enumerate(kv_by_layer(probe.info, shape, context))
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3.5-27b", "qwen3.5-35b-a3b"])
def test_a_hybrid_in_few_layers_takes_what_the_plan_says(name: str, tmp_path: Path) -> None:
    """Four of its layers at 131,072 tokens: caches and states to the byte, the sum within 3 %."""
    big = find_geometry(name)
    experts = big.experts and dataclasses.replace(big.experts, n_expert=8, n_used=2)
    path = write_geometry(dataclasses.replace(big, experts=experts).cut(4, 4096), tmp_path / "m.gguf")
    for budget in (4096, None):
        shape = dataclasses.replace(F16, n_ctx=131072, budget=budget)
        context, total = summed(path, shape)
        there = allocate(path, shape, mmap=True)
        assert (context.n_cells, context.kv) == (there.n_cells, there.kv)
        assert total == pytest.approx(there.total, rel=0.03)
    path.unlink()


def test_a_latent_takes_one_row_a_layer(tmp_path: Path) -> None:
    """Its values are a part of its keys."""
    geometry = find_geometry("glm-4.7-flash").cut(n_vocab=4096)
    path = write_outline(geometry, tmp_path / "m.gguf")
    with MemoryProbe(path) as probe:
        assert probe.context(dataclasses.replace(F16, n_ctx=32768, budget=None)).kv == 32768 * 47 * 576 * 2
        assert probe.info.kv_bytes_per_token() == 47 * 576 * 2
        # nothing of it evicts: planned with full attention, and the reason is told
        planner = Planner(probe, with_card(24 * GIB), PlanRequest())
        told = planning.report(planner, planner.choose())
        assert told.choice.shape.budget is None
        assert ("layers", "none of 47 evicts; multi-head latent attention caches a latent vector instead of keys") in (
            told.properties()
        )
        with pytest.raises(DoesNotFitError, match="latent"):
            Planner(probe, with_card(24 * GIB), PlanRequest(budget=2048, n_ctx=32768)).choose()


def test_cells_are_budget_window_and_batch(probe: MemoryProbe) -> None:
    context = probe.context(dataclasses.replace(F16, n_ctx=131072, budget=3072))
    assert context.n_cells == 3840  # 3072 + 128 + 512 = 3712, in steps of 256
    assert context.kv == 3840 * 64 * 8 * 128 * 2 * 2
    many = probe.context(dataclasses.replace(F16, n_ctx=131072, budget=3072, n_seq_max=3, kv_unified=True))
    assert many.n_cells == 10240  # 3 x (3072 + 128) + 512


def test_weights_are_those_of_the_file(probe: MemoryProbe, outline: Path) -> None:
    weights = probe.weights
    assert weights.total == sum(tensor.n_bytes or 0 for tensor in read_gguf(outline).tensors)
    assert len(weights.layers) == 64
    assert weights.input == 151936 * 5120 // 256 * 144  # Q4_K
    assert weights.shared == 0


def test_a_tied_output_is_a_second_copy_on_a_card(smollm2: Path) -> None:
    with MemoryProbe(smollm2) as probe:
        weights = probe.weights
    assert weights.shared == weights.input > 0
    load = Load(weights, (0,) * 30, 0, 0, 0)
    on_card = place(load, with_card(8 * GIB), 31)
    assert on_card.cards[0].weights == weights.total
    assert on_card.ram.weights == weights.input
    assert place(load, with_card(), 31).ram.weights == weights.total


# what is chosen


def test_32b_on_24_gib(probe: MemoryProbe) -> None:
    """Full attention at 32k does not fit, 131,072 tokens with the chosen budget do."""
    planner = Planner(probe, with_card(24 * GIB), PlanRequest(n_ctx=131072, rope_scaling="yarn"))
    told = planning.report(planner, planner.choose())
    rows = {row.n_ctx: row for row in told.rows}
    assert not rows[32768].full.placement.fits
    assert rows[16384].full.placement.fits
    evicting = rows[131072].evicting
    assert evicting is not None
    assert evicting.placement.fits
    card = told.choice.placement.cards[0]
    assert told.choice.shape.budget == 4096
    assert told.choice.placement.n_gpu_layers == 65
    assert 3 * GIB < card.margin < 4 * GIB
    assert card.need + card.margin + card.reserve == card.total == 24 * GIB
    assert 16384 < told.largest_full_ctx < 32768
    assert told.largest_budget % 256 == 0


def test_the_largest_are_the_largest(probe: MemoryProbe) -> None:
    planner = Planner(probe, with_card(24 * GIB), PlanRequest(n_ctx=131072, rope_scaling="yarn"))
    choice = planner.choose()
    told = planning.report(planner, choice)
    for shape, largest in (
        (choice.shape, {"budget": told.largest_budget}),
        (dataclasses.replace(choice.shape, budget=None), {"n_ctx": told.largest_full_ctx}),
    ):
        [(name, value)] = largest.items()
        assert planner.choice_of(dataclasses.replace(shape, **{name: value}), 65).placement.fits
        assert not planner.choice_of(dataclasses.replace(shape, **{name: value + 256}), 65).placement.fits


@pytest.mark.parametrize(
    ("vram", "expected"),
    [
        # the best at each size: budget, type, layers
        (24, (4096, "f16", 65)),
        (20, (2048, "f16", 65)),
        (19.9, (3072, "q8_0", 65)),
        (19.6, (1024, "q8_0", 65)),
        (19.4, (2048, "f16", 63)),
        (12, (2048, "f16", 36)),
    ],
)
def test_what_is_given_up_first(probe: MemoryProbe, vram: float, expected: tuple[int, str, int]) -> None:
    """A large budget, then full-size keys, then some of the budget, then layers on the card."""
    choice = Planner(probe, with_card(int(vram * GIB), ram=32 * GIB), PlanRequest()).choose()
    assert (choice.shape.budget, choice.shape.type_k, choice.placement.n_gpu_layers) == expected
    assert choice.placement.fits


def test_several_cards_are_filled_alike(probe: MemoryProbe) -> None:
    choice = Planner(probe, with_card(12 * GIB, 16 * GIB), PlanRequest()).choose()
    one, two = choice.placement.cards
    assert choice.placement.tensor_split is not None
    assert sum(choice.placement.tensor_split) == choice.placement.n_gpu_layers == 65
    assert one.n_layers + two.n_layers == 64
    assert abs(one.need / one.total - two.need / two.total) < 0.05
    assert min(one.margin, two.margin) > 0


def test_without_a_card_main_memory_is_the_limit(probe: MemoryProbe) -> None:
    choice = Planner(probe, with_card(ram=24 * GIB), PlanRequest()).choose()
    assert choice.placement.cards == ()
    assert choice.shape.budget == 2048
    with pytest.raises(
        DoesNotFitError, match=r"needs 18\.\d GiB of RAM \(16\.0 GiB, 512 MiB of it left alone\); take a"
    ):
        Planner(probe, with_card(ram=16 * GIB), PlanRequest()).choose()


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        (PlanRequest(n_ctx=40960, budget="off", n_gpu_layers=65), "--budget 4096 with this context, or --ctx 36"),
        (
            PlanRequest(
                budget=24576,
                n_ctx=131072,
                cache_type_k="f16",
                cache_type_v="f16",
                n_gpu_layers=65,
                rope_scaling="yarn",
            ),
            "--cache-type-k q8_0",
        ),
        (PlanRequest(budget=100000, n_ctx=131072, n_gpu_layers=65, rope_scaling="yarn"), "--budget 4096"),
        (PlanRequest(n_parallel=64, n_gpu_layers=65), "--parallel 16"),
    ],
)
def test_a_refusal_names_what_fits(probe: MemoryProbe, wanted: PlanRequest, nearest: str) -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        Planner(probe, with_card(24 * GIB), wanted).choose()
    assert refusal.value.exit_code == 4
    assert f"nearest that fits: {nearest}" in str(refusal.value)


def test_a_wish_is_kept(probe: MemoryProbe) -> None:
    wanted = PlanRequest(
        n_ctx=10000, budget=700, cache_type_k="q8_0", cache_type_v="f16", n_gpu_layers=10, n_parallel=2
    )
    choice = Planner(probe, with_card(24 * GIB, ram=32 * GIB), wanted).choose()
    shape = choice.shape
    assert (shape.n_ctx, shape.budget, shape.type_k, shape.type_v, shape.n_seq_max) == (10000, 700, "q8_0", "f16", 2)
    assert choice.placement.n_gpu_layers == 10


def test_checkpoints_lie_in_main_memory(probe: MemoryProbe) -> None:
    choice = Planner(probe, with_card(24 * GIB), PlanRequest(checkpoint_bytes=GIB)).choose()
    assert choice.placement.ram.checkpoints == GIB
    assert choice.checkpoint_bytes == (4096 + 128) * 64 * 8 * 128 * 2 * 2


def test_sliding_windows_do_not_grow(gemma3: Path) -> None:
    with MemoryProbe(gemma3) as probe:
        layers = kv_by_layer(probe.info, F16, probe.context(F16))
        longer = dataclasses.replace(F16, n_ctx=32768, budget=4096)
        longer_layers = kv_by_layer(probe.info, longer, probe.context(longer))
    full = read_model_info(gemma3).full_layers
    assert full is not None
    for il in range(18):
        assert (layers[il] < longer_layers[il]) == (il in full)


# what run, chat and serve load


def test_a_run_without_flags(smollm2_triattn: Path) -> None:
    plan = plan_run(smollm2_triattn, Settings.load(environ={}), machine=with_card())
    assert plan.config.n_ctx == 8192  # what it was trained for
    assert plan.eviction is not None
    assert plan.eviction.budget_tokens == 2048
    assert plan.why is not None
    assert plan.why.startswith("context 8,192, budget 2,048, f16 cache of 6")
    assert "to spare" in plan.why


def test_what_a_person_wrote_stays(smollm2_triattn: Path) -> None:
    flags = {"ctx": 3000, "budget": 300, "window": 64, "cache_type_k": "q8_0", "batch": 128, "mode": "shared"}
    plan = plan_run(smollm2_triattn, Settings.load(flags, environ={}), machine=with_card(8 * GIB))
    config, eviction = plan.config, plan.eviction
    assert (config.n_ctx, config.cache_type_k, config.n_batch, config.n_ubatch) == (3000, "q8_0", 128, 128)
    assert eviction is not None
    assert (eviction.budget_tokens, eviction.window, eviction.mode) == (300, 64, "shared")
    assert config.n_gpu_layers == 31
    assert plan.why is not None
    environment = Settings.load(environ={"TRIATTN_CTX": "2048"})
    assert plan_run(smollm2_triattn, environment, evict=False, machine=with_card()).config.n_ctx == 2048


def test_beyond_the_trained_context_needs_scaling(outline: Path, probe: MemoryProbe) -> None:
    """Nothing beyond it is chosen or runs there unscaled, but by order; the factor is as small as it can be."""
    choices = {
        (kind, n_ctx): Planner(probe, with_card(24 * GIB), PlanRequest(n_ctx=n_ctx, rope_scaling=kind)).choose()
        for kind, n_ctx in ((None, None), ("yarn", None), ("yarn", 65536), ("yarn", 32768), ("none", 40960))
    }
    shapes = {asked: (choice.shape.n_ctx, choice.shape.rope_scaling) for asked, choice in choices.items()}
    assert shapes == {
        (None, None): (40960, None),
        ("yarn", None): (131072, RopeScaling("yarn", 4.0, 32768)),
        ("yarn", 65536): (65536, RopeScaling("yarn", 2.0, 32768)),
        ("yarn", 32768): (32768, None),
        ("none", 40960): (40960, RopeScaling("none", 1.0, 32768)),
    }
    assert max(row.n_ctx for row in planning.report(*told(probe, None)).rows) == 40960
    assert "RoPE stretched 2 times from 32,768 (yarn)" in choice_text(choices["yarn", 65536])
    with pytest.raises(UsageError, match="trained for 40,960 tokens, not for 65,536"):
        Planner(probe, with_card(24 * GIB), PlanRequest(n_ctx=65536)).choose()


def told(probe: MemoryProbe, kind: str | None) -> tuple[Planner, Choice]:
    planner = Planner(probe, with_card(24 * GIB), PlanRequest(rope_scaling=kind))
    return planner, planner.choose()


def test_nothing_is_said_when_nothing_was_chosen(smollm2_triattn: Path) -> None:
    flags = {"ctx": 3000, "budget": 300, "cache_type_k": "f16", "cache_type_v": "f16"}
    settings = Settings.load(flags, environ={})
    assert plan_run(smollm2_triattn, settings, machine=with_card()).why is None
    assert plan_run(smollm2_triattn, settings, machine=with_card(8 * GIB)).why is not None  # how many layers


def test_defaults_of_a_command_are_no_wish_unless_it_says_so(smollm2_triattn: Path) -> None:
    settings = Settings.load(defaults={"budget": 160, "window": 32}, environ={})
    plans = [plan_run(smollm2_triattn, settings, fixed=fixed, machine=with_card()) for fixed in ((), ("budget",))]
    assert [plan.eviction and plan.eviction.budget_tokens for plan in plans] == [2048, 160]


def test_a_model_without_statistics_needs_no_plan(smollm2: Path) -> None:
    with pytest.raises(StatsError):
        plan_run(smollm2, Settings.load(environ={}), machine=with_card())
    assert plan_run(smollm2, Settings.load(environ={}), evict=False, machine=with_card()).eviction is None


def test_slots_share_a_card(smollm2_triattn: Path) -> None:
    one, four = (
        plan_run(smollm2_triattn, Settings.load(environ={}), n_parallel=n, kv_unified=True, machine=with_card(GIB * 3))
        for n in (1, 4)
    )
    assert four.config.n_seq_max == 4
    assert four.choice.bytes.n_cells == 4 * (4096 + 128) + 512
    assert four.choice.placement.cards[0].kv > 3 * one.choice.placement.cards[0].kv


# headers from anywhere


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def total_of(model: str | Path, models: Path) -> int:
    with open_header(str(model), models) as path, MemoryProbe(path) as probe:
        return probe.weights.total


def test_a_header_alone_will_do(tiny: Path, tmp_path: Path) -> None:
    whole = read_gguf(tiny)
    for n_bytes in (whole.infos_end, whole.data_start, whole.data_start + 1000):
        part = tmp_path / "part.gguf"
        part.write_bytes(tiny.read_bytes()[:n_bytes])
        assert total_of(part, tmp_path) == total_of(tiny, tmp_path)


def test_a_split_model_is_one(tmp_path: Path) -> None:
    write_tiny(tmp_path / "s.gguf", split_max_tensors=10)
    one = write_tiny(tmp_path / "one.gguf")
    first = min(tmp_path.glob("s-00001-of-*.gguf"))
    assert total_of(first, tmp_path) == total_of(one, tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"is file 2 of|has no general\.architecture"):
        total_of(min(tmp_path.glob("s-00002-of-*.gguf")), tmp_path)


def changed(tiny: Path, change: Callable[[bytearray, Any], object]) -> Path:
    """The file after a change to its bytes, which knows where things stand in it."""
    data = bytearray(tiny.read_bytes())
    change(data, read_gguf(tiny))
    path = tiny.with_name("lies.gguf")
    path.write_bytes(data)
    return path


def put(data: bytearray, at: int, form: str, *values: int) -> None:
    struct.pack_into(form, data, at, *values)


def infos_of(data: bytearray, file: Any, name: bytes) -> int:
    """Where the numbers of a tensor begin: dimensions, shape, type, offset."""
    return data.index(name, file.infos_start) + len(name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d, f: put(d, 8, "<Q", 2**60), "tensors do not fit into"),
        (lambda d, f: put(d, 16, "<Q", 2**60), "keys and .* tensors do not fit into"),
        (lambda d, f: put(d, 16, "<Q", 3), "dimensions"),
        (lambda d, f: put(d, f.pairs["tokenizer.ggml.tokens"].value - 8, "<Q", 2**40), "ends inside key"),
        (lambda d, f: put(d, f.pairs["llama.block_count"].value, "<I", 4096), "block_count is 4096"),
        (lambda d, f: put(d, f.pairs["llama.block_count"].value, "<I", 200), "cannot load it: .*not found"),
        (lambda d, f: put(d, f.pairs["llama.embedding_length"].value, "<I", 2**30), "embedding_length is"),
        (lambda d, f: put(d, f.pairs["llama.attention.head_count"].value, "<I", 3), "query heads on"),
        (
            lambda d, f: put(d, infos_of(d, f, b"blk.2.ffn_up.weight") + 4 + 16 + 4, "<Q", 2**50),
            "begins at 1125899906842624",
        ),
        (lambda d, f: put(d, infos_of(d, f, b"blk.2.ffn_up.weight") + 4, "<Q", 2**40), "begins at|claims|TiB"),
        (lambda d, f: put(d, infos_of(d, f, b"blk.3.ffn_down.weight") + 4, "<Q", 2**50), "claims|begins"),
        (lambda d, f: put(d, infos_of(d, f, b"blk.2.ffn_up.weight") + 4 + 16, "<I", 200), "type 200|begins"),
        (lambda d, f: put(d, infos_of(d, f, b"blk.2.ffn_up.weight"), "<I", 2**31), "dimensions"),
    ],
)
def test_a_header_that_lies(tiny: Path, tmp_path: Path, change: Callable[[bytearray, Any], object], told: str) -> None:
    path = changed(tiny, change)
    with pytest.raises(ModelNotFoundError, match=told) as lie:
        total_of(path, tmp_path)
    assert lie.value.exit_code == 3


def test_a_lying_size_takes_no_memory(tmp_path: Path) -> None:
    """A tensor of a petabyte, consistent in itself."""
    writer = gguf.GGUFWriter(tmp_path / "huge.gguf", "llama")
    writer.add_tensor_info("token_embd.weight", (2**25, 2**25), np.dtype(np.float32), 2**52)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(ModelNotFoundError, match=r"claims 4,096\.0 TiB of tensors"):
        total_of(tmp_path / "huge.gguf", tmp_path)


# the hub

REPO = "someone/Tiny-GGUF"


class Stub(ThreadingHTTPServer):
    """As much of a hub as answers for one repository; counts the bytes of files that it gives out."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.n_bytes = 0
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        asked = self.rfile.read(length).decode()
        self._json([self._entry(name) for name in self.server.files if name in asked])

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" in path and name in self.server.files:
            self._file(self.server.files[name])
        elif "/tree/" in path:
            self._json([self._entry(name) for name in self.server.files])
        elif path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.server.files.items()]
            self._json(
                {"id": REPO, "modelId": REPO, "sha": "0" * 40, "siblings": siblings, "tags": [], "private": False}
            )
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(self.server.files[name]), "oid": "0" * 40}

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes) -> None:
        first, last = 0, len(data) - 1
        asked = self.headers.get("range")
        if asked:
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        self.server.n_bytes += len(part)
        headers = {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206 if asked else 200, part, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], Stub]]:
    import huggingface_hub
    from huggingface_hub import constants

    started: list[Stub] = []

    def start(files: dict[str, bytes]) -> Stub:
        stub = Stub(files)
        started.append(stub)
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        template = stub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", stub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        return stub

    yield start
    for stub in started:
        stub.shutdown()
        stub.server_close()


def test_a_model_of_the_hub_by_its_header(
    hub: Callable[[dict[str, bytes]], Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triattn_local.store import hub as hub_module

    monkeypatch.setattr(hub_module, "_HEAD_READ", 4096)  # so that a tiny header takes several requests
    tiny = write_tiny(tmp_path / "Tiny-Q4_K_M.gguf")
    stub = hub({tiny.name: tiny.read_bytes(), "README.md": b"words"})
    assert total_of(REPO, tmp_path / "models") == total_of(tiny, tmp_path)
    assert read_gguf(tiny).infos_end <= stub.n_bytes < read_gguf(tiny).infos_end + 8192
    assert stub.n_bytes < tiny.stat().st_size


def test_a_split_model_of_the_hub(hub: Callable[[dict[str, bytes]], Stub], tmp_path: Path) -> None:
    write_tiny(tmp_path / "Tiny-Q4_K_M.gguf", split_max_tensors=10)
    one = write_tiny(tmp_path / "one.gguf")
    hub({path.name: path.read_bytes() for path in tmp_path.glob("Tiny-*.gguf")})
    assert total_of(f"{REPO}:Q4_K_M", tmp_path / "models") == total_of(one, tmp_path)


def test_the_hub_has_no_such_model(hub: Callable[[dict[str, bytes]], Stub], tmp_path: Path) -> None:
    hub({"Tiny-Q4_K_M.gguf": b"no GGUF at all"})
    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        total_of(REPO, tmp_path)
    with pytest.raises(ModelNotFoundError, match="no Q8_0; there is Q4_K_M"):
        total_of(f"{REPO}:Q8_0", tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such repository"):
        total_of("nobody/Nothing", tmp_path)


def test_a_header_without_end_is_not_fetched_for_ever(
    hub: Callable[[dict[str, bytes]], Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triattn_local.store import hub as hub_module

    monkeypatch.setattr(hub_module, "_HEAD_READ", 4096)
    monkeypatch.setattr(hub_module, "_HEAD_MOST", 16384)
    # one key whose array of strings goes on and on
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 10_000)
    stub = hub({"Tiny-Q4_K_M.gguf": head + (struct.pack("<Q", 92) + bytes(92)) * 10_000})
    with pytest.raises(ModelNotFoundError, match="ends inside key 1 of 1"):
        total_of(REPO, tmp_path)
    assert stub.n_bytes <= 16384


# the command


def test_plan_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--vram", "24GiB", "--ram", "32GiB", "--ctx", "131072", "--rope-scaling", "yarn"]
    assert run_app(["plan", "qwen3-32b", *flags]) == 0
    out = capsys.readouterr().out
    assert "context 131,072, budget 4,096, f16 cache of 1.2 GiB, 64 of 64 layers on the GPU" in out
    lines = {line.split(" tokens")[0].strip(): line.split() for line in out.splitlines() if " tokens " in line}
    assert "no" in lines["32,768"]
    assert lines["131,072"].count("yes") == 1
    assert "█" in out


def test_the_help_names_every_geometry() -> None:
    command: Any = typer.main.get_command(app)
    told = command.commands["plan"].params[0].help
    assert all(name in told for name in GEOMETRIES)


def test_plan_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_app(["plan", "gpt-oss-20b", "--vram", "12GiB,8GiB", "--cache-type", "q8_0", "--parallel", "2", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["parallel"] == 2
    assert told["cache_type_k"] == told["cache_type_v"] == "q8_0"
    assert [memory["name"] for memory in told["memory"]] == ["GPU 0", "GPU 1", "RAM"]
    assert sum(told["tensor_split"]) == told["n_gpu_layers"]
    for memory in told["memory"]:
        parts = sum(memory[part] for part in ("weights", "kv", "compute", "checkpoints"))
        assert memory["need"] == parts
        assert memory["margin"] == memory["total"] - memory["reserve"] - parts >= 0
    assert sum(memory["kv"] for memory in told["memory"]) == told["kv_bytes"]


def test_budget_auto_comes_before_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIATTN_BUDGET", "700")
    for flags, budget in (
        ((), 700),
        (("--budget", "auto"), 4096),
        (("--budget", "auto", "--ctx", "auto", "--cache-type", "auto", "--gpu-layers", "auto"), 4096),
        (("--budget", "900"), 900),
        (("--budget", "off"), None),
    ):
        assert run_app(["plan", "qwen3-8b", "--vram", "24GiB", *flags, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["budget"] == budget


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("qwen3-32z", 3, "no model and no geometry 'qwen3-32z'; did you mean 'qwen3-32b'?"),
        ("nothing-like-it", 3, "no model 'nothing-like-it'"),
        ("qwen3-32b --vram 24", 2, "--vram: '24' is 24 bytes"),
        ("qwen3-32b --vram lots", 2, "--vram: 'lots' is not a size"),
        ("qwen3-32b --vram 24GiB,", 2, "--vram: '' is not a size"),
        ("qwen3-32b --vram 9999PiB", 2, "--vram: '9999PiB' is not a size"),
        ("qwen3-32b --ram -1GiB", 2, "--ram: '-1GiB' is not a size"),
        ("qwen3-32b --ctx 99999999999", 2, "--ctx: 99999999999 is not in"),
        ("qwen3-32b --ctx 65536", 2, "--ctx: the model was trained for 40,960 tokens, not for 65,536"),
        ("qwen3-32b --ctx 65536", 2, "or --rope-scaling yarn, which takes it to 131,072"),
        ("qwen3-32b --ctx 200000 --rope-scaling yarn", 2, "takes the model to 131,072 tokens, not to 200,000"),
        ("qwen3-32b --rope-scaling banana", 2, "--rope-scaling: 'banana' is not one of none, linear, yarn"),
        ("qwen3-32b --ctx 0", 2, "--ctx"),
        ("qwen3-32b --budget 10", 2, "--budget: budget 10 must be larger"),
        ("qwen3-32b --budget much", 2, "--budget: 'much' is not a whole number, off or auto"),
        ("qwen3-32b --ctx much", 2, "--ctx: 'much' is not a whole number or auto"),
        ("qwen3-32b --parallel 0", 2, "--parallel: 0 is not in 1 ... 256"),
        ("qwen3-32b --parallel 100000", 2, "--parallel"),
        ("qwen3-32b --cache-type banana", 2, "banana"),
        ("qwen3-32b --vram 2GiB --ram 4GiB", 4, "take a smaller quantisation or model"),
        ("qwen3-32b --vram 0 --ram 16GiB", 4, "of RAM (16.0 GiB"),
    ],
)
def test_what_cannot_be_planned(arguments: str, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["plan", *arguments.split()]) == code
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("flags", [[], ["--ctx", "auto", "--budget", "auto"]])
def test_run_says_what_it_chose(
    flags: list[str], smollm2_triattn: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags:
        monkeypatch.setenv("TRIATTN_BUDGET", "300")
        monkeypatch.setenv("TRIATTN_CTX", "1024")
    assert run_app(["run", str(smollm2_triattn), "Say hi.", "-n", "1", *flags]) == 0
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("context 8,192, budget ")
    assert "to spare" in first
    assert json.loads(last)["n_ctx"] == 8192


@pytest.mark.parametrize("command", [["run"], ["run", "--no-evict"], ["run", "--budget", "8000"]])
def test_what_does_not_fit_is_exit_code_4(
    command: list[str], smollm2_triattn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 270 if len(command) > 1 else 120
    monkeypatch.setattr(planning, "this_machine", lambda: Machine((), Memory("RAM", size << 20, 0), is_here=True))
    flags = ["--ctx", "8192"] if len(command) > 1 else []
    assert run_app([*command, *flags, str(smollm2_triattn), "Say hi."]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("nearest that fits: --" if len(command) > 1 else "take a smaller quantisation") in captured.err


def test_sizes() -> None:
    assert parse_size("24GiB", "--vram") == 24 * GIB
    assert parse_size("24g", "--vram") == 24 * 10**9
    assert parse_size(" 1.5 TiB ", "--ram") == int(1.5 * 2**40)
    assert parse_size("2097152", "--ram") == 2**21
    assert parse_cards("24GiB, 12GiB") == (24 * GIB, 12 * GIB)
    assert parse_cards("none") == parse_cards("0") == ()
    with pytest.raises(UsageError):
        parse_size("nan GiB", "--ram")


def test_layers_go_where_llama_cpp_puts_them() -> None:
    load = Load(WeightBytes(100, (10,) * 8, 30, 0), (5,) * 8, {"GPU 0": 7, HOST: 3}, 2, 0)
    half = place(load, with_card(24 * GIB), 5)  # the output, and the last four
    assert (half.cards[0].weights, half.cards[0].kv, half.cards[0].compute, half.cards[0].n_layers) == (70, 20, 7, 4)
    assert (half.ram.weights, half.ram.kv, half.ram.compute, half.ram.n_layers) == (140, 20, 3, 4)
    whole = place(load, with_card(24 * GIB), 99)
    assert (whole.n_gpu_layers, whole.cards[0].n_layers, whole.ram.weights, whole.ram.compute) == (9, 8, 100, 2)
