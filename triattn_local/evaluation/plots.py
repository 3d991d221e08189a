"""Quality against what is kept, one line a method with its interval: a picture of each task, and a page of all.

Needs matplotlib. Writes no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from ..support.html import document, inline, section
from ..support.plotting import COLOURS, GREY, Picture, style
from .methods import FULL
from .report import remarks, table
from .summary import SummaryRow
from .tasks import TASKS

_MARKERS = "osD^vPX*<>"


def picture(rows: Sequence[SummaryRow], task: str, title: str) -> Picture:
    """A task's main metric."""
    about = TASKS[task].about
    notes = "; ".join(f"{m.name}: {m.about}" for m in TASKS[task].metrics)
    with style():
        return Picture(task, f"{task}: {about}", f"{notes}.", _figure(rows, task, title))


def page(rows: Sequence[SummaryRow], title: str, command: str) -> str:
    """Pictures, the tables below them, and what must be known to read them."""
    pictures = [picture(rows, task, title) for task in dict.fromkeys(row.task for row in rows)]
    parts = [section(p.title, p.reading, inline(p) + _table(*table(rows, p.name))) for p in pictures]
    parts += [f"<p>{escape(remark)}</p>\n" for remark in remarks(rows)]
    return document(title, title, command, *parts)


def _figure(rows: Sequence[SummaryRow], task: str, title: str) -> Figure:
    metric = next(m for m in TASKS[task].metrics if m.name == TASKS[task].main)
    chosen = [row for row in rows if row.task == task]
    figure = Figure(figsize=(7.2, 4.4))
    axes = figure.add_subplot()
    methods = [name for name in dict.fromkeys(row.method for row in chosen) if name != FULL]
    fractions = sorted({row.kept for row in chosen if row.method != FULL})
    for i, name in enumerate(methods):
        points = sorted((row.kept, row.metrics[metric.name]) for row in chosen if row.method == name)
        shift = 1 + 0.012 * (i - (len(methods) - 1) / 2)  # intervals side by side
        finite = all(math.isfinite(interval.half) for _, interval in points)
        axes.errorbar(
            [kept * shift for kept, _ in points],
            [interval.mean for _, interval in points],
            yerr=[[x.mean - x.low for _, x in points], [x.high - x.mean for _, x in points]] if finite else None,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5,
            linewidth=1.6,
            capsize=2.5,
            elinewidth=0.9,
        )
    full = [row.metrics[metric.name].mean for row in chosen if row.method == FULL]
    if full:
        axes.axhline(full[0], color=GREY, linestyle="--", label="full attention")
    axes.set_xscale("log", base=2)
    axes.set_xticks(fractions, [f"{100 * kept:.3g} %" for kept in fractions])
    axes.minorticks_off()
    axes.set_xlabel("tokens that each head keeps")
    axes.set_ylabel(metric.about, wrap=True)
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_title(TASKS[task].about)
    axes.legend(ncols=2)
    return figure


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="numbers"><tr>{head}</tr>{body}</table></div>'
