"""Quality against what is kept, one line a method with its interval: PNG, and one HTML page that opens offline.

Needs matplotlib. Writes no files.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from .methods import FULL
from .report import remarks, table
from .summary import Row
from .tasks import TASKS

_COLOURS = (
    "#0b6e4f", "#d1495b", "#00798c", "#edae49", "#66507a", "#8d5a2b", "#5f7d95", "#b5838d", "#3d405b", "#81b29a",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"


def figure(rows: Sequence[Row], task: str, title: str) -> Figure:
    """A task's main metric."""
    metric = next(m for m in TASKS[task].metrics if m.name == TASKS[task].main)
    chosen = [row for row in rows if row.task == task]
    fig = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = fig.add_subplot()
    methods = [name for name in dict.fromkeys(row.method for row in chosen) if name != FULL]
    fractions = sorted({row.kept for row in chosen if row.method != FULL})
    for i, name in enumerate(methods):
        points = sorted((row.kept, row.metrics[metric.name]) for row in chosen if row.method == name)
        shift = 1 + 0.012 * (i - (len(methods) - 1) / 2)  # intervals side by side
        means = [interval.mean for _, interval in points]
        finite = all(math.isfinite(interval.half) for _, interval in points)
        axes.errorbar(
            [kept * shift for kept, _ in points],
            means,
            yerr=[[x.mean - x.low for _, x in points], [x.high - x.mean for _, x in points]] if finite else None,
            label=name,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5,
            linewidth=1.6,
            capsize=2.5,
            elinewidth=0.9,
        )
    full = [row.metrics[metric.name].mean for row in chosen if row.method == FULL]
    if full:
        axes.axhline(full[0], color="#555555", linewidth=1.0, linestyle="--", label="full attention")
    axes.set_xscale("log", base=2)
    axes.set_xticks(fractions, [f"{100 * kept:.3g} %" for kept in fractions])
    axes.minorticks_off()
    axes.set_xlabel("tokens that each head keeps")
    axes.set_ylabel(metric.about, wrap=True)
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes.set_title(TASKS[task].about, fontsize=9, loc="left", color="#555555")
    axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return fig


def png(rows: Sequence[Row], task: str, title: str) -> bytes:
    buffer = io.BytesIO()
    figure(rows, task, title).savefig(buffer, format="png")
    return buffer.getvalue()


def page(rows: Sequence[Row], title: str, command: str) -> str:
    """Plots as SVG and the tables below them, nothing fetched."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        svg = io.StringIO()
        figure(rows, task, title).savefig(svg, format="svg")
        columns, cells = table(rows, task)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
        notes = "; ".join(f"{m.name}: {m.about}" for m in TASKS[task].metrics)
        drawing = svg.getvalue()
        parts.append(
            f"<h2>{html.escape(task)}</h2><p>{html.escape(TASKS[task].about)}</p>{drawing[drawing.index('<svg') :]}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p class=note>{html.escape(notes)}</p>"
        )
    parts += [f"<p class=note>{html.escape(remark)}</p>" for remark in remarks(rows)]
    return _PAGE.format(title=html.escape(title), command=html.escape(command), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
svg {{ max-width: 46rem; width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ text-align: right; padding: .15rem .7rem; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
.note, code {{ color: #666; font-size: .9em; }}
</style></head><body>
<h1>{title}</h1>
<p><code>{command}</code></p>
{body}
</body></html>
"""
