"""Lines to means with intervals. Knows nothing of models and files.

Means over cases, each case counted once. The interval holds the mean of other cases like these with 95 % probability:
Student's t for quantities, Wilson's for shares of right answers, which a few cases cannot pin down, all right or not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .methods import FULL
from .runner import Line
from .tasks import TASKS, Metric

# t of 97.5 % for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
_Z = 1.96

MAIN = "per-layer-head"
"""the method that others are compared with: the engine's default"""


@dataclass(frozen=True)
class Interval:
    """A mean of n values, and where that of others would lie."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class SummaryRow:
    """One method at one kept fraction of one task."""

    task: str
    method: str
    kept: float
    budget: int
    window: int
    n_cases: int
    metrics: dict[str, Interval]
    against: Interval | None
    """main metric minus that of MAIN at the same kept fraction, case by case; None for MAIN and full attention"""
    n_rounds: float
    """mean over the cases"""
    n_cells: int
    n_cells_used_max: int
    kv_bytes: int
    kv_ratio: float
    """full attention's KV bytes over this one's, 1.0 for full attention"""

    def as_dict(self) -> dict[str, object]:
        res = asdict(self)
        res["metrics"] = {name: _finite(values) for name, values in res["metrics"].items()}
        res["against"] = res["against"] and _finite(res["against"])
        return res


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t; a single value tells nothing of the spread, its interval is all numbers."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = (_T[n - 2] if n - 2 < len(_T) else _Z) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def share_interval(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """Wilson's score interval of values that are 0 or 1, or shares of several answers; weights: of how many each."""
    n = len(values) if weights is None else round(sum(weights))
    p = statistics.fmean(values, weights)
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return Interval(p, max(centre - half, 0.0), min(centre + half, 1.0), n)


def _interval(metric: Metric, lines: Sequence[Line]) -> Interval:
    values = [float(line.metrics[metric.name]) for line in lines]
    if not metric.is_share:
        return mean_interval(values)
    return share_interval(values, [float(line.metrics[metric.of]) for line in lines] if metric.of else None)


def summarise(lines: Iterable[Line]) -> list[SummaryRow]:
    """A row for each task, method and kept fraction, in the order of the lines."""
    lines = list(lines)
    groups: dict[tuple[str, str, float], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.task, line.method, line.kept), []).append(line)
    full = {task: max(x.kv_bytes for x in group) for (task, _, kept), group in groups.items() if kept == 1.0}
    rows = []
    for (task, method, kept), group in groups.items():
        kv_bytes = max(line.kv_bytes for line in group)
        rows.append(
            SummaryRow(
                task=task,
                method=method,
                kept=kept,
                budget=round(statistics.fmean(line.budget for line in group)),
                window=min(line.window for line in group),
                n_cases=len(group),
                metrics={metric.name: _interval(metric, group) for metric in TASKS[task].metrics},
                against=None if method in (FULL, MAIN) else paired(lines, task, TASKS[task].main, kept, method, MAIN),
                n_rounds=statistics.fmean(line.n_rounds for line in group),
                n_cells=max(line.n_cells for line in group),
                n_cells_used_max=max(line.n_cells_used_max for line in group),
                kv_bytes=kv_bytes,
                kv_ratio=full.get(task, kv_bytes) / kv_bytes,
            )
        )
    return rows


def paired(lines: Iterable[Line], task: str, metric: str, kept: float, method: str, other: str) -> Interval | None:
    """Difference method - other, case by case: what the two have in common (the text) is gone from the interval.

    None if they have no case in common.
    """
    values: dict[str, dict[str, float]] = {method: {}, other: {}}
    for line in lines:
        if line.task == task and line.kept == kept and line.method in values:
            values[line.method][line.case] = float(line.metrics[metric])
    common = [case for case in values[method] if case in values[other]]
    if not common:
        return None
    return mean_interval([values[method][case] - values[other][case] for case in common])
