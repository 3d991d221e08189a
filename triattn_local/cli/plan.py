"""Does it fit."""

from __future__ import annotations

from typing import Annotated, Any

from ..config import FITTING_TYPE
from ..settings import Settings
from ..support import console, formats
from .app import app
from .flags import CACHE, MACHINE, AsJson, Given, NoEvict, argument, option, with_settings


@app.command()
@with_settings(
    "ctx", "rope_scaling", "budget", "window", "cold", "keep", "flash_attn", "gpu_layers", "batch", planned=True
)
def plan(
    *,
    model: Annotated[
        str,
        argument(
            "MODEL",
            "A path (a header alone will do), a name that `ls` shows, ORG/REPO[:QUANT] of the Hugging Face hub, "
            "or a geometry: qwen3-8b, qwen3-32b, qwq-32b, deepseek-r1-distill-llama-8b, deepseek-r1-distill-qwen-32b, "
            "gpt-oss-20b, qwen3.5-27b, qwen3.5-35b-a3b, qwen3.8-27b, glm-4.7-flash.",
            show_default=True,
        ),
    ],
    vram: Annotated[
        str | None,
        option(
            "--vram",
            "SIZES",
            "Memory of the cards, such as 24GiB or 24GiB,12GiB; 0 for none. [default: this machine's]",
            panel=MACHINE,
        ),
    ] = None,
    ram: Annotated[
        str | None, option("--ram", "SIZE", "Main memory. [default: what is free here]", panel=MACHINE)
    ] = None,
    given: Given,
    no_evict: NoEvict = False,
    cache_type: Annotated[
        str | None,
        option("--cache-type", "TYPE", f"Type of the cached keys and values. [default: {FITTING_TYPE}]", panel=CACHE),
    ] = None,
    parallel: Annotated[
        int,
        option("--parallel", "N", "Sequences side by side, each with its context and budget.", panel=CACHE),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model fits, and with what context, budget, cache and layers on the cards.

    Reads headers only, of a model on the hub too: nothing is downloaded, nothing loaded. The numbers are llama.cpp's
    own accounting; a card keeps 1 GiB, main memory 0.5 GiB, for what no accounting sees.
    """
    from .. import planning

    settings = Settings.load({**given, "cache_type_k": cache_type, "cache_type_v": cache_type})
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
