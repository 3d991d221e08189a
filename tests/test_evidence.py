"""What is measured of centres, beside sums written out plainly and cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from centres import N_HEAD, N_HEAD_KV, N, drawn, observed, params

from triattn_local.calib_tools.corpus import bundled_corpus, check_varied, heldout_corpus
from triattn_local.calib_tools.measure import measure
from triattn_local.errors import CalibrationError, StatsError
from triattn_local.inspection.evidence import (
    FRACTIONS,
    METHODS,
    N_SINK,
    N_WINDOW,
    SPREAD_EDGES,
    Evidence,
    LayerEvidence,
    Pearson,
    distances_up_to,
    preference_curve,
)
from triattn_local.model import scoring
from triattn_local.model.architectures import RopeType
from triattn_local.model.metadata import read_stats
from triattn_local.model.model_info import read_model_info


@pytest.mark.parametrize("rope_type", ["norm", "neox"])
@pytest.mark.parametrize("attn_factor", [1.0, 1.19])
def test_the_curve_is_the_logit_of_the_centres(rope_type: RopeType, attn_factor: float) -> None:
    q_mean, k_mean, _, _ = drawn(0)
    rope = params(rope_type, attn_factor=attn_factor)
    distances = np.array([0, 1, 5, 100])
    curve = preference_curve(q_mean, k_mean, distances, rope, 0.25)
    for head in range(N_HEAD):
        for i, distance in enumerate(distances):
            q = scoring.rope(q_mean[head], np.array(700 + distance), rope)
            k = scoring.rope(k_mean[head // 2], np.array(700), rope)
            assert curve[head, i] == pytest.approx(0.25 * float(q @ k), abs=1e-9)


def test_without_noise_everything_is_predicted() -> None:
    layer = observed(0.0)
    assert np.allclose(layer.measured, layer.predicted, atol=1e-4)
    assert np.allclose(layer.pearson_curve(), 1, atol=1e-4)
    assert np.allclose(layer.pearson_logits(), 1, atol=1e-4)
    assert layer.spread[:, 0].sum() == layer.spread.sum() == 2 * N_HEAD * (N - 16)
    assert np.allclose(layer.cosine_by_domain(), 1)
    # keys differ by their distance alone, which the score averages over future distances
    assert (layer.mass[-1] >= layer.mass[:-1] - 1e-9).all()


def test_noise_is_seen() -> None:
    little, much = observed(0.2), observed(3.0)
    assert little.pearson_logits().mean() > much.pearson_logits().mean() + 0.2
    bins = np.arange(len(SPREAD_EDGES) - 1)
    near, far = ((x.spread.sum(0) * bins).sum() / x.spread.sum() for x in (little, much))
    assert near < far
    assert little.cosine_by_position()[1].min() > 0.99
    assert np.isnan(little.cosine_by_position()[-1]).all()  # no text was that long


def test_measured_curves_and_sets_beside_plain_loops() -> None:
    q_mean, k_mean, q, k = drawn(1.0, seed=3)
    rope = params("norm")
    q_abs = scoring.band_magnitude(q, rope.n_rot, rope.rope_type).mean(axis=0)
    layer = LayerEvidence(q_mean, q_abs, k_mean, rope, 0.25, ("a",), N)
    layer.add(q, k, 0, 16)
    half = N // 2
    pos = np.arange(N)[:, None]
    q_rot, k_rot = scoring.rope(q, pos, rope), scoring.rope(k, pos, rope)
    candidates = np.arange(N_SINK, half - N_WINDOW)
    attention = np.zeros((N_HEAD, len(candidates)))
    for head in range(N_HEAD):
        for i, distance in enumerate(layer.distances):
            logits = [0.25 * q_rot[t, head] @ k_rot[t - distance, head // 2] for t in range(half, N)]
            assert layer.measured[head, i] == pytest.approx(np.mean(logits), abs=1e-4)
        for t in range(half, N):
            weights = np.exp([0.25 * q_rot[t, head] @ k_rot[j, head // 2] for j in range(t + 1)])
            attention[head] += (weights / weights.sum())[candidates]
    n_kept = round(0.25 * len(candidates))
    for kv in range(N_HEAD_KV):
        group = attention[2 * kv : 2 * kv + 2].sum(axis=0)
        best = set(np.argsort(-group)[:n_kept])
        z = scoring.zscore(scoring.score(q_mean, q_abs, k_rot[candidates].astype(np.float32), half, rope))
        kept = set(np.argsort(-z[2 * kv : 2 * kv + 2].max(axis=0))[:n_kept])
        assert layer.overlap[0, 2, kv] == pytest.approx(len(best & kept) / n_kept)
        assert layer.mass[0, 2, kv] == pytest.approx(group[list(kept)].sum() / group.sum(), rel=1e-4)
        assert layer.mass[-1, 2, kv] == pytest.approx(group[list(best)].sum() / group.sum(), rel=1e-4)


def test_heavily_attended_keys_at_non_preferred_distances() -> None:
    """Without noise attention follows the curve, and so the heaviest keys never lie below its median."""
    layer = observed(0.0)
    assert layer.heavy[0].min() > 0
    assert layer.heavy[1].sum() == 0
    noisy = observed(3.0)
    assert noisy.heavy[1].sum() > 0
    assert (noisy.heavy[2:] <= noisy.heavy[1]).all()
    # the score knows the key, the curve only its distance
    assert noisy.heavy[4].sum() > 0.5 * noisy.heavy[1].sum()


def test_pearson_is_numpys() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 3, 100))
    y += x
    one = Pearson(3)
    for head in range(3):
        one.add(head, x[head, :40], y[head, :40])
        one.add(head, x[head, 40:], y[head, 40:])
    assert np.allclose(one.value(), [np.corrcoef(x[i], y[i])[0, 1] for i in range(3)])
    constant = Pearson(1)
    constant.add(0, np.ones(5), np.arange(5.0))
    assert constant.value() == [0.0]


@pytest.mark.parametrize("n", [2, 3, 10, 128, 1024])
def test_distances(n: int) -> None:
    distances = distances_up_to(n)
    assert distances[0] == 1
    assert (np.diff(distances) > 0).all()
    assert distances[-1] <= max(2, n - 1)


def test_the_summary() -> None:
    evidence = Evidence("c", "torch", 2 * N, ("a", "b"), (3,), (observed(0.5),))
    summary = evidence.as_dict()
    assert summary["n_tokens"] == 600
    assert list(summary["overlap"]) == list(METHODS)  # type: ignore[call-overload]
    assert all(len(row) == len(FRACTIONS) for row in summary["overlap"].values())  # type: ignore[attr-defined]
    assert "512-1024" not in summary["cosine_by_position_median"]  # type: ignore[operator]
    assert {name for name, _ in evidence.lines()} >= {"curve over distance", "overlap at 25%"}
    assert summary["verdict"] == evidence.verdict()[0]


def test_the_verdict_says_whether_they_hold() -> None:
    """Queries that gather at their centre, and queries that go any way: the words tell them apart."""
    layer = observed(0.5)
    evidence = Evidence("c", "torch", 2 * N, ("a", "b"), (3,), (layer,))
    n_heads = layer.overlap.shape[-1] * layer.n_sequences
    for share, word in ((0.6, "hold"), (0.34, "hold in part"), (0.26, "do not hold")):
        layer.overlap[:] = 0.25 * n_heads / layer.overlap.shape[-1]
        layer.overlap[0] = share * n_heads / layer.overlap.shape[-1]
        found, text = evidence.verdict()
        assert found == word
        assert text.startswith(f"the statistics {word} for this model: ")
        assert f"the score keeps {share:.0%}" in text
        assert "; expect" in text or "convert --force" in text
    layer.overlap[METHODS.index("recent")] = layer.overlap[0] = 0.6 * n_heads / layer.overlap.shape[-1]
    assert evidence.verdict()[0] == "hold in part", "no better than what needs no statistics"


# ---- on real text and models


def test_the_held_out_text_is_another() -> None:
    ours, theirs = heldout_corpus(), bundled_corpus()
    assert not {d.text for d in ours.documents} & {d.text for d in theirs.documents}
    assert len(ours.documents) == 3
    for document in ours.documents:
        check_varied(document.text, Path(document.name))
        assert len(document.text) > 4500


@pytest.mark.slow
def test_a_real_model(smollm2_triattn: Path) -> None:
    stats = read_stats(smollm2_triattn)
    assert stats is not None
    evidence = measure(read_model_info(smollm2_triattn), stats, n_tokens=1536)
    assert evidence.engine == "torch"
    overlap, mass = evidence.of_sets(lambda e: e.overlap), evidence.of_sets(lambda e: e.mass)
    print(evidence.as_dict())
    # the paper: mean Pearson > 0.5
    assert evidence.over_heads(LayerEvidence.pearson_curve).mean() > 0.5
    assert evidence.over_heads(LayerEvidence.pearson_logits).mean() > 0.4
    assert np.median(evidence.over_heads(LayerEvidence.cosine_by_domain)) > 0.95
    # both terms beat recency, key norms and chance
    assert overlap[0, 2] > 0.5
    assert overlap[0, 2] > max(overlap[3, 2], overlap[4, 2]) + 0.1
    assert mass[0, 2] > 0.8 * mass[-1, 2]


def test_too_short_a_text(smollm2_triattn: Path, tmp_path: Path) -> None:
    stats, info = read_stats(smollm2_triattn), read_model_info(smollm2_triattn)
    assert stats is not None
    path = tmp_path / "short.txt"
    path.write_text("Only a few words stand here, and they say nothing twice.")
    with pytest.raises(CalibrationError, match=r"short\.txt: gives sequences of \d+ tokens, too few to measure"):
        measure(info, stats, [path])
    from dataclasses import replace

    with pytest.raises(StatsError, match="have no centres of keys"):
        measure(info, replace(stats, k_mean=()))
