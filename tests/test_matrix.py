"""Families of models x mode x cache x flash attention x what happens to a sequence: each pair of values occurs once.

Tiny models with random weights. Of each combination: the library's scores against NumPy's, rows after a round against
the rows before it, and a state, or a rewind, against what was there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine import Engine, random_stats
from families import FAMILIES

from triattn_local import selftest
from triattn_local.config import MODES, EvictionConfig
from triattn_local.engine import native
from triattn_local.engine.layers import ask_layers, layers_text
from triattn_local.inspection.describe import inspect_model
from triattn_local.model.model_info import read_model_info
from triattn_local.model.scoring import RopeParams
from triattn_local.planning import MemoryProbe

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
    assert len(COMBINATIONS) <= len(FAMILIES) * len(CACHES) + 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_says_what_the_library_says(family: str, tmp_path: Path) -> None:
    """Layers that evict, and the dimensions that RoPE turns in each: by the header alone, and by the loaded model."""
    this = FAMILIES[family]
    info = read_model_info(this.write(tmp_path / "tiny.gguf"))
    assert info.full_layers == tuple(this.layers)
    # what inspect and plan show
    layers = ask_layers(info)
    assert inspect_model(info.path).layers == layers
    with MemoryProbe(info.path) as probe:
        assert probe.layers == layers
    shown = layers_text(layers)
    assert ("without RoPE" in shown) is bool(this.unrotated)
    assert (" not: " in shown) is (len(this.layers) < 4)
    assert sum(int(n) for n in re.findall(r"(\d) of 4 evict", shown)) == len(this.layers)
    with Engine(info.path, None, n_ctx=256) as engine:
        for il in this.layers:
            assert native.get_layer(engine.model, il) == (told := layers[il])
            assert (told.n_head, told.n_head_kv) == (info.n_head[il], info.n_head_kv[il])
            assert (told.head_dim, told.head_dim_v) == (info.head_dim, info.head_dim_v)
            assert told.n_rot == info.n_rot_of(il) == (0 if il in this.unrotated else info.n_rot)
            assert told.n_band == info.n_band_of(il)
            assert told.rope_type in (info.rope_type, None if il in this.unrotated else info.rope_type)


@pytest.mark.parametrize(
    ("family", "mode", "cache", "fate"), COMBINATIONS, ids=lambda v: v if isinstance(v, str) else f"{v[0]}-{v[1]}"
)
def test_it_works(family: str, mode: str, cache: tuple[str, bool], fate: str, tmp_path: Path) -> None:
    this = FAMILIES[family]
    layers = this.layers
    model = this.write(tmp_path / "tiny.gguf")
    info = read_model_info(model)
    eviction = EvictionConfig(budget_tokens=160, window=16, n_keep=4, mode=mode, cold="off")  # type: ignore[arg-type]
    sidecar = tmp_path / "stats.gguf"
    with Engine(model, None, n_ctx=512) as engine:
        told = {il: native.get_layer(engine.model, il) for il in range(info.n_layer)}
    assert [il for il, layer in told.items() if layer.why_kept is None] == list(layers)
    assert [il for il in layers if told[il].rope_type is None] == list(this.unrotated)
    stats = random_stats(model, layers, sidecar, unrotated=this.unrotated)
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
            assert (cut == end) is (this.is_hybrid)
            assert not engine.rm(whole - 1), "a token before T is gone from some head"
            assert not this.is_hybrid or not engine.rm(cut - 1), "a recurrent state cannot go back"
            assert engine.state() == state, "what is refused is refused in both halves, before anything is touched"
            assert engine.rm(cut)
            assert engine.next_pos() == cut
            assert np.isfinite(engine.decode(text(4))).all()
