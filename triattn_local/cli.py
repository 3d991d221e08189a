"""The command line: flags in, data on stdout, progress and errors on stderr, an exit code.

Thin on purpose: a command reads its flags, calls one module, and shows what comes back. This is the one place that
catches errors and prints them; each error knows its exit code. Heavy modules are imported by the command that needs
them, so that ``--help`` and completion answer at once, and ``doctor`` can say that the library is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__, console
from .errors import BackendMissingError, ModelNotFoundError, StatsError, TriattnError, UsageError
from .settings import Settings, fields

EXIT_INTERRUPTED = 130

DEMO_SETTINGS: Mapping[str, object] = {
    # small enough that an answer of some hundred tokens goes past the cache
    "budget": 160,
    "window": 32,
    "batch": 64,
    "max_tokens": 600,
    # a model of this size turns in circles without, with full attention too
    "temp": 0.7,
    "repeat_penalty": 1.1,
}

CHAT_SETTINGS: Mapping[str, object] = {"temp": 0.7, "repeat_penalty": 1.1}

DEMO_TOKENS = 4096
"""half of the usual calibration, for half of the wait; the centres are within 4 % (median of heads) of those of all"""

_EPILOG = (
    "Flags come before the environment (TRIATTN_BUDGET for --budget, and so on), the environment before config.toml. "
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 model missing, 4 does not fit, 5 backend missing, "
    "6 statistics missing or not this model's, 130 interrupted."
)


class _InOrder(TyperGroup):
    """Commands in the order of a first use, not of the alphabet."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(self.commands)


app = typer.Typer(
    name="triattn-local",
    cls=_InOrder,
    help="Long reasoning on one desktop GPU: llama.cpp with a KV cache that keeps what later queries will want.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run_app(args))


def run_app(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app(args=args, prog_name="triattn-local", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TriattnError as error:
        return _fail(error, str(error), error.exit_code)
    except typer.TyperException as error:
        # Typer knows which command the flag was meant for, but keeps it to itself in some versions
        command = getattr(getattr(error, "ctx", None), "command_path", "triattn-local")
        text = error.format_message()
        return _fail(error, f"{text.rstrip('.')}; see {command} --help" if text else "", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as end:  # Typer's own answer to a closed pipe
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:
        # whoever read our stdout has gone: nothing left to say, and nothing may be said while Python shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        return _fail(error, "out of memory; give a smaller --ctx, --budget or --batch", 4)
    except Exception as error:
        text = f"{type(error).__name__}: {error}; this is a bug, TRIATTN_DEBUG=1 shows where"
        return _fail(error, text, 1)


def _fail(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("TRIATTN_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if text:
        console.say_error(text)
    return code


def _flag(setting: str, metavar: str, panel: str, *names: str, default: str | None = None) -> Any:
    """The flag of a setting: its text and its default stand in ``settings``, and None is "not given"."""
    entry = fields()[setting]
    told = entry.default if default is None else default
    default = "" if told is None else f" [default: {told}]"
    return typer.Option(
        *(names or (entry.metadata["flag"],)),
        metavar=metavar,
        help=entry.metadata["help"] + default,
        show_default=False,
        rich_help_panel=panel,
    )


def _switch(name: str, text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A flag without a value."""
    return typer.Option(name, *names, metavar="", help=text, show_default=False, rich_help_panel=panel, **more)


_CACHE, _COMPUTE, _ANSWER, _GRID, _MACHINE = "Cache", "Compute", "Answer", "Grid", "Machine"
_SERVER = "Server"

AsJson = Annotated[bool, _switch("--json", "One JSON value on stdout instead of text.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A path, a name that `ls` shows, or `demo`.")]
Stats = Annotated[Path | None, _flag("stats", "SIDECAR", _CACHE)]
CacheTypeK = Annotated[str | None, _flag("cache_type_k", "TYPE", _CACHE)]
CacheTypeV = Annotated[str | None, _flag("cache_type_v", "TYPE", _CACHE)]
Threads = Annotated[int | None, _flag("threads", "N", _COMPUTE, "--threads", "-t")]
GpuLayers = Annotated[int | None, _flag("gpu_layers", "N", _COMPUTE)]

# of the commands that plan: what is not given is chosen, and so is what is `auto`
_TYPE = "auto, f16 or q8_0, what fits"
PlannedCtx = Annotated[
    str | None, _flag("ctx", "TOKENS", _CACHE, default="auto, what the model was trained for, at most 131072")
]
PlannedBudget = Annotated[
    str | None,
    _flag("budget", "TOKENS", _CACHE, default="auto, 2048 or on a GPU up to 4096, what fits; off is full attention"),
]
PlannedTypeK = Annotated[str | None, _flag("cache_type_k", "TYPE", _CACHE, default=_TYPE)]
PlannedTypeV = Annotated[str | None, _flag("cache_type_v", "TYPE", _CACHE, default=_TYPE)]
PlannedLayers = Annotated[str | None, _flag("gpu_layers", "N", _COMPUTE, default="auto, as many as fit")]


def _version(value: bool) -> None:
    if value:
        print(f"triattn-local {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, _switch("--version", "Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="`demo`, or ORG/REPO[:QUANT] of the Hugging Face hub (default Q4_K_M)."),
    ],
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the models folder.

    `demo` is SmolLM2-135M-Instruct (98 MB). Downloads from the hub resume where they stopped, and heed HF_HOME,
    HF_TOKEN and HF_HUB_OFFLINE. TRIATTN_MODELS names another models folder.
    """
    from . import store

    models = Settings.load().models
    with console.Stages() as stages:
        path = store.pull(model, models, progress=stages)
    if as_json:
        size = next(entry.size_bytes for entry in store.entries(models) if entry.path == path)
        console.write_json({"path": str(path), "bytes": size})
    else:
        print(path)


@app.command("ls")
def list_models(as_json: AsJson = False) -> None:
    """List the models in the models folder, and which have statistics inside."""
    from . import store
    from .inspection import glance

    models = Settings.load().models
    rows = []
    for entry in store.entries(models):
        architecture, has_statistics = glance(entry.path)
        rows.append(
            {
                "name": entry.name,
                "path": str(entry.path),
                "bytes": entry.size_bytes,
                "files": entry.n_shards,
                "architecture": architecture,
                "statistics": has_statistics,
            }
        )
    if as_json:
        console.write_json(rows)
    elif rows:
        console.write_table(
            ("NAME", "SIZE", "ARCHITECTURE", "STATISTICS"),
            (
                (
                    str(row["name"]),
                    console.mebibytes(int(str(row["bytes"]))),
                    str(row["architecture"]),
                    "yes" if row["statistics"] else "no",
                )
                for row in rows
            ),
            right=(1,),
        )
    else:
        console.say(f"no models in {models}; fetch a small one with: triattn-local pull demo")


@app.command()
def convert(
    context: typer.Context,
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write. [default: MODEL.triattn.gguf]", show_default=False
        ),
    ] = None,
    sidecar: Annotated[
        bool, _switch("--sidecar", "Write the statistics only, into a small GGUF beside the model.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Calibration tokens. [default: 8192]", show_default=False),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="Calibration text, may be given several times. [default: the bundled one]",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="`runtime` (llama.cpp, the whole model in memory), `torch` (one layer at a time), or `auto`.",
        ),
    ] = "auto",
    resume: Annotated[bool, _switch("--resume", "Go on where an interrupted conversion stopped.")] = False,
    force: Annotated[bool, _switch("--force", "Replace the output if it is there.")] = False,
    dry_run: Annotated[bool, _switch("--dry-run", "Say what would be done, and do nothing.")] = False,
    as_json: AsJson = False,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Add the statistics that eviction needs to a model.

    Collects where the queries of each head gather on a calibration text, and writes a copy of the GGUF that carries
    them. Its tensors are the same bytes, and every other program loads it as before.
    """
    from . import store

    if tokens is not None and tokens < 1:
        raise UsageError(f"must be at least 1, not {tokens}", where="--tokens")
    settings = Settings.load(context.params)
    path = store.resolve(model, settings.models)
    result = _convert(
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
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Statistics as the method's authors write them (.pt).")],
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write. [default: MODEL.triattn.gguf]", show_default=False
        ),
    ] = None,
    sidecar: Annotated[
        bool, _switch("--sidecar", "Write the statistics only, into a small GGUF beside the model.")
    ] = False,
    force: Annotated[bool, _switch("--force", "Replace the output if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add statistics that TriAttention's own calibration made.

    They must be of this very model: the format does not say whose they are, and only their shape can be checked.
    """
    from . import store
    from .model_info import read_model_info

    calibration, official = _calib_tools("convert"), _calib_tools("official")
    info = read_model_info(store.resolve(model, Settings.load(context.params).models))
    path = calibration.output_path(info, output, sidecar, force)
    stats = official.read_official(file, info)
    calibration.write_output(info, path, stats, sidecar)
    if as_json:
        console.write_json({"path": str(path), "model": stats.model, "layers": list(stats.layers)})
    else:
        print(path)


@app.command("export-stats")
def export_stats(
    context: typer.Context,
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write. [default: MODEL.pt]", show_default=False),
    ] = None,
    stats: Stats = None,
    force: Annotated[bool, _switch("--force", "Replace the output if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's statistics as TriAttention's own programs read them (.pt)."""
    from . import store
    from .inspection import usable_stats
    from .model_info import read_model_info

    official = _calib_tools("official")
    settings = Settings.load(context.params)
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


def _calib_tools(module: str) -> Any:
    """A module of ``calib_tools``, which alone of the program needs torch."""
    import importlib

    try:
        return importlib.import_module(f"triattn_local.calib_tools.{module}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendMissingError(
            "torch is not installed", where="calibration", fix="pip install '.[calib]' in the folder of triattn-local"
        ) from None


def _convert(model: Path, output: Path | None, **options: Any) -> Any:
    """Call ``calib_tools.convert``, and show how far it is."""
    calibration = _calib_tools("convert")
    begun = False
    try:
        with console.Stages("tokens") as tokens, console.Stages("bytes") as data:

            def progress(stage: str, done: int, total: int | None, unit: str = "tokens") -> None:
                nonlocal begun
                begun = begun or done > 0
                shown, other = (data, tokens) if unit == "bytes" else (tokens, data)
                other.close()
                shown(stage, done, total)

            return calibration.convert(model, output, progress=progress, **options)
    except KeyboardInterrupt:
        if begun:
            console.say("interrupted; the same command with --resume goes on from here", style="dim")
        raise


@app.command()
def inspect(
    context: typer.Context,
    model: Model,
    stats: Stats = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    measure: Annotated[
        bool, _switch("--measure", "Run held-out text through the model, and see whether its statistics hold.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Tokens of it. [default: 3072]", show_default=False),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="Held-out text, may be given several times. [default: the bundled one]",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with all pictures.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FOLDER", help="Write the pictures.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Show what a model is, what a token of context costs, whose statistics it has, and whether they hold.

    With `--measure` held-out text goes through the model: how far queries lie from their centres, whether those move
    with position and subject, whether the predicted preference for distances is the real one, and whether the tokens
    that are kept are those that full attention attends to.
    """
    from . import store
    from .inspection import inspect_model, usable_stats
    from .model_info import read_model_info

    settings = Settings.load(context.params)
    path = store.resolve(model, settings.models)
    report = inspect_model(
        path, sidecar=settings.stats, cache_type_k=settings.cache_type_k, cache_type_v=settings.cache_type_v
    )
    found, evidence = report.statistics, None
    if measure or html or png:
        info = read_model_info(path)
        statistics = usable_stats(info, settings.stats)
        if measure:
            measuring = _calib_tools("measure")
            with console.Stages("tokens") as stages:
                evidence = measuring.measure(
                    info,
                    statistics,
                    corpus or (),
                    measuring.DEFAULT_TOKENS if tokens is None else tokens,
                    lambda done, total: stages("measuring", done, total),
                    n_threads=settings.threads,
                    n_gpu_layers=settings.gpu_layers,
                )
        _draw(report, info, statistics, evidence, html, png)
    if as_json:
        console.write_json({**report.as_dict(), "evidence": None if evidence is None else evidence.as_dict()})
    else:
        full = "?" if report.n_layer_full is None else str(report.n_layer_full)
        types = " and ".join(dict.fromkeys((report.cache_type_k, report.cache_type_v)))
        window = f", {report.sliding_window} in the others" if report.sliding_window else ""
        pairs = [
            ("file", f"{report.path} ({console.mebibytes(report.file_bytes)})"),
            ("architecture", f"{report.architecture}, trained for {report.n_ctx_train:,} tokens"),
            ("layers", f"{report.n_layer}, {full} with full attention{window}"),
            ("heads", f"{report.n_head} for {report.n_head_kv} cached, {report.head_dim} dimensions each"),
            ("RoPE", f"{report.rope}, {report.n_rot} dimensions"),
            ("KV cache", f"{report.kv_bytes_per_token:,} bytes a token as {types}"),
            ("fingerprint", report.fingerprint),
        ]
        if found is None:
            pairs.append(("statistics", f"none; triattn-local convert {model}"))
        else:
            pairs.append(("statistics", found.problem or f"of this model, in {found.path}"))
        if found is not None and found.tool is not None:
            pairs += [
                ("measured on", f"{found.n_tokens:,} tokens of {found.corpus}"),
                ("by", found.tool),
                (
                    "concentration",
                    f"R = {found.concentration}, median of heads (1: all queries of a head point one way); "
                    f"{found.share_high or 0:.0%} of heads above 0.95",
                ),
            ]
        if evidence is not None:
            pairs += evidence.lines()
        console.write_pairs(report.name, pairs)
        print()
        budgets = [f"budget {budget:,}" for budget in report.memory[0].evicting]
        console.write_table(
            ("KV cache for a context of", "full attention", *budgets),
            [
                (f"{row.n_ctx:,} tokens", *(console.mebibytes(size) for size in (row.full, *row.evicting.values())))
                for row in report.memory
            ],
            right=range(1, 2 + len(budgets)),
        )
    if found is not None and found.problem:
        raise StatsError(found.problem, where=found.path, fix=found.fix)


def _draw(report: Any, info: Any, statistics: Any, evidence: Any, html: Path | None, png: Path | None) -> None:
    """Write the pictures, for which matplotlib is needed."""
    if html is None and png is None:
        return
    try:
        from .report.figures import pictures
        from .report.page import page
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise BackendMissingError(
            "matplotlib is not installed",
            where="--html" if html else "--png",
            fix="pip install '.[report]' in the folder of triattn-local",
        ) from None
    from .atomic import write_whole

    drawn = list(pictures(info, statistics, evidence))
    if html is not None:
        write_whole(html, page(report, evidence, drawn).encode("utf-8"))
        console.say(f"wrote {html}")
    if png is not None:
        try:
            png.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"is no folder: {error.strerror}", where=f"--png {png}") from None
        for picture in drawn:
            write_whole(png / f"{picture.name}.png", picture.png())
        console.say(f"wrote {len(drawn)} pictures into {png}")


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
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="SIZE",
            help="Main memory. [default: what is free here]",
            show_default=False,
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    ctx: PlannedCtx = None,
    budget: PlannedBudget = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    no_evict: Annotated[bool, _switch("--no-evict", "Full attention: a cell for every token.", panel=_CACHE)] = False,
    cache_type: Annotated[
        str | None,
        typer.Option(
            "--cache-type",
            metavar="TYPE",
            help=f"Type of the cached keys and values. [default: {_TYPE}]",
            show_default=False,
            rich_help_panel=_CACHE,
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            metavar="N",
            help="Sequences side by side, each with its context and budget.",
            rich_help_panel=_CACHE,
        ),
    ] = 1,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    gpu_layers: PlannedLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model fits, and with what context, budget, cache and layers on the cards.

    Reads headers only, of a model on the hub too: nothing is downloaded, nothing loaded. The numbers are llama.cpp's
    own accounting; a card keeps 1 GiB, main memory 0.5 GiB, for what no accounting sees.
    """
    from . import planning

    settings = Settings.load({**context.params, "cache_type_k": cache_type, "cache_type_v": cache_type})
    wish = planning.wish_of(
        settings, evict=not no_evict, n_parallel=parallel, checkpoint_bytes=settings.snapshot_memory << 20
    )
    machine = planning.described_machine(
        None if vram is None else planning.parse_cards(vram), None if ram is None else planning.parse_size(ram, "--ram")
    )
    with console.Stages() as stages, planning.open_header(model, settings.models, stages) as path:
        stages.close()
        with planning.Accountant(path) as accountant:
            planner = planning.Planner(accountant, machine, wish)
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


@app.command()
def run(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A path, a name that `ls` shows, or `demo`.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; else stdin is read.", show_default=False)
    ] = None,
    demo: Annotated[bool, _switch("--demo", "Fetch and convert a small real model, once, and use it.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Text that goes before the prompt; - is stdin.", show_default=False
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt.", show_default=False)
    ] = None,
    raw: Annotated[bool, _switch("--raw", "Continue the text itself: no chat template.")] = False,
    as_json: Annotated[bool, _switch("--json", "The report on stdout, as its last line.")] = False,
    quiet: Annotated[bool, _switch("--quiet", "No progress and no report on stderr.", "-q")] = False,
    verbose: Annotated[bool, _switch("--verbose", "llama.cpp's own log on stderr.", "-v")] = False,
    ctx: PlannedCtx = None,
    budget: PlannedBudget = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    mode: Annotated[str | None, _flag("mode", "MODE", _CACHE)] = None,
    policy: Annotated[str | None, _flag("policy", "POLICY", _CACHE)] = None,
    no_evict: Annotated[bool, _switch("--no-evict", "Full attention: a cell for every token.", panel=_CACHE)] = False,
    stats: Stats = None,
    cache_type_k: PlannedTypeK = None,
    cache_type_v: PlannedTypeV = None,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    threads: Threads = None,
    gpu_layers: PlannedLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    max_tokens: Annotated[int | None, _flag("max_tokens", "TOKENS", _ANSWER, "-n", "--max-tokens")] = None,
    temp: Annotated[float | None, _flag("temp", "T", _ANSWER)] = None,
    repeat_penalty: Annotated[float | None, _flag("repeat_penalty", "X", _ANSWER)] = None,
    seed: Annotated[int | None, _flag("seed", "N", _ANSWER)] = None,
) -> int:
    """Answer one prompt, in a cache that stays as small as its budget.

    The answer goes to stdout as it comes; a report follows on stderr, one JSON object on a line. Ctrl-C stops the
    answer and keeps what there is.
    """
    if demo and model is not None and prompt is not None:
        raise UsageError("--demo brings its own model", where=model, fix='triattn-local run --demo "PROMPT"')
    if demo:
        prompt = model
    elif model is None:
        raise UsageError("no model given", where="run", fix="name one that triattn-local ls shows, or give --demo")
    settings = Settings.load(context.params, defaults=DEMO_SETTINGS if demo else None)
    # what is wrong with the flags is said before anything is fetched, read or loaded
    sampling, limit = settings.sampling(), settings.n_predict()
    settings.runtime()
    settings.eviction()
    text = _read_prompt(prompt, file)

    from . import planning, store
    from .oneshot import answer, make_prompt

    path = _demo_model(settings.models) if demo else store.resolve(str(model), settings.models)
    from .runtime import Runtime

    plan = planning.plan_run(path, settings, evict=not no_evict, fixed=DEMO_SETTINGS if demo else (), verbose=verbose)
    if plan.why and not (quiet or as_json):
        console.say(plan.why, style="dim")
    with contextlib.nullcontext() if quiet or verbose else console.waiting(f"loading {path.name}"):
        runtime = Runtime.load(path, plan.config, plan.eviction, stats_path=settings.stats)
    with runtime as rt:
        with console.Stages("tokens") as stages:
            out = _Answer(stages)
            report = answer(
                rt,
                make_prompt(rt, text, system=system, raw=raw),
                model=str(path),
                max_tokens=limit,
                eviction=plan.eviction,
                sampling=sampling,
                on_prefill=(lambda done, total: None) if quiet else out.reading,
                on_text=out.text,
            )
        out.end()
    if as_json:
        console.write_json(report.as_dict())
    elif not quiet:
        console.write_report(report.summary(), report.as_dict())
    return EXIT_INTERRUPTED if report.interrupted else 0


@app.command()
def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A path, or a name that `ls` shows; else the one used last.", show_default=False
        ),
    ] = None,
    go_on: Annotated[bool, _switch("--continue", "Go on with the session used last.", "-c")] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="ID", help="Go on with this session; F2 lists them.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt.", show_default=False)
    ] = None,
    theme: Annotated[str | None, _flag("theme", "NAME", "Looks")] = None,
    ctx: PlannedCtx = None,
    budget: PlannedBudget = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    mode: Annotated[str | None, _flag("mode", "MODE", _CACHE)] = None,
    policy: Annotated[str | None, _flag("policy", "POLICY", _CACHE)] = None,
    no_evict: Annotated[bool, _switch("--no-evict", "Full attention: a cell for every token.", panel=_CACHE)] = False,
    stats: Stats = None,
    cache_type_k: PlannedTypeK = None,
    cache_type_v: PlannedTypeV = None,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    threads: Threads = None,
    gpu_layers: PlannedLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    max_tokens: Annotated[int | None, _flag("max_tokens", "TOKENS", _ANSWER, "-n", "--max-tokens")] = None,
    temp: Annotated[float | None, _flag("temp", "T", _ANSWER)] = None,
    repeat_penalty: Annotated[float | None, _flag("repeat_penalty", "X", _ANSWER)] = None,
    seed: Annotated[int | None, _flag("seed", "N", _ANSWER)] = None,
) -> None:
    """Talk with a model in the terminal.

    Sessions are stored as they come; F1 shows all keys. Without a model on this machine it offers to fetch one.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("needs a terminal", where="chat", fix="for pipes and scripts there is: triattn-local run")
    if go_on and resume is not None:
        raise UsageError("--continue and --resume name two sessions", where="chat", fix="leave one of the two out")
    settings = Settings.load(context.params, defaults=_chat_defaults())
    from . import store

    path = store.resolve(model, settings.models) if model is not None else None
    if path is not None:
        from . import planning

        # what does not fit is said here; what else is wrong with the model, the chat says with a way out
        with contextlib.suppress(StatsError, ModelNotFoundError):
            planning.plan_run(path, settings, evict=not no_evict, checkpoint_bytes=settings.snapshot_memory << 20)
    from .tui.app import Start
    from .tui.run import run_chat

    run_chat(settings, Start(path, resume, go_on, system or "", evict=not no_evict))


def _chat_defaults() -> Mapping[str, object]:
    """Lively answers; and batches that a CPU is through with soon, since a stop is heard between two of them."""
    from .runtime import has_gpu

    return CHAT_SETTINGS if has_gpu() else {**CHAT_SETTINGS, "batch": 64}


@app.command(context_settings={"allow_extra_args": True})
def serve(
    context: typer.Context,
    model: Model,
    host: Annotated[str | None, _flag("host", "ADDRESS", _SERVER)] = None,
    port: Annotated[int | None, _flag("port", "N", _SERVER)] = None,
    api_key: Annotated[str | None, _flag("api_key", "KEY", _SERVER)] = None,
    alias: Annotated[str | None, _flag("alias", "NAME", _SERVER)] = None,
    slots: Annotated[int | None, _flag("slots", "N", _SERVER)] = None,
    cache_ram: Annotated[int | None, _flag("cache_ram", "MIB", _SERVER)] = None,
    idle_unload: Annotated[int | None, _flag("idle_unload", "SECONDS", _SERVER)] = None,
    restarts: Annotated[int | None, _flag("restarts", "N", _SERVER)] = None,
    ctx: PlannedCtx = None,
    budget: PlannedBudget = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    mode: Annotated[str | None, _flag("mode", "MODE", _CACHE)] = None,
    policy: Annotated[str | None, _flag("policy", "POLICY", _CACHE)] = None,
    no_evict: Annotated[bool, _switch("--no-evict", "Full attention: a cell for every token.", panel=_CACHE)] = False,
    stats: Stats = None,
    cache_type_k: PlannedTypeK = None,
    cache_type_v: PlannedTypeV = None,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    threads: Threads = None,
    gpu_layers: PlannedLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    verbose: Annotated[bool, _switch("--verbose", "All that llama-server logs, on stderr.", "-v")] = False,
    as_json: AsJson = False,
) -> int:
    """Serve a model to agents, over OpenAI's protocol, until Ctrl-C.

    The base URL is on stdout once requests are answered; the log is on stderr. What is not given, such as context
    and budget, is chosen for this machine, as `plan` shows. What follows ` -- ` are flags for llama-server itself.
    """
    from . import store
    from .server.choose import choose
    from .server.serve import is_chatter
    from .server.serve import serve as keep_serving

    settings = Settings.load(context.params)
    path = store.resolve(model, settings.models)
    config = choose(settings, path, evict=not no_evict, extra=context.args)
    announced = False

    def ready(pid: int) -> None:
        nonlocal announced
        if announced:
            console.log("info", f"llama-server answers again, pid {pid}")
        elif as_json:
            console.write_json(
                {"base_url": config.base_url, "model": config.name, "pid": pid, "n_ctx": config.runtime.n_ctx}
            )
        else:
            print(config.base_url, flush=True)
        announced = True

    if config.why:
        console.log("info", config.why)
    kept = f"budget {config.eviction.budget_tokens:,} a slot" if config.eviction else "full attention"
    console.log("info", f"{config.name}: context {config.runtime.n_ctx:,}, {kept}, {config.n_slots} slot(s)")
    by = keep_serving(
        config,
        ready,
        lambda line: console.log(line.level, line.text) if verbose or not is_chatter(line) else None,
        max_restarts=settings.restarts,
    )
    return EXIT_INTERRUPTED if by == signal.SIGINT else 0


@app.command("openclaw-config")
def openclaw_config(
    context: typer.Context,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The base URL of a running server.", show_default=False)
    ] = "http://127.0.0.1:8080/v1",
    api_key: Annotated[str | None, _flag("api_key", "KEY", _SERVER)] = None,
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="What OpenClaw is to call it.")
    ] = "triattn",
    launch: Annotated[
        str | None,
        typer.Option(
            "--launch", metavar="MODEL", help="Let OpenClaw start the server with this model.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the part of openclaw.json that makes a running server a provider of OpenClaw.

    The model's name and context are what the server itself says.
    """
    from .server.api import Api
    from .server.openclaw import provider_block

    settings = Settings.load(context.params)
    block = provider_block(Api(url, settings.api_key), provider, launch=launch)
    print(json.dumps(block, indent=2, ensure_ascii=False))


@app.command()
def bench(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Paths, or names that `ls` shows.", show_default=False),
    ] = None,
    geometry: Annotated[
        list[str] | None,
        typer.Option(
            "--geometry",
            metavar="NAME",
            help="The shape of a known model with random weights, written once; several times for several.",
            show_default=False,
            rich_help_panel=_GRID,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers",
            metavar="N",
            help="Only so many layers of each geometry, for a quick look.",
            show_default=False,
            rich_help_panel=_GRID,
        ),
    ] = None,
    depths: Annotated[
        str,
        typer.Option(
            "--depths",
            metavar="TOKENS",
            help="Logical depths at which to compare; those beyond the context that a model was trained for are left "
            "out.",
            rich_help_panel=_GRID,
        ),
    ] = "4k,8k",
    blocks: Annotated[
        int,
        typer.Option(
            "--blocks", metavar="N", help="Blocks of --window tokens that each side decodes.", rich_help_panel=_GRID
        ),
    ] = 5,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            metavar="N",
            help="Sequences that decode in one batch; where they do not fit, as many as do.",
            rich_help_panel=_GRID,
        ),
    ] = 1,
    vram: Annotated[
        str | None,
        typer.Option(
            "--vram",
            metavar="SIZE",
            help="Hold the GPU's memory to this, such as 24GiB: the rest is allocated and left alone.",
            show_default=False,
            rich_help_panel=_GRID,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for bench.json and bench.md, and bench.png if matplotlib is installed.",
            show_default=False,
            rich_help_panel=_GRID,
        ),
    ] = None,
    budget: Annotated[int | None, _flag("budget", "TOKENS", _CACHE)] = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    mode: Annotated[str | None, _flag("mode", "MODE", _CACHE)] = None,
    policy: Annotated[str | None, _flag("policy", "POLICY", _CACHE)] = None,
    stats: Stats = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    verbose: Annotated[bool, _switch("--verbose", "llama.cpp's own log on stderr.", "-v")] = False,
    as_json: AsJson = False,
) -> None:
    """Time TriAttention beside full attention by logical depth, in one process, in turns, and weigh their memory.

    Full attention is measured at each depth and at a depth of the budget, which is the limit that eviction can reach.
    Tables go to stdout, and one JSON object as the last line. `--geometry` needs no download: speed and memory do not
    depend on what the weights say.
    """
    settings = Settings.load(context.params)
    config, eviction = settings.runtime(verbose=verbose), settings.eviction()
    if eviction is None:
        raise UsageError("compares eviction with full attention", where="--budget", fix="give a number of tokens")
    if not names and not geometry:
        raise UsageError("no model given", where="bench", fix="name one that triattn-local ls shows, or a --geometry")

    from . import benchmark, store
    from .benchmark.synthetic import geometry_file
    from .geometry import find_geometry

    job = benchmark.Job(
        depths=benchmark.parse_depths(depths),
        n_blocks=blocks,
        n_seq=parallel,
        vram_bytes=None if vram is None else _size(vram, "--vram"),
    )
    benchmark.pick_device(config, job.vram_bytes)  # before gigabytes are written
    shapes = [find_geometry(name).cut(n_layer=layers) for name in geometry or ()]
    paths = [store.resolve(name, settings.models) for name in names or ()]
    reports: list[benchmark.Report] = []
    files: list[str] = []
    command = " ".join(["triattn-local", *sys.argv[1:]])
    with console.Stages("bytes") as written:
        made = [geometry_file(shape, functools.partial(written, f"writing {shape.title}")) for shape in shapes]
    for path in made:
        console.say(f"{path} ({console.mebibytes(path.stat().st_size)}) stays for the next run", style="dim")
    for path in [*paths, *made]:

        def keep_rows(report: benchmark.Report) -> None:
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
    console.write_json(benchmark.summary(reports))


def _size(text: str, flag: str) -> int:
    from .planning.machine import parse_size

    return parse_size(text, flag)


def _show_bench(report: Any) -> None:
    from .benchmark import report as tables

    print(report.title())
    console.write_table(tables.SPEED_COLUMNS, tables.speed_cells(report), right=range(1, len(tables.SPEED_COLUMNS)))
    print()
    console.write_table(tables.RATIO_COLUMNS, tables.ratio_cells(report), right=range(len(tables.RATIO_COLUMNS)))
    print()
    if report.left_out:
        depths = ", ".join(f"{depth:,}" for depth in report.left_out)
        console.say(f"{report.model} was trained for less than {depths}: left out", style="dim")


@app.command("eval")
def evaluate(
    context: typer.Context,
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="Of nll, niah-single, niah-keys, niah-hops, niah, recursion, reasoning, drift; or all.",
            rich_help_panel=_GRID,
        ),
    ] = "nll",
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAMES",
            help="Groups (modes, baselines, ablations, experiments) or single "
            "methods; or all. Full attention is always one.",
            rich_help_panel=_GRID,
        ),
    ] = "modes,baselines",
    kept: Annotated[
        str,
        typer.Option(
            "--kept", metavar="FRACTIONS", help="Parts of the tokens that each head keeps.", rich_help_panel=_GRID
        ),
    ] = "0.5,0.25,0.125,0.0625",
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Length of each case; each task has its own default.",
            rich_help_panel=_GRID,
            min=1,
        ),
    ] = None,
    cases: Annotated[
        int | None, typer.Option("--cases", metavar="N", help="Cases of each task.", rich_help_panel=_GRID, min=1)
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts",
            metavar="NAMES",
            help="Held-out texts (novel, speech, manual, c, python, reasoning), or text files.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(
            "--problems",
            metavar="FILE",
            help="For reasoning: JSON lines with problem and answer, such as AIME or MATH-500.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="K", help="Answers to each problem.", rich_help_panel=_GRID, min=1)
    ] = 1,
    temp: Annotated[float | None, _flag("temp", "T", _ANSWER)] = None,
    quick: Annotated[
        bool, _switch("--quick", "A small grid of its own: fails if what is kept is no better than chance.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the results; a run that was stopped goes on there. [default: eval/MODEL]",
            show_default=False,
        ),
    ] = None,
    window: Annotated[int | None, _flag("window", "TOKENS", _CACHE)] = None,
    keep: Annotated[int | None, _flag("keep", "TOKENS", _CACHE)] = None,
    stats: Stats = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    flash_attn: Annotated[bool | None, _flag("flash_attn", "", _COMPUTE, "--flash-attn/--no-flash-attn")] = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    batch: Annotated[int | None, _flag("batch", "TOKENS", _COMPUTE)] = None,
    verbose: Annotated[bool, _switch("--verbose", "llama.cpp's own log on stderr.", "-v")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what forgetting costs: quality beside full attention, by method and kept fraction.

    Tables go to stdout; the folder gets every line (lines.jsonl), the tables (report.md), and plots (PNG and
    report.html, if matplotlib is installed). A batch has --window tokens if not told otherwise: a round after each.
    """
    from . import store

    settings = Settings.load(context.params)
    if settings.origins["batch"] == "default":
        settings = dataclasses.replace(settings, batch=settings.window)
    path = store.resolve(model, settings.models)
    eviction = settings.eviction()
    if eviction is None:
        raise UsageError("compares eviction with full attention", where="--budget", fix="leave TRIATTN_BUDGET out")

    from .evaluation import report, runner
    from .evaluation.methods import pick_methods
    from .evaluation.quick import check, quick_grid
    from .evaluation.summary import summarise
    from .evaluation.tasks import Size, pick_tasks

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
    report.write_files(rows, path.stem.removesuffix(".triattn"), " ".join(["triattn-local", *sys.argv[1:]]), folder)
    if as_json:
        console.write_json([row.as_dict() for row in rows])
    else:
        for task in dict.fromkeys(row.task for row in rows):
            columns, cells = report.table(rows, task)
            print(f"{task}: {report.about(task)}")
            console.write_table(columns, cells, right=range(1, len(columns)))
            print()
        for remark in report.remarks(rows):
            console.say(remark)
        console.say(f"everything is in {folder}")
    if quick:
        ratio = check(lines)
        console.say(f"KL divergence is {ratio:.2f} of random eviction's: the scores work")


@app.command()
def doctor(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model to check too.", show_default=False)
    ] = None,
    stats: Stats = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="A running server to call a tool through.", show_default=False),
    ] = None,
    api_key: Annotated[str | None, _flag("api_key", "KEY", _SERVER)] = None,
    as_json: AsJson = False,
) -> int:
    """Check the installation: library, devices, tools, folders, the statistics of a model, and a running server."""
    from . import store
    from .doctor import check_all

    settings = Settings.load(context.params)
    path = store.resolve(model, settings.models) if model is not None else None
    checks = list(check_all(settings, path, server))
    if as_json:
        console.write_json([check.as_dict() for check in checks])
    else:
        console.write_checks([(check.name, check.status, check.found, check.fix) for check in checks])
    return next((check.exit_code for check in checks if check.status == "fail"), 0)


class _Answer:
    """Text to stdout as it comes; until its first word, a bar for the prompt."""

    def __init__(self, stages: console.Stages) -> None:
        self._stages = stages
        self._last = "\n"

    def reading(self, done: int, total: int) -> None:
        # a line for every prompt would be noise in a log: only a terminal sees it
        if console.stderr().is_terminal:
            self._stages("reading the prompt", done, total)

    def text(self, text: str) -> None:
        if text:
            self._stages.close()
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            sys.stdout.write("\n")
            sys.stdout.flush()


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The file, then the prompt, or else stdin."""
    if prompt is None and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no prompt", where="run", fix="give one in quotes, with --file, or on stdin")
        file = Path("-")
    parts = [_read_text(file)] if file is not None else []
    text = "\n\n".join([*parts, *([prompt] if prompt is not None else [])])
    if not text.strip():
        raise UsageError("the prompt is empty", where="stdin" if str(file) == "-" else str(file or "run"))
    return text


def _read_text(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text", where="stdin" if str(file) == "-" else str(file)) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=f"--file {file}") from None


def _demo_model(models: Path) -> Path:
    """The demo model with statistics inside: fetched and converted the first time."""
    from . import store

    target = (models / store.DEMO.file).with_suffix(".triattn.gguf")
    if not target.is_file():
        with console.Stages() as stages:
            source = store.pull("demo", models, progress=stages)
        _convert(source, target, n_tokens=DEMO_TOKENS)
    return target
