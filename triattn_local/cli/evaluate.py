"""What forgetting costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..settings import Settings
from ..support import console
from .app import app
from .flags import CACHE, COMPUTE, AsJson, Given, Model, Verbose, grid_option, option, switch, with_settings


@app.command("eval")
@with_settings(
    "temp", CACHE, COMPUTE, without=("ctx", "rope_scaling", "budget", "mode", "policy", "cold", "yield_cores")
)
def evaluate(
    *,
    model: Model,
    tasks: Annotated[
        str,
        grid_option(
            "--tasks",
            "NAMES",
            "Of nll, niah-single, niah-keys, niah-hops, niah, needles, facts, restated, function, state, trace, "
            "recursion, reasoning, drift, repetition; or all.",
        ),
    ] = "nll",
    methods: Annotated[
        str,
        grid_option(
            "--methods",
            "NAMES",
            "Groups (modes, baselines, ablations) or single methods; or all. Full attention is always one.",
        ),
    ] = "modes,baselines",
    kept: Annotated[
        str, grid_option("--kept", "FRACTIONS", "Parts of the tokens that each head keeps.")
    ] = "0.5,0.25,0.125,0.0625",
    tokens: Annotated[
        int | None,
        grid_option("--tokens", "N", "Length of each case; each task has its own default.", min=1),
    ] = None,
    cases: Annotated[int | None, grid_option("--cases", "N", "Cases of each task.", min=1)] = None,
    texts: Annotated[
        str | None,
        grid_option("--texts", "NAMES", "Held-out texts (novel, speech, manual, c, python, reasoning), or text files."),
    ] = None,
    problems: Annotated[
        Path | None,
        grid_option(
            "--problems", "FILE", "For reasoning: JSON lines with problem and answer, such as AIME or MATH-500."
        ),
    ] = None,
    samples: Annotated[int, grid_option("--samples", "K", "Answers to each problem.", min=1)] = 1,
    facts: Annotated[
        int | None, grid_option("--facts", "N", "For facts and needles: facts in a text. [default: 12]", min=1)
    ] = None,
    seed: Annotated[
        int | None,
        grid_option(
            "--seed",
            "N",
            "Another one: other facts, questions and draws of the same kind; also of the random policy. [default: 0]",
        ),
    ] = None,
    quick: Annotated[
        bool, switch("--quick", "A small grid of its own: fails if what is kept is no better than chance.")
    ] = False,
    out: Annotated[
        Path | None,
        option("--out", "DIR", "Folder for the results; a run that was stopped goes on there. [default: eval/MODEL]"),
    ] = None,
    given: Given,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Measure what forgetting costs: quality beside full attention, by method and kept fraction.

    Tables go to stdout; the folder gets every line (lines.jsonl), the tables (report.md), and plots (PNG and
    report.html, if matplotlib is installed). A batch has --window tokens if not told otherwise: a round after each.
    """
    from .. import store

    settings = Settings.load({**given, "seed": seed})
    if settings.origins["batch"] == "default":
        settings = settings.changed("default", batch=settings.window)
    path = store.resolve(model, settings.models)
    eviction = settings.eviction()
    if eviction is None:
        raise UsageError("compares eviction with full attention", where="--budget", fix="leave TRIATTN_BUDGET out")

    from ..evaluation import report, results, runner
    from ..evaluation.methods import pick_methods
    from ..evaluation.quick import check, quick_grid
    from ..evaluation.summary import summarise
    from ..evaluation.tasks import TASKS, Size, pick_tasks

    try:
        fractions = tuple(float(part) for part in kept.split(","))
    except ValueError:
        raise UsageError(f"{kept!r} is no list of numbers", where="--kept", fix="give such as 0.5,0.25") from None
    size = Size(
        n_tokens=tokens,
        n_cases=cases,
        texts=texts.split(",") if texts else None,
        problems=problems,
        n_samples=samples,
        temperature=settings.temp,
        n_facts=facts,
        seed=settings.seed,
    )
    grid = (
        quick_grid(eviction)
        if quick
        else runner.Grid(pick_tasks(tasks), pick_methods(methods), fractions, size, eviction)
    )
    folder = out or Path("eval") / (f"{path.stem}-quick" if quick else path.stem)
    with console.Stages("steps") as stages:
        lines = runner.run_grid(
            path,
            settings.runtime(verbose=verbose),
            grid,
            folder,
            stats_path=settings.stats,
            progress=lambda step: stages(step.text, step.n_done, step.n_total),
        )
    rows = summarise(lines)
    results.write_files(rows, path.stem.removesuffix(".triattn"), " ".join(["triattn-local", *sys.argv[1:]]), folder)
    if as_json:
        console.write_json([row.as_dict() for row in rows])
    else:
        for task in dict.fromkeys(row.task for row in rows):
            columns, cells = report.table(rows, task)
            print(f"{task}: {TASKS[task].about}")
            console.write_table(columns, cells, right=range(1, len(columns)))
            print()
        for remark in report.remarks(rows):
            console.say(remark)
        console.say(f"everything is in {folder}")
    if quick:
        ratio = check(lines)
        console.say(f"KL divergence is {ratio:.2f} of random eviction's: the scores work")
