"""Layers whose keys RoPE does not turn: their centres, and scores beside the mean logits of the model's own queries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine import Engine
from families import FAMILIES
from retouched import retouched
from tiny_models import HEAD_DIM, N_EMBD, N_HEAD, N_HEAD_KV, write_tiny
from typer.testing import CliRunner

from triattn_local.calib_tools.calibrate import calibrate
from triattn_local.calib_tools.convert import convert
from triattn_local.calib_tools.engine_runtime import Recorded, RuntimeEngine
from triattn_local.cli import app
from triattn_local.config import EvictionConfig
from triattn_local.engine import native
from triattn_local.errors import CalibrationError, StatsError
from triattn_local.model import architectures, scoring
from triattn_local.model.gguf_file import ValueType
from triattn_local.model.metadata import read_stats, usable_stats, write_sidecar
from triattn_local.model.model_info import read_model_info

KINDS: tuple[Recorded, ...] = ("q_pre", "k_pre", "q_rot", "k_rot")
UNTURNED = [name for name, family in FAMILIES.items() if family.unrotated]
TOKENS = [3 + i * 97 % 250 for i in range(300)]


def watch(path: Path) -> dict[tuple[int, Recorded], np.ndarray]:
    seen: dict[tuple[int, Recorded], np.ndarray] = {}
    with RuntimeEngine(path, n_ctx=512, n_batch=512, n_threads=1, kinds=KINDS) as engine:
        engine.evaluate(TOKENS, lambda il, kind, values, _: seen.__setitem__((il, kind), values.copy()))
    return seen


def steered(path: Path, arch: str = "smollm3") -> Path:
    """A model whose queries gather: each head has a bias many times as long as what is added to it."""
    rng = np.random.default_rng(1)
    biases = {f"blk.{il}.attn_q.bias": 25 * rng.standard_normal(N_EMBD) for il in range(4)}
    leave_out = ("ffn_norm",) if arch == "cohere2" else ()
    return write_tiny(path, arch, leave_out=leave_out, add=FAMILIES[arch].metadata, more=biases)


@pytest.mark.parametrize("family", UNTURNED)
def test_what_is_read_is_what_is_cached(family: str, tmp_path: Path) -> None:
    """Of a layer that nothing turns queries and keys are the same before and after; the keys lie so in the cache."""
    path = FAMILIES[family].write(tmp_path / "m.gguf")
    seen = watch(path)
    with Engine(path, EvictionConfig(policy="streaming"), n_ctx=512) as engine:
        engine.decode(TOKENS)
        for il in FAMILIES[family].unrotated:
            assert seen[il, "q_pre"].shape == (300, N_HEAD, HEAD_DIM)
            assert seen[il, "k_pre"].shape == (300, N_HEAD_KV, HEAD_DIM)
            for letter in ("q", "k"):
                assert np.array_equal(seen[il, f"{letter}_pre"], seen[il, f"{letter}_rot"])  # type: ignore[index]
            for head in range(N_HEAD_KV):
                pos, cells = native.get_kept(engine.ctx, il, head)
                cached = engine.keys(il, head, cells)
                want = seen[il, "k_pre"][pos, head]
                assert np.abs(cached - want).max() < 2e-3 * np.abs(want).max()


@pytest.mark.parametrize("family", UNTURNED)
def test_convert_measures_them(family: str, tmp_path: Path) -> None:
    """Mean query and mean length of each dimension; the library takes the statistics, and rounds happen by them."""
    this = FAMILIES[family]
    path = this.write(tmp_path / "m.gguf")
    stats = read_stats(convert(path, tmp_path / "out.gguf", n_tokens=700, engine="runtime", n_threads=1).path)
    assert stats is not None
    assert stats.layers == tuple(this.layers)
    info = read_model_info(path)
    for i, il in enumerate(stats.layers):
        n_band = HEAD_DIM if il in this.unrotated else info.n_rot // 2
        assert stats.q_abs[i].shape == (N_HEAD, n_band)
        if il in this.unrotated:
            assert (np.abs(stats.q_mean[i]) <= stats.q_abs[i] * (1 + 1e-4)).all()
    eviction = EvictionConfig(budget_tokens=128, window=16, n_keep=4)
    with Engine(tmp_path / "out.gguf", eviction, n_ctx=512, n_batch=64) as engine:
        engine.feed(TOKENS)
        assert engine.stats().n_rounds > 1


def test_sums_of_what_is_not_turned(tmp_path: Path) -> None:
    """The centres are those of the queries that were seen."""
    path = write_tiny(tmp_path / "m.gguf", "smollm3")
    stats = calibrate(path, n_tokens=700, engine="runtime", n_threads=1)
    other = calibrate(path, n_tokens=700, engine="torch", n_threads=1)
    assert stats.layers == other.layers == (0, 1, 2, 3)
    for ours, theirs in ((stats.q_mean, other.q_mean), (stats.q_abs, other.q_abs), (stats.k_mean, other.k_mean)):
        for one, two in zip(ours, theirs, strict=True):
            assert one.shape == two.shape
            assert np.abs(one - two).max() < 5e-3 * np.abs(two).max()


@pytest.mark.parametrize("kind", ["smollm3", "granite", "cohere2"])
def test_scores_are_mean_logits(kind: str, tmp_path: Path) -> None:
    """The library's scores of cached keys, beside the logits that the model's own queries would have with them.

    Turned to each of the future distances and averaged, where RoPE turns; as they are where it does not.
    """
    path = steered(tmp_path / "m.gguf", kind)
    info = read_model_info(path)
    stats = calibrate(path, n_tokens=700, engine="runtime", n_threads=1)
    write_sidecar(tmp_path / "stats.gguf", stats, info)
    seen = watch(path)
    rope, offsets = scoring.RopeParams.of(info), scoring.future_offsets("geometric", 1024)
    eviction = EvictionConfig(budget_tokens=160, window=16, n_keep=4, offset_max=1024)
    with Engine(path, eviction, stats=tmp_path / "stats.gguf", n_ctx=1024) as engine:
        engine.decode(TOKENS)
        native.score(engine.ctx)
        for il in stats.layers:
            layer = replace(rope, n_rot=info.n_rot_of(il))
            queries = seen[il, "q_pre"][100:]
            for head in range(N_HEAD):
                scores, cells = native.get_scores(engine.ctx, il, head)
                keys = engine.keys(il, head * N_HEAD_KV // N_HEAD, cells)
                logits = [
                    (scoring.rope(queries[:, head], len(TOKENS) + offset, layer) @ keys.T).mean(axis=0)
                    for offset in (offsets if layer.n_rot else [0])
                ]
                assert np.corrcoef(np.mean(logits, axis=0), scores)[0, 1] > 0.99, (il, head)


def test_they_are_measured_on_other_texts(tmp_path: Path) -> None:
    path = steered(tmp_path / "m.gguf")
    convert(path, tmp_path / "out.gguf", n_tokens=700, engine="runtime", n_threads=1)
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "out.gguf"), "--measure", "--tokens", "1200", "--json"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert [layer["n_band"] for layer in report["layers"]] == [16, 16, 16, 32]
    assert "NaN" not in told.stdout


def test_statistics_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    """Of the same weights where RoPE turns them, and where a switch in the file says that it does not."""
    path = FAMILIES["granite"].write(tmp_path / "m.gguf")
    turned = retouched(path, tmp_path / "turned.gguf", {"granite.rope.scaling.finetuned": (ValueType.BOOL, True)})
    stats = calibrate(turned, n_tokens=700, engine="runtime", n_threads=1)
    assert stats.model == calibrate(path, n_tokens=700, engine="runtime", n_threads=1).model
    with pytest.raises(StatsError, match=r"q_abs of layer 0: has shape \[4, 16\], the model needs \[4, 32\]"):
        stats.validate(read_model_info(path))
    write_sidecar(tmp_path / "stats.gguf", stats, read_model_info(turned))
    with pytest.raises(StatsError):
        usable_stats(read_model_info(path), tmp_path / "stats.gguf")


def test_file_and_graph_must_agree_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path / "m.gguf", "smollm3")
    monkeypatch.delitem(architectures.ROPE_RULES, "smollm3")
    with pytest.raises(CalibrationError, match=r"RoPE turns layers but .* by its file, and not so in layer 3"):
        calibrate(path, n_tokens=700, engine="runtime", n_threads=1)
