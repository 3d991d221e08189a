"""Measure the statistics of a model, and carry them from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..errors import UsageError
from ..settings import Settings
from ..support import console
from .app import app
from .flags import AsJson, Given, Model, argument, option, switch, with_settings

Output = Annotated[
    Path | None,
    option("--output", "FILE", "File to write. [default: MODEL.triattn.gguf]", "-o"),
]
Sidecar = Annotated[bool, switch("--sidecar", "Write the statistics only, into a small GGUF beside the model.")]
Force = Annotated[bool, switch("--force", "Replace the output if it is there.")]


@app.command()
@with_settings("threads", "gpu_layers")
def convert(
    *,
    model: Model,
    output: Output = None,
    sidecar: Sidecar = False,
    tokens: Annotated[int | None, option("--tokens", "N", "Calibration tokens. [default: 8192]")] = None,
    corpus: Annotated[
        list[Path] | None,
        option("--corpus", "FILE", "Calibration text, may be given several times. [default: the bundled one]"),
    ] = None,
    engine: Annotated[
        str,
        option(
            "--engine",
            "ENGINE",
            "`runtime` (llama.cpp, the whole model in memory), `torch` (one layer at a time), or `auto`.",
        ),
    ] = "auto",
    resume: Annotated[bool, switch("--resume", "Go on where an interrupted conversion stopped.")] = False,
    force: Force = False,
    dry_run: Annotated[bool, switch("--dry-run", "Say what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
    given: Given,
) -> None:
    """Add the statistics that eviction needs to a model.

    Collects where the queries of each head gather on a calibration text, and writes a copy of the GGUF that carries
    them. Its tensors are the same bytes, and every other program loads it as before.
    """
    from .. import store

    if tokens is not None and tokens < 1:
        raise UsageError(f"must be at least 1, not {tokens}", where="--tokens")
    settings = Settings.load(given)
    path = store.resolve(model, settings.models)
    result = convert_file(
        path,
        output,
        sidecar=sidecar,
        corpus=corpus or (),
        engine=engine,
        resume=resume,
        force=force,
        dry_run=dry_run,
        n_threads=settings.threads,
        n_gpu_layers=settings.gpu_layers,
        **({} if tokens is None else {"n_tokens": tokens}),
    )
    if as_json:
        console.write_json(result.as_dict())
        return
    if dry_run:
        console.say(f"{result.engine} engine: {result.engine_why}", style="dim")
        console.say(f"would calibrate on {result.corpus} and write:")
    else:
        r = result.concentration
        console.say(f"{result.n_tokens:,} tokens, {result.n_layers} layers, {r.n_heads} heads, mean R {r.mean_r:.3f}")
    print(result.path)


@app.command("import-stats")
def import_stats(
    file: Annotated[Path, argument("FILE", "Statistics as the method's authors write them (.pt).", show_default=True)],
    model: Model,
    output: Output = None,
    sidecar: Sidecar = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Add statistics that TriAttention's own calibration made.

    They must be of this very model: the format does not say whose they are, and only their shape can be checked.
    """
    from .. import store
    from ..model.model_info import read_model_info
    from ..store.folder import is_gguf

    calibration, official = calib_tools("convert"), calib_tools("official")
    if file.is_file() and is_gguf(file):
        raise UsageError(
            "is a model, and the statistics come first", where=str(file), fix="triattn-local import-stats FILE.pt MODEL"
        )
    info = read_model_info(store.resolve(model, Settings.load().models))
    stats = official.read_official(file, info)
    path = calibration.output_path(info, output, sidecar, force)
    calibration.write_output(info, path, stats, sidecar)
    if as_json:
        console.write_json({"path": str(path), "model": stats.model, "layers": list(stats.layers)})
    else:
        print(path)


@app.command("export-stats")
@with_settings("stats")
def export_stats(
    *,
    model: Model,
    output: Annotated[Path | None, option("--output", "FILE", "File to write. [default: MODEL.pt]", "-o")] = None,
    given: Given,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's statistics as TriAttention's own programs read them (.pt)."""
    from .. import store
    from ..model.metadata import usable_stats
    from ..model.model_info import read_model_info

    official = calib_tools("official")
    settings = Settings.load(given)
    info = read_model_info(store.resolve(model, settings.models))
    path = output or info.path.with_suffix(".pt")
    if path.exists() and not force:
        raise UsageError("exists already", where=str(path), fix="replace it with --force, or give another name with -o")
    found = usable_stats(info, settings.stats)
    official.write_official(path, found, info)
    if as_json:
        console.write_json({"path": str(path), "model": found.model, "layers": list(found.layers)})
    else:
        print(path)


def calib_tools(module: str) -> Any:
    """A module of ``calib_tools``, which alone of the program needs torch."""
    import importlib

    from ..calib_tools import torch_wanted

    with torch_wanted():
        return importlib.import_module(f"triattn_local.calib_tools.{module}")


def convert_file(model: Path, output: Path | None, **options: Any) -> Any:
    """Call ``calib_tools.convert``, and show how far it is."""
    calibration = calib_tools("convert")
    try:
        with console.Stages("tokens") as stages:
            return calibration.convert(model, output, progress=stages, **options)
    except calibration.ConversionStopped:
        console.say("interrupted; the same command with --resume goes on from here", style="dim")
        raise
