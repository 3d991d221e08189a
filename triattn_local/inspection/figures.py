"""One function a picture. Each takes figures that are ready, and draws them; nothing is computed here but quantiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..model.model_info import ModelInfo
from ..model.stats import HIGH_R, TriattnStats
from ..support.plotting import BLUE, GREEN, GREY, ORANGE, RED, Picture, style
from .evidence import FRACTIONS, MAIN_FRACTION, METHODS, POSITION_EDGES, SPREAD_EDGES, Evidence, LayerEvidence

_LABELS = {
    "both": "TriAttention",
    "trig": "trigonometric term alone",
    "norm": "norm term alone",
    "recent": "most recent tokens",
    "knorm": "keys of small norm",
}
_COLOURS = {"both": BLUE, "trig": GREEN, "norm": RED, "recent": GREY, "knorm": ORANGE}

Array = npt.NDArray[np.float64]


def pictures(info: ModelInfo, stats: TriattnStats, evidence: Evidence | None) -> Iterator[Picture]:
    """All that can be drawn: of statistics alone their concentration, the rest of what was measured."""
    with style():
        yield _concentration(info, stats)
    if evidence is not None:
        for draw in (_spread, _stability, _curves, _pearson, _overlap, _overlap_by_head, _heavy):
            with style():
                yield draw(evidence)


@contextmanager
def _no_grid(ax: Axes) -> Iterator[None]:
    yield
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _heatmap(ax: Axes, rows: list[Array], layers: tuple[int, ...], low: float, high: float, label: str) -> None:
    """Layers downwards, heads to the right; layers may have different numbers of heads. No label, no colour bar."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    with _no_grid(ax):
        image = ax.imshow(table, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    step = max(1, -(-len(layers) // 12))
    ax.set_yticks(range(0, len(layers), step), [str(il) for il in layers[::step]])
    ax.set_xticks(range(0, table.shape[1], max(1, table.shape[1] // 8)))
    if label:
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
        bar.set_label(label)
        bar.outline.set_visible(False)


def _concentration(info: ModelInfo, stats: TriattnStats) -> Picture:
    rows = list(stats.head_concentration(info))
    r = np.concatenate(rows)
    figure = Figure(figsize=(9, 3.9))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    low = min(0.9, float(np.floor(r.min() * 20) / 20))
    left.hist(r, bins=np.linspace(low, 1, 41), color=BLUE)
    left.axvline(HIGH_R, color=RED, linewidth=1.2, linestyle="--")
    left.set_title(f"{(r > HIGH_R).mean():.0%} of {len(r)} heads above {HIGH_R}")
    left.set_xlabel("mean resultant length R")
    left.set_ylabel("heads")
    _heatmap(right, rows, stats.layers, low, 1.0, "R")
    right.set_title("by layer and head")
    return Picture(
        "concentration",
        "Do the queries of a head point one way?",
        "R = |E q| / E|q| of each head's dominant frequency band, before RoPE: 1 if all queries have one direction, "
        f"0 if they cancel. Mean {r.mean():.3f}, smallest {r.min():.3f}.",
        figure,
    )


def _spread(evidence: Evidence) -> Picture:
    wanted = (0.05, 0.25, 0.5, 0.75, 0.95)
    lines = np.array([[_quantile(layer.spread.sum(axis=0), q) for q in wanted] for layer in evidence.of_layers])
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    x = np.arange(len(lines))
    left.fill_between(x, lines[:, 0], lines[:, 4], color=BLUE, alpha=0.15, linewidth=0, label="5 to 95 %")
    left.fill_between(x, lines[:, 1], lines[:, 3], color=BLUE, alpha=0.3, linewidth=0, label="25 to 75 %")
    left.plot(x, lines[:, 2], color=BLUE, marker="o", markersize=3, label="median")
    step = max(1, -(-len(x) // 12))
    left.set_xticks(x[::step], [str(il) for il in evidence.layers[::step]])
    left.set_ylim(0)
    left.set_xlabel("layer")
    left.set_ylabel("|q - q̄| / |q̄|")
    left.legend(loc="upper right", ncols=3)
    left.set_title("by layer")
    counts = np.sum([layer.spread.sum(axis=0) for layer in evidence.of_layers], axis=0)
    right.stairs(counts / counts.sum() * 100, SPREAD_EDGES, fill=True, color=BLUE)
    right.set_xlabel("|q - q̄| / |q̄|")
    right.set_ylabel("% of queries")
    right.set_title("all heads")
    _, middle, far = evidence.spread_quantiles(0.05, 0.5, 0.95)
    return Picture(
        "spread",
        "How far from the centre do queries lie?",
        f"Distance of single queries to their head's stored centre, in lengths of the centre, on held-out text: half "
        f"of all lie nearer than {middle:.2f}, 95 % nearer than {far:.2f}. The last bin holds all that is farther.",
        figure,
    )


def _quantile(counts: npt.NDArray[np.int64], q: float) -> float:
    """Of a histogram over SPREAD_EDGES, linear inside a bin."""
    share = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
    return float(np.interp(q, share, SPREAD_EDGES))


def _boxes(ax: Axes, columns: list[Array], names: list[str], colour: str) -> None:
    ax.boxplot(
        columns,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.55,
        boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    ax.set_xticks(range(1, len(names) + 1), names)
    ax.grid(axis="x", visible=False)


def _stability(evidence: Evidence) -> Picture:
    by_position = evidence.over_heads(LayerEvidence.cosine_by_position)
    by_domain = evidence.over_heads(LayerEvidence.cosine_by_domain)
    ranges = [f"{a} to\n{b}" for a, b in itertools.pairwise(POSITION_EDGES)]
    # ranges that no text was long enough for
    there = [i for i, row in enumerate(by_position) if np.isfinite(row).any()]
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.4, 1))
    _boxes(left, [by_position[i] for i in there], [ranges[i] for i in there], BLUE)
    left.set_xlabel("positions")
    left.set_ylabel("cosine with the stored centre")
    left.set_title("over positions")
    _boxes(right, list(by_domain), [name.removesuffix(".txt") for name in evidence.domains], GREEN)
    right.set_title("over texts")
    low = min(
        float(np.percentile(by_position[there], 5, axis=1).min()), float(np.percentile(by_domain, 5, axis=1).min())
    )
    left.set_ylim(min(0.9, low - 0.02), 1.002)
    worst = float(np.median(by_domain, axis=1).min())
    return Picture(
        "stability",
        "Does the centre stay where it is?",
        "Cosine between the stored centre of a head and the mean of its queries in a range of positions, or in one "
        "text that was not calibrated on. Boxes are quartiles of heads, whiskers 5 and 95 %. The text that fits least "
        f"has a median of {worst:.3f}.",
        figure,
    )


def _curves(evidence: Evidence) -> Picture:
    """Six heads from the best fit to the worst, so that nobody has chosen them."""
    heads = [(i, head) for i, layer in enumerate(evidence.of_layers) for head in range(len(layer.predicted))]
    r = evidence.over_heads(LayerEvidence.pearson_curve)
    order = np.argsort(-r, kind="stable")
    chosen = [order[round(q * (len(order) - 1))] for q in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots(2, 3, sharex=True).ravel()
    for ax, which, name in zip(
        axes,
        chosen,
        ("best", "better than 80 %", "better than 60 %", "better than 40 %", "better than 20 %", "worst"),
        strict=True,
    ):
        i, head = heads[int(which)]
        layer = evidence.of_layers[i]
        ax.semilogx(layer.distances, layer.measured[head], color=ORANGE, linewidth=2.4, label="measured")
        ax.semilogx(layer.distances, layer.predicted[head], color=BLUE, linewidth=1.5, label="from the centres")
        ax.set_title(f"layer {evidence.layers[i]}, head {head}: r = {r[int(which)]:.2f}")
        ax.annotate(name, (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", color=GREY)
    for ax in axes[3:]:
        ax.set_xlabel("distance in tokens")
    for ax in axes[::3]:
        ax.set_ylabel("attention logit")
    axes[0].legend(loc="lower left")
    return Picture(
        "curves",
        "Is the predicted preference for distances the real one?",
        "Lines: a_f cos ωΔ + b_f sin ωΔ, summed over bands, from the centres alone; and the mean logit of held-out "
        "text at that distance. Six heads by rank of their Pearson correlation, from the best to the worst.",
        figure,
    )


def _pearson(evidence: Evidence) -> Picture:
    curve = evidence.over_heads(LayerEvidence.pearson_curve)
    single = evidence.over_heads(LayerEvidence.pearson_logits)
    figure = Figure(figsize=(9, 3.1))
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, values, title, colour in (
        (left, curve, "with the mean logit at each distance", BLUE),
        (right, single, "with every single logit", GREEN),
    ):
        ax.hist(values, bins=np.linspace(-1, 1, 41), color=colour)
        ax.axvline(values.mean(), color=RED, linewidth=1.2, linestyle="--")
        ax.set_title(f"{title}: mean {values.mean():.2f}")
        ax.set_xlabel("Pearson correlation")
    left.set_ylabel("heads")
    return Picture(
        "pearson",
        "How well does the curve predict logits?",
        "Correlation of each head's predicted curve with logits of held-out text, at log-spaced distances. A single "
        "logit also depends on what the key says, which no curve over distance can know.",
        figure,
    )


def _overlap(evidence: Evidence) -> Picture:
    overlap, mass = evidence.of_sets(lambda e: e.overlap), evidence.of_sets(lambda e: e.mass)
    x = np.array(FRACTIONS) * 100
    figure = Figure(figsize=(9, 3.8))
    left, right = figure.subplots(1, 2)
    right.plot(x, mass[-1] * 100, color="black", linestyle=":", linewidth=1.5, label="best possible choice")
    for m, method in reversed(list(enumerate(METHODS))):
        style = {"color": _COLOURS[method], "marker": "o", "markersize": 4, "linewidth": 2.6 if m == 0 else 1.5}
        left.plot(x, overlap[m] * 100, label=_LABELS[method], **style)
        right.plot(x, mass[m] * 100, **style)
    for ax in (left, right):
        ax.plot(x, x, color=GREY, linestyle="--", linewidth=1, label="random" if ax is left else None)
        ax.set_xlabel("tokens kept, % of candidates")
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.set_ylim(0, 100)
    left.set_ylabel("% of most attended kept")
    left.set_title("overlap at k")
    right.set_ylabel("% of attention kept")
    right.set_title("attention kept")
    handles, labels = left.get_legend_handles_labels()
    more, names = right.get_legend_handles_labels()
    figure.legend(handles[::-1] + more, labels[::-1] + names, loc="outside lower center", ncols=4)
    return Picture(
        "overlap",
        "Does the score keep what full attention attends to?",
        "Halfway through each text every KV head keeps a share of the tokens so far; the second half then says what it "
        f"attends to. Of the most attended quarter, the score keeps {overlap[0, MAIN_FRACTION]:.0%}.",
        figure,
    )


def _overlap_by_head(evidence: Evidence) -> Picture:
    rows = [layer.overlap[0, MAIN_FRACTION] / layer.n_sequences for layer in evidence.of_layers]
    trig = [layer.overlap[1, MAIN_FRACTION] / layer.n_sequences for layer in evidence.of_layers]
    norm = [layer.overlap[2, MAIN_FRACTION] / layer.n_sequences for layer in evidence.of_layers]
    figure = Figure(figsize=(9, 3.9))
    titles = ("both terms", "trigonometric alone", "norm alone")
    for i, (ax, table, title) in enumerate(zip(figure.subplots(1, 3), (rows, trig, norm), titles, strict=True)):
        _heatmap(ax, table, evidence.layers, 0.0, 1.0, "overlap" if i == len(titles) - 1 else "")
        ax.set_xlabel("KV head")
        ax.set_title(title)
    return Picture(
        "overlap-by-head",
        "Which heads does it hold for?",
        f"Overlap at {FRACTIONS[MAIN_FRACTION]:.0%} of the candidates, for each layer and KV head; chance is "
        f"{FRACTIONS[MAIN_FRACTION]}.",
        figure,
    )


def _heavy(evidence: Evidence) -> Picture:
    found = evidence.heavy()
    per_head = evidence.over_heads(lambda e: e.heavy[1] / np.maximum(e.heavy[0], 1)) * 100
    figure = Figure(figsize=(9, 3.1))
    left, right = figure.subplots(1, 2)
    left.hist(per_head, bins=np.linspace(0, 100, 41), color=BLUE)
    left.axvline(50, color=GREY, linewidth=1, linestyle="--")
    left.annotate("chance", (51, 0.92), xycoords=("data", "axes fraction"), color=GREY)
    left.set_xlabel("% of heavily attended keys at a non-preferred distance")
    left.set_ylabel("heads")
    left.set_title(f"{found['at_non_preferred_distance']:.0%} over all heads")
    names = ["norm term", "trigonometric term,\nkey's own direction", "both: TriAttention"]
    values = [found[f"of_these_high_by_{term}"] * 100 for term in ("norm", "trig", "both")]
    bars = right.bar(names, values, color=[RED, GREEN, BLUE], width=0.5)
    right.bar_label(bars, fmt="%.0f %%", padding=3)
    right.set_ylim(0, 110)
    right.set_yticks(range(0, 101, 20))
    right.set_ylabel("% of these keys")
    right.grid(axis="x", visible=False)
    right.set_title("ranked in the upper half nevertheless, by")
    return Picture(
        "heavy",
        "How often does distance alone mislead?",
        "The 16 most attended candidates of a query, where the head's curve at their distance is below its median. "
        "The score knows each key's own direction and length, not only its distance, and so ranks many of them high.",
        figure,
    )
