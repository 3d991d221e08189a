"""Do the centres hold for this model? What can be measured of it on text that was not calibrated on, in NumPy.

Each sequence of queries and keys of a layer is looked at once and dropped; what stays are sums and counts. The
questions are those of the paper's reviewers: how far queries lie from their centre, whether the centre moves with
position or subject, whether the curve that it predicts over distance is what attention logits do, and whether the keys
that a score keeps are those that full attention attends to. Knows nothing of where queries come from, nor of plots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..config import Terms
from ..model import scoring
from ..model.scoring import RopeParams
from ..model.stats import bands

Float64s = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

SPREAD_EDGES = np.linspace(0.0, 3.0, 61)
"""bins of a query's distance to the centre, in lengths of the centre; the last one holds all that is farther"""

POSITION_EDGES = (16, 64, 128, 256, 512, 1024, 2048)
"""bounds of the ranges of positions whose own centres are compared with the stored one"""

FRACTIONS = (0.05, 0.1, 0.25, 0.5)
"""shares of the candidates that are kept"""
MAIN_FRACTION = 2
"""index of the one that is shown head by head"""

Verdict = Literal["hold", "hold in part", "do not hold"]

TERMS: tuple[Terms, ...] = ("both", "trig", "norm")
METHODS = (*TERMS, "recent", "knorm")
"""how the kept tokens are chosen: the score and its two terms; the most recent; keys of small norm"""

N_SINK = 4
N_WINDOW = 64
"""first and last tokens that are no candidates: every method keeps them"""
N_HEAVY = 16
"""most attended candidates of a query"""
HOLDS, HOLDS_IN_PART = 0.2, 0.07
"""of what a choice by chance misses, how much the score must find for the statistics to hold"""
QUERY_STEP = 8
"""of the later queries every eighth is asked for its most attended keys"""


def distances_up_to(n: int) -> npt.NDArray[np.int64]:
    """Distances in tokens at which curves are compared, evenly spaced in their logarithm, below n."""
    return np.unique(np.geomspace(1, max(2, n - 1), 48).round().astype(np.int64))


def preference_curve(
    q_mean: Floats, k_mean: Floats, distances: npt.NDArray[np.int64], params: RopeParams, scale: float
) -> Float64s:
    """The logit that centres predict over distance: sum_f a_f cos(ω_f Δ) + b_f sin(ω_f Δ), and what is not rotated.

    a_f + i b_f is c² times the conjugate product of the centres' pairs, q̄_f k̄_f*; then times the attention scale.

    Parameters
    ----------
    q_mean : float array [n_head, head_dim]
    k_mean : float array [n_head_kv, head_dim]
    distances : int array [n_distance]
    scale : float
        Of the logits.

    Returns
    -------
    float64 [n_head, n_distance]
    """
    k_mean = np.repeat(k_mean, len(q_mean) // len(k_mean), axis=0)
    product = bands(q_mean, params.n_rot, params.rope_type) * bands(k_mean, params.n_rot, params.rope_type).conj()
    phases = scoring.rope_phases(distances, params)
    # Re(q̄ k̄* e^{iωΔ}): the query is Δ tokens ahead
    turned = product.real @ np.cos(phases).T - product.imag @ np.sin(phases).T
    still = (np.float64(1) * q_mean[:, params.n_rot :] * k_mean[:, params.n_rot :]).sum(axis=-1, keepdims=True)
    return np.asarray((turned * params.mscale**2 + still) * scale)


class Pearson:
    """Correlation coefficients of pairs that come bit by bit, one for each head."""

    def __init__(self, n_head: int) -> None:
        self._sums = np.zeros((6, n_head))

    def add(self, head: int, x: Floats, y: Floats) -> None:
        """Pairs of one head, in two arrays of the same shape."""
        x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
        self._sums[:, head] += np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])

    def value(self) -> Float64s:
        """In -1 ... 1, float64 [n_head]; 0 where one side does not vary."""
        n, x, y, xx, yy, xy = self._sums
        n = np.maximum(n, 1)
        spread = np.sqrt(np.maximum(0, xx / n - (x / n) ** 2) * np.maximum(0, yy / n - (y / n) ** 2))
        return np.asarray((xy / n - x * y / n**2) / np.where(spread > 0, spread, np.inf))


class LayerEvidence:
    """What one layer's queries and keys say about its centres.

    Parameters
    ----------
    q_mean, q_abs, k_mean : float arrays
        The stored statistics of the layer, see ``TriattnStats``.
    params : RopeParams
    scale : float
        Of the attention logits.
    domains : sequence of str
        Names of the texts, in the order of their numbers.
    n_longest : int
        Longest sequence that will come.
    """

    def __init__(
        self,
        q_mean: Floats,
        q_abs: Floats,
        k_mean: Floats,
        params: RopeParams,
        scale: float,
        domains: Sequence[str],
        n_longest: int,
    ) -> None:
        self.q_mean, self.q_abs, self.params, self.scale = q_mean, q_abs, params, scale
        n_head, n_head_kv = len(q_mean), len(k_mean)
        self.distances = distances_up_to(n_longest // 2)
        self.predicted = preference_curve(q_mean, k_mean, self.distances, params, scale)
        """float64 [n_head, n_distance]"""
        self._every_distance = preference_curve(q_mean, k_mean, np.arange(n_longest), params, scale)
        self._measured = np.zeros_like(self.predicted)
        self._n_measured = 0
        self._pairs = Pearson(n_head)
        self.spread = np.zeros((n_head, len(SPREAD_EDGES) - 1), np.int64)
        """queries by their distance to the centre"""
        self._by_position = np.zeros((len(POSITION_EDGES) - 1, *q_mean.shape))
        self._by_domain = np.zeros((len(domains), *q_mean.shape))
        self.n_sequences = 0
        self.overlap = np.zeros((len(METHODS), len(FRACTIONS), n_head_kv))
        """share of the most attended tokens that a method keeps, summed over sequences"""
        self.mass = np.zeros((len(METHODS) + 1, len(FRACTIONS), n_head_kv))
        """share of attention that the kept tokens hold, summed; last the best that any choice could"""
        self.heavy = np.zeros((5, n_head))
        """heavily attended keys: all; at a non-preferred distance; of these in the upper half by the norm term, by the
        trigonometric term with the key's own direction, by both"""

    def add(self, q_pre: Floats, k_pre: Floats, domain: int, n_skip: int) -> None:
        """Look at one sequence.

        Parameters
        ----------
        q_pre : float array [n_token, n_head, head_dim]
            Pre-RoPE queries, from position 0.
        k_pre : float array [n_token, n_head_kv, head_dim]
        domain : int
            Number of the text that it is of.
        n_skip : int
            First tokens that have no say in where queries gather, see ``SKIP_TOKENS`` of the calibration.
        """
        self._gather(q_pre, domain, n_skip)
        q_rot, k_rot = (
            scoring.rope(x, np.arange(len(x))[:, None], self.params).astype(np.float32) for x in (q_pre, k_pre)
        )
        n, n_group = len(q_rot), q_rot.shape[1] // k_rot.shape[1]
        half = n // 2
        future = np.arange(half, n)
        candidates = np.arange(N_SINK, half - N_WINDOW)
        hidden = np.arange(n) > future[:, None]
        w_norm = scoring.norm_weights(self.q_mean, self.q_abs, self.params)
        k_norm = scoring.score_norm(w_norm, k_rot, self.params)
        mass = np.empty((q_rot.shape[1], len(candidates)))
        columns = np.maximum(0, future[:, None] - self.distances)
        for head in range(q_rot.shape[1]):
            logits = (q_rot[half:, head] @ k_rot[:, head // n_group].T) * self.scale
            at_distance = np.take_along_axis(logits, columns, axis=1)
            self._measured[head] += at_distance.sum(axis=0)
            self._pairs.add(head, np.broadcast_to(self.predicted[head], at_distance.shape), at_distance)
            logits[hidden] = -np.inf
            attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
            attention /= attention.sum(axis=-1, keepdims=True)
            mass[head] = attention[:, candidates].mean(axis=0)
            k = k_rot[:, head // n_group]
            self._look_at_heavy(head, attention[::QUERY_STEP], future[::QUERY_STEP], k, k_norm[head])
        self._n_measured += len(future)
        self._compare_sets(mass, k_rot, half, candidates)
        self.n_sequences += 1

    @property
    def measured(self) -> Float64s:
        """Mean logit at each distance, float64 [n_head, n_distance]."""
        return self._measured / self._n_measured

    def pearson_curve(self) -> Float64s:
        """Correlation over distance of the predicted curve and the mean logit, float64 [n_head]."""
        one = Pearson(len(self.predicted))
        for head, (predicted, measured) in enumerate(zip(self.predicted, self.measured, strict=True)):
            one.add(head, predicted, measured)
        return one.value()

    def pearson_logits(self) -> Float64s:
        """Correlation of the predicted curve and single logits, float64 [n_head]."""
        return self._pairs.value()

    def cosine_by_position(self) -> Float64s:
        """Cosine of stored centre and that of a range of positions, [n_range, n_head]; nan where no token was."""
        return self._cosine(self._by_position)

    def cosine_by_domain(self) -> Float64s:
        """Cosine of stored centre and that of a text, [n_domain, n_head]."""
        return self._cosine(self._by_domain)

    def _cosine(self, sums: Float64s) -> Float64s:
        length = np.linalg.norm(sums, axis=-1) * np.linalg.norm(self.q_mean, axis=-1)
        return np.asarray((sums * self.q_mean).sum(axis=-1) / np.where(length > 0, length, np.nan))

    def _gather(self, q_pre: Floats, domain: int, n_skip: int) -> None:
        q = np.asarray(q_pre[n_skip:], np.float64)
        far = np.linalg.norm(q - self.q_mean, axis=-1) / np.linalg.norm(self.q_mean, axis=-1)
        for head, one in enumerate(far.T):
            self.spread[head] += np.histogram(np.minimum(one, SPREAD_EDGES[-1]), SPREAD_EDGES)[0]
        self._by_domain[domain] += q.sum(axis=0)
        for i, (first, end) in enumerate(itertools.pairwise(POSITION_EDGES)):
            part = np.asarray(q_pre[max(first, n_skip) : end], np.float64)
            self._by_position[i] += part.sum(axis=0)

    def _look_at_heavy(
        self, head: int, attention: Floats, future: npt.NDArray[np.int64], k_rot: Floats, k_norm: Floats
    ) -> None:
        """How often a query's most attended keys lie where the curve is below its median, and what saves them."""
        centre = np.broadcast_to(self.q_mean[head], (len(future), self.q_mean.shape[1]))
        k_trig = scoring.rope(centre, future, self.params) @ k_rot.T
        for row, i in enumerate(future):
            candidates = np.arange(N_SINK, i - N_WINDOW)
            top = candidates[np.argsort(-attention[row, candidates], kind="stable")[:N_HEAVY]]
            curve = self._every_distance[head, i - candidates]
            place = top - N_SINK
            low = curve[place] < np.median(curve)
            self.heavy[0, head] += len(top)
            self.heavy[1, head] += low.sum()
            trig, norm = k_trig[row, candidates], k_norm[candidates]
            for n, score in enumerate((norm, trig, trig + norm), start=2):
                self.heavy[n, head] += (low & (score[place] >= np.median(score))).sum()

    def _compare_sets(self, mass: Float64s, k_rot: Floats, t: int, candidates: npt.NDArray[np.int64]) -> None:
        """Tokens that a method keeps at position t, beside those that later queries attend to."""
        n_head_kv = k_rot.shape[1]
        wanted = mass.reshape(n_head_kv, -1, len(candidates)).mean(axis=1)
        keys = k_rot[candidates]
        scores = {
            terms: scoring.group_max(
                scoring.zscore(scoring.score(self.q_mean, self.q_abs, keys, t, self.params, terms=terms)), n_head_kv
            )
            for terms in TERMS
        }
        for m, method in enumerate(METHODS):
            if method == "recent":
                ranks = np.broadcast_to(scoring.score_streaming(candidates), wanted.shape)
            else:
                ranks = scoring.score_knorm(keys) if method == "knorm" else scores[method]  # type: ignore[index]
            for f, fraction in enumerate(FRACTIONS):
                n = max(1, round(fraction * len(candidates)))
                kept, best = scoring.keep_top(ranks, n), scoring.keep_top(wanted, n)
                common = [len(np.intersect1d(a, b)) / n for a, b in zip(kept, best, strict=True)]
                self.overlap[m, f] += common
                total = wanted.sum(axis=-1)
                self.mass[m, f] += np.take_along_axis(wanted, kept, -1).sum(-1) / total
                if m == 0:
                    self.mass[-1, f] += np.take_along_axis(wanted, best, -1).sum(-1) / total


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model, all layers together."""

    corpus: str
    """name and sha256 of the held-out text"""
    engine: str
    n_tokens: int
    domains: tuple[str, ...]
    layers: tuple[int, ...]
    """model layers, in the order of ``of_layers``"""
    of_layers: tuple[LayerEvidence, ...]

    def over_heads(self, per_layer: Callable[[LayerEvidence], Float64s]) -> Float64s:
        """One figure of every head, the last axis of what is asked of a layer, over all layers."""
        return np.concatenate([np.asarray(per_layer(layer)) for layer in self.of_layers], axis=-1)

    def of_sets(self, per_layer: Callable[[LayerEvidence], Float64s]) -> Float64s:
        """Mean over heads, layers and sequences of ``overlap`` or ``mass``: [n_method, n_fraction]."""
        means = [per_layer(layer).mean(axis=-1) / layer.n_sequences for layer in self.of_layers]
        return np.asarray(np.mean(means, axis=0))

    def spread_quantiles(self, *q: float) -> list[float]:
        """Quantiles over all queries of the distance to their centre, in lengths of the centre."""
        counts = sum(layer.spread.sum(axis=0) for layer in self.of_layers)
        share = np.cumsum(counts) / np.sum(counts)
        return [float(SPREAD_EDGES[1 + np.searchsorted(share, one)]) for one in q]

    def heavy(self) -> dict[str, float]:
        """How often heavily attended keys lie at a non-preferred distance, and what raises those."""
        n, low, by_norm, by_trig, by_both = sum(layer.heavy.sum(axis=-1) for layer in self.of_layers)
        low_all = max(low, 1)
        return {
            "at_non_preferred_distance": low / n,
            "of_these_high_by_norm": by_norm / low_all,
            "of_these_high_by_trig": by_trig / low_all,
            "of_these_high_by_both": by_both / low_all,
        }

    def verdict(self) -> tuple[Verdict, str]:
        """Whether the statistics are fit to evict by, and what to expect, in words.

        Measured by what they are for: how much of what full attention would look at is among the tokens that the score
        keeps, beside chance, and beside the better of two choices that need no statistics.
        """
        overlap, mass = self.of_sets(lambda e: e.overlap), self.of_sets(lambda e: e.mass)
        chance = FRACTIONS[MAIN_FRACTION]
        found = float(overlap[0, MAIN_FRACTION])
        name, other = max(
            (
                ("the most recent ones", overlap[METHODS.index("recent"), MAIN_FRACTION]),
                ("keys of small norm", overlap[METHODS.index("knorm"), MAIN_FRACTION]),
            ),
            key=lambda pair: pair[1],
        )
        # what full attention attends to is by chance as likely kept as not; of what is above chance, so much is found
        gain = (found - chance) / (1 - chance)
        share = float(mass[0, MAIN_FRACTION] / mass[-1, MAIN_FRACTION])
        told = (
            f"of the {chance:.0%} of tokens that are attended to most the score keeps {found:.0%} ({name}: "
            f"{other:.0%}, chance: {chance:.0%}), which is {share:.0%} of the attention that any choice could keep"
        )
        if gain >= HOLDS and found > other:
            expect = "expect answers near those of full attention while a quarter of the context or more is kept"
            return "hold", f"the statistics hold for this model: {told}; {expect}"
        if gain >= HOLDS_IN_PART:
            expect = "expect more to be lost than with other models: give a larger --budget, and try eval --quick"
            return "hold in part", f"the statistics hold in part for this model: {told}; {expect}"
        expect = "measure them anew (triattn-local convert --force), or evict without them (--policy streaming)"
        return "do not hold", f"the statistics do not hold for this model: {told}; {expect}"

    def lines(self) -> list[tuple[str, str]]:
        """The same for a person: names and figures."""
        near, middle, far = self.spread_quantiles(0.05, 0.5, 0.95)
        curve = self.over_heads(LayerEvidence.pearson_curve).mean()
        single = self.over_heads(LayerEvidence.pearson_logits).mean()
        overlap, mass = self.of_sets(lambda e: e.overlap), self.of_sets(lambda e: e.mass)
        by_domain = np.median(self.over_heads(LayerEvidence.cosine_by_domain), axis=-1)
        terms = ", ".join(f"{name} {overlap[i, MAIN_FRACTION]:.0%}" for i, name in enumerate(METHODS))
        heavy = self.heavy()
        return [
            ("held-out text", f"{self.n_tokens:,} tokens of {self.corpus}, {self.engine} engine"),
            ("distance to centre", f"{middle:.2f} of the centre's length (5 to 95 %: {near:.2f} to {far:.2f})"),
            (
                "centres by text",
                ", ".join(f"{name} {one:.3f}" for name, one in zip(self.domains, by_domain, strict=True))
                + " (cosine with the stored ones, median of heads)",
            ),
            (
                "curve over distance",
                f"Pearson {curve:.2f} with mean logits, {single:.2f} with single ones (mean of heads)",
            ),
            (f"overlap at {FRACTIONS[MAIN_FRACTION]:.0%}", f"{terms}; chance {FRACTIONS[MAIN_FRACTION]:.0%}"),
            ("attention kept", f"{mass[0, MAIN_FRACTION]:.0%} by the score, {mass[-1, MAIN_FRACTION]:.0%} at best"),
            (
                "heavy keys",
                f"{heavy['at_non_preferred_distance']:.0%} lie at a non-preferred distance, of which the score ranks "
                f"{heavy['of_these_high_by_both']:.0%} in the upper half",
            ),
        ]

    def as_dict(self) -> dict[str, object]:
        """A summary for JSON: medians and means over heads."""

        def rounded(values: Float64s) -> list[float]:
            return [round(float(value), 4) for value in np.atleast_1d(values)]

        curve = self.over_heads(LayerEvidence.pearson_curve)
        sets = {"overlap": self.of_sets(lambda e: e.overlap), "attention_kept": self.of_sets(lambda e: e.mass)}
        names = {"overlap": METHODS, "attention_kept": (*METHODS, "best_possible")}
        by_position = np.median(self.over_heads(LayerEvidence.cosine_by_position), axis=-1)
        ranges = [f"{a}-{b}" for a, b in itertools.pairwise(POSITION_EDGES)]
        return {
            "verdict": self.verdict()[0],
            "corpus": self.corpus,
            "engine": self.engine,
            "n_tokens": self.n_tokens,
            "distance_to_centre_quantiles_5_50_95": [round(x, 3) for x in self.spread_quantiles(0.05, 0.5, 0.95)],
            "cosine_by_domain_median": dict(
                zip(
                    self.domains,
                    rounded(np.median(self.over_heads(LayerEvidence.cosine_by_domain), axis=-1)),
                    strict=True,
                )
            ),
            "cosine_by_position_median": {
                name: round(float(value), 4) for name, value in zip(ranges, by_position, strict=True) if value == value
            },
            "pearson_curve": {"mean": round(float(curve.mean()), 4), "median": round(float(np.median(curve)), 4)},
            "pearson_logits_mean": round(float(self.over_heads(LayerEvidence.pearson_logits).mean()), 4),
            "fractions": list(FRACTIONS),
            **{
                key: {name: rounded(row) for name, row in zip(names[key], values, strict=True)}
                for key, values in sets.items()
            },
            "heavily_attended_keys": {name: round(value, 4) for name, value in self.heavy().items()},
        }
