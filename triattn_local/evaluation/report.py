"""Rows to what a person reads: a table for the terminal, Markdown, and remarks that a table does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .methods import FULL
from .summary import MAIN, Interval, SummaryRow
from .tasks import TASKS, Metric


def show(metric: Metric, interval: Interval) -> str:
    """A mean with its interval: "+0.0123 ± 0.0040", or "10 of 12" for right answers."""
    if metric.is_share:
        return f"{interval.mean * interval.n:.5g} of {interval.n}"
    sign = "+" if metric.name.endswith("_diff") else ""
    return _with_interval(interval, sign)


def _with_interval(interval: Interval, sign: str) -> str:
    text = f"{interval.mean:{sign}.4f}"
    return f"{text} ± {interval.half:.4f}" if math.isfinite(interval.half) else text


def table(rows: Sequence[SummaryRow], task: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and cells of one task's table, full attention first, then by kept fraction."""
    metrics = TASKS[task].metrics
    chosen = [row for row in rows if row.task == task]
    compares = any(row.against is not None for row in chosen)
    more = (f"{TASKS[task].main} against {MAIN}",) if compares else ()
    columns = ("method", "kept", "budget", *(m.name for m in metrics), *more, "rounds", "cells used", "KV")
    cells = []
    for row in sorted(chosen, key=lambda row: -row.kept):
        is_full = row.method == FULL
        cells.append(
            (
                row.method,
                "all" if is_full else f"{row.kept:.4g}",
                "" if is_full else f"{row.budget:,}",
                *(show(m, row.metrics[m.name]) for m in metrics),
                *(("" if row.against is None else _with_interval(row.against, "+"),) if compares else ()),
                "" if is_full else f"{row.n_rounds:.0f}",
                "" if is_full else f"{row.n_cells_used_max:,} of {row.n_cells:,}",
                "1" if is_full else f"1/{row.kv_ratio:.1f}",
            )
        )
    return columns, cells


def remarks(rows: Sequence[SummaryRow]) -> list[str]:
    """What must be known to read the tables: tasks that the model cannot do with all of its cache."""
    res = []
    usual = max((row.window for row in rows), default=0)
    for row in rows:
        if row.method == MAIN and row.window < usual:
            res.append(f"{row.task} at {row.kept:g}: a window of {row.window} tokens, the budget has no room for more.")
        main = next(m for m in TASKS[row.task].metrics if m.name == TASKS[row.task].main)
        if row.method == FULL and main.is_share and row.metrics[main.name].mean < 0.5:
            found = show(main, row.metrics[main.name])
            res.append(f"{row.task}: full attention itself gets {found}; this model is too small for the task.")
        if row.method != FULL and row.n_rounds < 1:
            res.append(
                f"{row.task}, {row.method} at {row.kept:g}: less than one round a case, hardly anything forgotten."
            )
    return res


def markdown(rows: Sequence[SummaryRow], title: str, command: str) -> str:
    """The tables of all tasks, with the command that made them."""
    parts = [f"# {title}\n\n    {command}\n"]
    for task in dict.fromkeys(row.task for row in rows):
        columns, cells = table(rows, task)
        lines = [
            f"## {task}: {TASKS[task].about}\n",
            "| " + " | ".join(columns) + " |",
            "|---" + "|---:" * (len(columns) - 1) + "|",
            *("| " + " | ".join(row) + " |" for row in cells),
        ]
        notes = "; ".join(f"{m.name}: {m.about}" for m in TASKS[task].metrics)
        n_cases = max(row.n_cases for row in rows if row.task == task)
        parts.append("\n".join(lines) + f"\n\n{notes}. Mean over {n_cases} cases ± 95 % interval.\n")
    parts += [f"{remark}\n" for remark in remarks(rows)]
    return "\n".join(parts)
