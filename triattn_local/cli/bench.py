"""How fast it is, and in how much memory."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any

from ..errors import UsageError
from ..settings import Settings
from ..support import console, formats
from .app import app
from .flags import CACHE, COMPUTE, AsJson, Given, Verbose, argument, grid_option, with_settings


@app.command()
@with_settings(CACHE, COMPUTE, without=("ctx", "rope_scaling", "yield_cores"))
def bench(
    *,
    names: Annotated[list[str] | None, argument("MODEL...", "Paths, or names that `ls` shows.")] = None,
    geometry: Annotated[
        list[str] | None,
        grid_option(
            "--geometry",
            "NAME",
            "The shape of a known model with random weights, written once; several times for several.",
        ),
    ] = None,
    layers: Annotated[
        int | None, grid_option("--layers", "N", "Only so many layers of each geometry, for a quick look.")
    ] = None,
    depths: Annotated[
        str,
        grid_option(
            "--depths",
            "TOKENS",
            "Logical depths at which to compare; those beyond the context that a model was trained for are left out.",
        ),
    ] = "4k,8k",
    blocks: Annotated[int, grid_option("--blocks", "N", "Blocks of --window tokens that each side decodes.")] = 5,
    parallel: Annotated[
        int,
        grid_option("--parallel", "N", "Sequences that decode in one batch; where they do not fit, as many as do."),
    ] = 1,
    vram: Annotated[
        str | None,
        grid_option(
            "--vram", "SIZE", "Hold the GPU's memory to this, such as 24GiB: the rest is allocated and left alone."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        grid_option("--out", "DIR", "Folder for bench.json and bench.md, and bench.png if matplotlib is installed."),
    ] = None,
    given: Given,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Time TriAttention beside full attention by logical depth, in one process, in turns, and weigh their memory.

    Full attention is measured at each depth and at a depth of the budget, which is the limit that eviction can reach.
    Tables go to stdout, or with `--json` one JSON object in their place. `--geometry` needs no download: speed and
    memory do not depend on what the weights say.
    """
    settings = Settings.load(given)
    config, eviction = settings.runtime(verbose=verbose), settings.eviction()
    if eviction is None:
        raise UsageError("compares eviction with full attention", where="--budget", fix="give a number of tokens")
    if not names and not geometry:
        raise UsageError("no model given", where="bench", fix="name one that triattn-local ls shows, or a --geometry")

    from .. import benchmark, store
    from ..benchmark.synthetic import geometry_file
    from ..geometry import find_geometry

    job = benchmark.Job(
        depths=benchmark.parse_depths(depths),
        n_blocks=blocks,
        n_seq=parallel,
        vram_bytes=None if vram is None else formats.parse_size(vram, "--vram"),
    )
    if out is not None:
        benchmark.check_folder(out)
    benchmark.pick_device(config, job.vram_bytes)  # before gigabytes are written
    shapes = [find_geometry(name).cut(n_layer=layers) for name in geometry or ()]
    paths = [store.resolve(name, settings.models) for name in names or ()]
    reports: list[benchmark.BenchReport] = []
    files: list[str] = []
    command = " ".join(["triattn-local", *sys.argv[1:]])
    with console.Stages("bytes") as written:
        made = [geometry_file(shape, functools.partial(written, f"writing {shape.title}")) for shape in shapes]
    for path in made:
        console.say(f"{path} ({formats.size(path.stat().st_size)}) stays for the next run", style="dim")
    for path in [*paths, *made]:

        def keep_rows(report: benchmark.BenchReport) -> None:
            """What is measured is not lost when a later depth or model fails."""
            if out is not None:
                files[:] = benchmark.write_results(out, [*reports, report], command)

        with console.Stages("tokens") as stages:
            report = benchmark.run_bench(
                path,
                config,
                eviction,
                dataclasses.replace(job, beyond_training=path in made),
                stats_path=settings.stats if path in paths else None,
                progress=stages,
                on_row=keep_rows,
            )
        reports.append(report)
        if not as_json:
            _show_bench(report)
    if files:
        console.say(f"{', '.join(files)} in {out}")
    if as_json:
        console.write_json(benchmark.summary(reports))


def _show_bench(report: Any) -> None:
    from ..benchmark import report as tables

    print(report.title())
    console.write_table(tables.SPEED_COLUMNS, tables.speed_cells(report), right=range(1, len(tables.SPEED_COLUMNS)))
    print()
    console.write_table(tables.RATIO_COLUMNS, tables.ratio_cells(report), right=range(len(tables.RATIO_COLUMNS)))
    print()
    if report.left_out:
        depths = ", ".join(f"{depth:,}" for depth in report.left_out)
        console.say(f"{report.model} was trained for less than {depths}: left out", style="dim")
