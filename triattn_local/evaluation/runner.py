"""The grid: every case of every task, by every method, at every kept fraction.

A line is written and synced as soon as it is known, so that a run that was stopped goes on with the next one. What full
attention said of a case is kept beside the lines, in `reference/`: the other methods are compared with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.context_options import ContextOptions
from triattn_local.engine.contexts import Context, Model
from triattn_local.errors import TriattnError, UsageError
from triattn_local.support.atomic import write_whole
from triattn_local.version import __version__

from .methods import FULL, Method
from .tasks import Case, Size, Task

FRACTIONS = (0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True)
class Line:
    """One method on one case: quality, with the rounds and the memory that it was had for."""

    task: str
    case: str
    method: str
    kept: float
    """fraction of n_tokens that each head keeps; 1.0 for full attention"""
    n_tokens: int
    budget: int
    window: int
    n_rounds: int
    n_cells: int
    n_cells_used_max: int
    """most cells that were in use after any batch"""
    kv_bytes: int
    elapsed_s: float
    metrics: dict[str, float | str]
    axis: float | None = None

    @property
    def key(self) -> tuple[str, str, str, float]:
        return (self.task, self.case, self.method, self.kept)


@dataclass(frozen=True)
class Grid:
    """What is to be run."""

    tasks: Sequence[Task]
    methods: Sequence[Method]
    fractions: Sequence[float] = FRACTIONS
    size: Size = dataclasses.field(default_factory=Size)
    eviction: EvictionConfig = dataclasses.field(default_factory=EvictionConfig)
    """window, n_keep and what else the methods leave as it is"""


@dataclass(frozen=True)
class Step:
    """How far the grid is, told before each line."""

    n_done: int
    n_total: int
    task: str
    case: str
    method: str
    kept: float

    @property
    def text(self) -> str:
        return f"{self.task} {self.case}, {self.method}" + (f" at {self.kept:g}" if self.kept < 1.0 else "")


def run_grid(
    path: Path,
    config: RuntimeConfig,
    grid: Grid,
    out: Path,
    *,
    stats_path: Path | None = None,
    progress: Callable[[Step], None] = lambda _: None,
) -> list[Line]:
    """Run what is missing from the folder `out`, and return all its lines that belong to the grid.

    Raises
    ------
    UsageError
        The folder holds a run of another model or with other settings; a kept fraction leaves no room for the window.
    TriattnError
        A method did not forget where it should have: its figures would be full attention's.
    """
    for fraction in grid.fractions:
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"{fraction:g} is no fraction between 0 and 1", where="--kept")
    with Model(path, config, stats_path) as model:
        _check_folder(out, path, model, config, grid)
        lines = {line.key: line for line in read_lines(out)}
        todo = list(_steps(model, grid))
        for n_done, (task, case, method, kept) in enumerate(todo):
            if (task.name, case.name, method.name, kept) in lines:
                continue
            progress(Step(n_done, len(todo), task.name, case.name, method.name, kept))
            line = _run(model, task, case, method, kept, grid, out)
            lines[line.key] = line
            _append(out, line)
        return [lines[task.name, case.name, method.name, kept] for task, case, method, kept in todo]


def _steps(model: Model, grid: Grid) -> Iterator[tuple[Task, Case, Method, float]]:
    """Case by case, full attention first: a run that is stopped has whole comparisons."""
    for task in grid.tasks:
        for case in task.cases(model, grid.size):
            for method in grid.methods:
                for kept in (1.0,) if method.name == FULL else grid.fractions:
                    if method.name != FULL:
                        method.eviction(grid.eviction, round(kept * case.n_tokens))  # raises if it cannot be
                    yield task, case, method, kept


class _Watched(Context):
    """A context that notes how many cells it ever used, and what it had done when it was closed."""

    n_cells_used_max = 0
    done: native.EngineStats

    def decode(self, tokens: Sequence[int], n_logits: int = 0) -> Any:
        logits = super().decode(tokens, n_logits)
        if len(tokens) > 1 or self.n_past % 64 == 0:
            self.n_cells_used_max = max(self.n_cells_used_max, self.stats().n_cells_used)
        return logits

    def close(self) -> None:
        self.done = self.stats()
        super().close()


def _run(model: Model, task: Task, case: Case, method: Method, kept: float, grid: Grid, out: Path) -> Line:
    budget = 0 if method.name == FULL else round(kept * case.n_tokens)
    eviction = method.eviction(grid.eviction, budget)
    opened: list[_Watched] = []

    def open_context(n_tokens: int) -> Context:
        context = _Watched(model, eviction, ContextOptions.of(model.config, n_tokens + 1, 1))
        opened.append(context)
        if method.attach is not None:
            method.attach(context)
        return context

    reference = out / "reference" / f"{task.name}-{case.name}.npz"
    partial = reference.with_suffix(".partial")
    reference.parent.mkdir(exist_ok=True)
    start_s = time.perf_counter()
    metrics = task.run(
        model,
        case,
        budget,
        open_context,
        partial if method.name == FULL else reference,
    )
    elapsed_s = time.perf_counter() - start_s
    if method.name == FULL and partial.exists():
        partial.replace(reference)
    n_rounds = sum(context.done.n_rounds for context in opened)
    n_seen = max(context.n_past for context in opened)
    if eviction is not None and n_rounds == 0 and n_seen > budget + eviction.window + model.config.n_batch:
        raise TriattnError(
            f"{method.name} with a budget of {budget} forgot nothing in {n_seen} tokens",
            where=f"{task.name} {case.name}",
        )
    return Line(
        task=task.name,
        case=case.name,
        method=method.name,
        kept=kept,
        n_tokens=case.n_tokens,
        budget=budget,
        window=0 if eviction is None else eviction.window,
        n_rounds=n_rounds,
        n_cells=max(context.done.n_cells for context in opened),
        n_cells_used_max=max(context.n_cells_used_max for context in opened),
        kv_bytes=max(context.done.kv_bytes + context.done.kv_bytes_other for context in opened),
        elapsed_s=round(elapsed_s, 2),
        metrics=dict(metrics),
        axis=case.axis,
    )


# ------------------------------------------------------------------ the folder


def _settings(path: Path, model: Model, config: RuntimeConfig, grid: Grid) -> dict[str, Any]:
    """What must be the same for two lines to stand in one table."""
    size = asdict(grid.size)
    size["texts"] = None if grid.size.texts is None else list(grid.size.texts)
    size["problems"] = None if grid.size.problems is None else str(grid.size.problems)
    eviction = asdict(grid.eviction)
    del eviction["budget_tokens"]
    return {
        "version": __version__,
        "model": path.name,
        "fingerprint": native.fingerprint(model.handle),
        "batch": config.n_batch,
        "cache_type_k": config.cache_type_k,
        "cache_type_v": config.cache_type_v,
        "flash_attn": config.flash_attn,
        "eviction": eviction,
        "size": size,
    }


def _check_folder(out: Path, path: Path, model: Model, config: RuntimeConfig, grid: Grid) -> None:
    settings = _settings(path, model, config, grid)
    file = out / "settings.json"
    out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_whole(file, json.dumps(settings, indent=2).encode() + b"\n")
        return
    before = read_settings(out)
    for name, value in settings.items():
        if before.get(name) != value:
            raise UsageError(
                f"holds a run with {name} = {before.get(name)}, this one has {value}",
                where=str(out),
                fix="give another folder with --out",
            )


def read_settings(out: Path) -> dict[str, Any]:
    file = out / "settings.json"
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"no run can be read from it: {err}", where=str(file), fix="give another --out") from err
    if not isinstance(settings, dict):
        raise UsageError("no run can be read from it: not an object", where=str(file), fix="give another --out")
    return settings


def _append(out: Path, line: Line) -> None:
    with (out / "lines.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(out: Path) -> list[Line]:
    """Lines of a run's folder. A last line that a crash cut off is dropped, and cut from the file.

    Raises
    ------
    UsageError
        Another line cannot be read.
    """
    file = out / "lines.jsonl"
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(file, len(whole))
    lines = []
    for number, text in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            lines.append(Line(**json.loads(text)))
        except (ValueError, TypeError) as err:
            raise UsageError(
                f"line {number} is damaged: {err}", where=str(file), fix="remove the line, and run it again"
            ) from err
    return lines
