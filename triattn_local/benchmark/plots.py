"""Speed and memory over depth, a row of pictures for each model. Drawn from reports; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..support.plotting import BLUE, GREY, ORANGE, Picture, style
from .report import BenchReport, Point


def picture(reports: Sequence[BenchReport]) -> Picture:
    """Decode speed, prompt speed and KV bytes of every model."""
    with style():
        figure = Figure(figsize=(10, 0.6 + 2.9 * len(reports)))
        grid = figure.subplots(len(reports), 3, squeeze=False)
        for axes, report in zip(grid, reports, strict=True):
            _decode(axes[0], report)
            _prefill(axes[1], report)
            _memory(axes[2], report)
            for ax in axes:
                depths = [row.depth for row in report.rows]
                ax.set_xscale("log", base=2)
                ax.set_xticks(depths, [_thousands(depth) for depth in depths])
                ax.minorticks_off()
                ax.set_ylim(0)
        for ax in grid[-1]:
            ax.set_xlabel("logical depth, tokens")
    return Picture(
        "bench",
        "Full attention and TriAttention by depth",
        "Decode speed of all sequences together, with the range of the blocks; the dotted line is full attention at a "
        "depth of the budget. KV bytes are those of one sequence.",
        figure,
    )


def _thousands(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}"


def _decode(ax: Axes, report: BenchReport) -> None:
    full = [row.full for row in report.rows if row.full is not None]
    limit = [(row.depth, row.limit.decode_tps) for row in report.rows]
    ax.plot(*zip(*limit, strict=True), color=ORANGE, linestyle=":", linewidth=1.4, label="limit")
    _with_range(ax, full, GREY, "full attention")
    _with_range(ax, [row.evicting for row in report.rows], BLUE, report.policy)
    ax.set_title(report.model.removesuffix(".gguf"))
    ax.set_ylabel("decode, tok/s")
    ax.legend()


def _with_range(ax: Axes, points: Sequence[Point], colour: str, name: str) -> None:
    if not points:
        return
    middle = [p.decode_tps for p in points]
    below = [p.decode_tps - p.decode_tps_min for p in points]
    above = [p.decode_tps_max - p.decode_tps for p in points]
    ax.errorbar(
        [p.depth for p in points], middle, [below, above], color=colour, marker="o", markersize=4, capsize=2, label=name
    )


def _prefill(ax: Axes, report: BenchReport) -> None:
    full = [(row.depth, row.full.prefill_tps) for row in report.rows if row.full is not None]
    if full:
        ax.plot(*zip(*full, strict=True), color=GREY, marker="o", markersize=4)
    evicting = [(row.depth, row.evicting.prefill_tps) for row in report.rows]
    ax.plot(*zip(*evicting, strict=True), color=BLUE, marker="o", markersize=4)
    ax.set_title(f"budget {report.budget:,}, window {report.window}")
    ax.set_ylabel("prompt, tok/s")


def _memory(ax: Axes, report: BenchReport) -> None:
    depths = [row.depth for row in report.rows]
    unit, name = (2**30, "GiB") if report.rows[-1].kv_bytes_full >= 2**30 else (2**20, "MiB")
    fits = {row.depth for row in report.rows if row.full is not None}
    ax.plot(depths, [row.kv_bytes_full / unit for row in report.rows], color=GREY)
    for row in report.rows:
        ax.plot(
            row.depth,
            row.kv_bytes_full / unit,
            color=GREY,
            marker="o" if row.depth in fits else "x",
            markersize=4 if row.depth in fits else 7,
        )
    ax.plot(
        depths,
        [row.evicting.kv_bytes / row.evicting.n_seq / unit for row in report.rows],
        color=BLUE,
        marker="o",
        markersize=4,
    )
    if len(fits) < len(depths):
        ax.set_title("x: does not fit")
    ax.set_ylabel(f"KV cache of a sequence, {name}")
