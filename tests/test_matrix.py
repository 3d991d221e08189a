"""Families of models x mode x cache x flash attention x what happens to a sequence: each pair of values occurs once.

Tiny models with random weights. Of each combination: the library's scores against NumPy's, rows after a round against
the rows before it, and a state, or a rewind, against what was there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from engine import Engine, random_stats
from tiny_models import write_deci, write_lfm2, write_tiny

from triattn_local import selftest
from triattn_local.config import MODES, EvictionConfig
from triattn_local.engine import native
from triattn_local.model.model_info import read_model_info
from triattn_local.model.scoring import RopeParams


def partial(path: Path) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_dimension_count(16)

    return write_tiny(path, "phi3", fused_qkv=True, leave_out=("ffn_gate",), add=add)


def windows(path: Path) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(64)
        writer.add_logit_scale(1.0)

    return write_tiny(path, "cohere2", leave_out=("ffn_norm",), add=add)


def no_rope(path: Path) -> Path:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_finetuned(False)
        writer.add_logit_scale(1.0)

    return write_tiny(path, "granite", add=add)


FAMILIES: dict[str, tuple[Callable[[Path], Path], Sequence[int]]] = {
    "llama": (write_tiny, range(4)),
    "phi3, half of a head turned": (partial, range(4)),
    "smollm3, a layer without RoPE": (lambda path: write_tiny(path, "smollm3"), range(4)),
    "granite without RoPE": (no_rope, range(4)),
    "cohere2, windows, and no RoPE without one": (windows, (3,)),
    "lfm2, a hybrid": (write_lfm2, (1, 3)),
    "deci, a layer without attention": (write_deci, (0, 2, 3)),
}
HYBRIDS = ("lfm2, a hybrid",)
CACHES = (("f16", True), ("f16", False), ("q8_0", True), ("bf16", False))
"""type, and flash attention"""
FATES = ("plain", "restore", "rewind")
AXES: tuple[Sequence[object], ...] = (tuple(FAMILIES), MODES, CACHES, FATES)


def pairwise(axes: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    """Few combinations in which any two values of two axes meet, each chosen for the most new pairs."""

    def pairs(combination: tuple[object, ...]) -> set[tuple[object, ...]]:
        return set(itertools.combinations(enumerate(combination), 2))

    every = list(itertools.product(*axes))
    left = set().union(*map(pairs, every))
    chosen = []
    while left:
        best = max(every, key=lambda combination: len(pairs(combination) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


COMBINATIONS = pairwise(AXES)


def text(n: int) -> list[int]:
    return [3 + i * 97 % 250 for i in range(n)]


def test_any_two_values_meet() -> None:
    for (i, one), (j, other) in itertools.combinations(enumerate(AXES), 2):
        assert {(c[i], c[j]) for c in COMBINATIONS} == set(itertools.product(one, other))
    assert len(COMBINATIONS) < 30


@pytest.mark.parametrize(
    ("family", "mode", "cache", "fate"), COMBINATIONS, ids=lambda v: v if isinstance(v, str) else f"{v[0]}-{v[1]}"
)
def test_it_works(family: str, mode: str, cache: tuple[str, bool], fate: str, tmp_path: Path) -> None:
    write, layers = FAMILIES[family]
    model = write(tmp_path / "tiny.gguf")
    info = read_model_info(model)
    eviction = EvictionConfig(budget_tokens=160, window=16, n_keep=4, mode=mode, cold="off")  # type: ignore[arg-type]
    sidecar = tmp_path / "stats.gguf"
    with Engine(model, None, n_ctx=512) as engine:
        told = {il: native.get_layer(engine.model, il) for il in range(info.n_layer)}
    assert [il for il, layer in told.items() if layer.why_kept is None] == list(layers)
    stats = random_stats(model, layers, sidecar, unrotated=[il for il in layers if told[il].rope_type is None])
    rope = RopeParams.of(info)
    ropes = {il: replace(rope, n_rot=told[il].n_rot) for il in layers}

    cache_type, flash_attn = cache
    with Engine(
        model, eviction, stats=sidecar, n_ctx=1024, n_batch=256, type_k=cache_type, flash_attn=flash_attn
    ) as engine:
        assert native.get_layers(engine.ctx) == list(layers)
        for n in (250, 300):  # before any round, and after some
            engine.feed(text(n)[engine.next_pos() :])
            n_scores, error = selftest.compare_scores(engine.ctx, n, info, stats, ropes)
            assert n_scores > 0
            assert error < selftest.TOLERANCE
            before = selftest.cached_rows(engine.ctx, info)
            native.evict(engine.ctx)
            after = selftest.cached_rows(engine.ctx, info)
            assert {len(rows) for rows in after.values()} == {160}
            assert selftest.changed_rows(before, after) == []
        assert engine.stats().n_rows_moved > 0
        end, whole, state = engine.next_pos(), native.seq_pos_whole(engine.ctx), engine.state()
        assert 0 < whole < end
        if fate == "restore":
            one = engine.decode(text(8))
            assert engine.set_state(state)
            assert selftest.changed_rows(after, selftest.cached_rows(engine.ctx, info)) == []
            assert np.array_equal(one, engine.decode(text(8)))
        elif fate == "rewind":
            cut = native.seq_pos_cut(engine.ctx)
            assert (cut == end) is (family in HYBRIDS)
            assert not engine.rm(whole - 1), "a token before T is gone from some head"
            assert family not in HYBRIDS or not engine.rm(cut - 1), "a recurrent state cannot go back"
            assert engine.state() == state, "what is refused is refused in both halves, before anything is touched"
            assert engine.rm(cut)
            assert engine.next_pos() == cut
            assert np.isfinite(engine.decode(text(4))).all()
