"""Does it fit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..settings import Settings
from ..support import console, formats
from .app import app
from .flags import (
    CACHE,
    FITTING_TYPE,
    MACHINE,
    AsJson,
    Batch,
    Cold,
    FlashAttn,
    Keep,
    NoEvict,
    PlannedBudget,
    PlannedCtx,
    PlannedLayers,
    RopeScaling,
    Window,
)


@app.command()
def plan(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A path (a header alone will do), a name that `ls` shows, ORG/REPO[:QUANT] of the Hugging Face hub, "
            "or a geometry: qwen3-8b, qwen3-32b, qwq-32b, deepseek-r1-distill-llama-8b, deepseek-r1-distill-qwen-32b, "
            "gpt-oss-20b.",
        ),
    ],
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram",
            metavar="SIZES",
            help="Memory of the cards, such as 24GiB or 24GiB,12GiB; 0 for none. [default: this machine's]",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="SIZE",
            help="Main memory. [default: what is free here]",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    ctx: PlannedCtx = None,
    rope_scaling: RopeScaling = None,
    budget: PlannedBudget = None,
    window: Window = None,
    cold: Cold = None,
    keep: Keep = None,
    no_evict: NoEvict = False,
    cache_type: Annotated[
        str | None,
        typer.Option(
            "--cache-type",
            metavar="TYPE",
            help=f"Type of the cached keys and values. [default: {FITTING_TYPE}]",
            show_default=False,
            rich_help_panel=CACHE,
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            metavar="N",
            help="Sequences side by side, each with its context and budget.",
            rich_help_panel=CACHE,
        ),
    ] = 1,
    flash_attn: FlashAttn = None,
    gpu_layers: PlannedLayers = None,
    batch: Batch = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model fits, and with what context, budget, cache and layers on the cards.

    Reads headers only, of a model on the hub too: nothing is downloaded, nothing loaded. The numbers are llama.cpp's
    own accounting; a card keeps 1 GiB, main memory 0.5 GiB, for what no accounting sees.
    """
    from .. import planning

    settings = Settings.load({**context.params, "cache_type_k": cache_type, "cache_type_v": cache_type})
    request = planning.request_of(
        settings, evict=not no_evict, n_parallel=parallel, checkpoint_bytes=settings.snapshot_memory << 20
    )
    machine = planning.described_machine(
        None if vram is None else planning.parse_cards(vram), None if ram is None else formats.parse_size(ram, "--ram")
    )
    with console.Stages() as stages, planning.open_header(model, settings.models, stages) as path:
        stages.close()
        with planning.MemoryProbe(path) as probe:
            planner = planning.Planner(probe, machine, request)
            result = planning.report(planner, planner.choose())
    if as_json:
        console.write_json(result.as_dict())
    else:
        _show_plan(result)


def _show_plan(result: Any) -> None:
    """A bar for each memory, what was chosen, and full attention beside it."""
    print(result.title)
    console.write_bars(result.bars())
    console.write_pairs(result.why, result.properties())
    print()
    columns, rows = result.table()
    console.write_table(columns, rows, right=(0, 1, 3, 4, 6))
