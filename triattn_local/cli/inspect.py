"""What a model file says, and whether its statistics hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BackendMissingError, StatsError, UsageError
from ..settings import Settings
from ..support import console, formats
from ..support.atomic import check_writable, write_whole
from .app import app
from .convert import calib_tools
from .flags import AsJson, Given, Model, option, switch, with_settings

if TYPE_CHECKING:
    from ..inspection.describe import ModelReport
    from ..inspection.evidence import Evidence


@app.command()
@with_settings("stats", "cache_type_k", "cache_type_v", "threads", "gpu_layers")
def inspect(
    *,
    model: Model,
    given: Given,
    measure: Annotated[
        bool, switch("--measure", "Run held-out text through the model, and see whether its statistics hold.")
    ] = False,
    tokens: Annotated[int | None, option("--tokens", "N", "Tokens of it. [default: 3072]")] = None,
    corpus: Annotated[
        list[Path] | None,
        option("--corpus", "FILE", "Held-out text, may be given several times. [default: the bundled one]"),
    ] = None,
    html: Annotated[Path | None, option("--html", "FILE", "Write a page with all pictures.")] = None,
    png: Annotated[Path | None, option("--png", "FOLDER", "Write the pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model is, what a token of context costs, whose statistics it has, and whether they hold.

    With `--measure` held-out text goes through the model: how far queries lie from their centres, whether those move
    with position and subject, whether the predicted preference for distances is the real one, and whether the tokens
    that are kept are those that full attention attends to. A verdict in words comes last.
    """
    from .. import store
    from ..inspection.describe import inspect_model
    from ..model.metadata import usable_stats
    from ..model.model_info import read_model_info

    settings = Settings.load(given)
    path = store.resolve(model, settings.models)
    report = inspect_model(
        path, sidecar=settings.stats, cache_type_k=settings.cache_type_k, cache_type_v=settings.cache_type_v
    )
    found, evidence, info, statistics = report.statistics, None, None, None
    if measure or html or png:
        info = read_model_info(path)
        statistics = usable_stats(info, settings.stats)
        if html or png:
            _check_pictures(html, png)
        if measure:
            measuring = calib_tools("measure")
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
    try:
        # before anything is drawn: what was measured is told, whatever comes of the pictures
        if as_json:
            console.write_json({**report.as_dict(), "evidence": None if evidence is None else evidence.as_dict()})
        else:
            _show(report, evidence, model)
    finally:
        if info is not None:
            _draw(report, info, statistics, evidence, html, png)
    if found is not None and found.problem:
        raise StatsError(found.problem, where=found.path, fix=found.fix)


def _show(report: ModelReport, evidence: Evidence | None, model: str) -> None:
    """All of it as text on stdout."""
    found = report.statistics
    types = " and ".join(dict.fromkeys((report.cache_type_k, report.cache_type_v)))
    pairs = [
        ("file", f"{report.path} ({formats.size(report.file_bytes)})"),
        ("architecture", f"{report.architecture}, trained for {report.n_ctx_train:,} tokens"),
        ("layers", report.layers_text),
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
            (f"{row.n_ctx:,} tokens", *(formats.size(size) for size in (row.full, *row.evicting.values())))
            for row in report.memory
        ],
        right=range(1, 2 + len(budgets)),
    )
    if evidence is not None:
        print(f"\n{evidence.verdict()[1]}")


def _check_pictures(html: Path | None, png: Path | None) -> None:
    """Whether pictures can be drawn and written, before minutes are spent on measuring.

    Raises
    ------
    BackendMissingError
        There is no matplotlib, or none that works.
    UsageError, DoesNotFitError
        The file or the folder cannot be written.
    """
    where = "--html" if html else "--png"
    fix = "pip install '.[report]' in the folder of triattn-local"
    try:
        from ..inspection import figures  # noqa: F401
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "triattn_local":
            raise
        raise BackendMissingError(f"{library} is not installed", where=where, fix=fix) from None
    except ImportError as error:
        raise BackendMissingError(f"matplotlib cannot be used: {error}", where=where, fix=fix) from None
    if html is not None:
        check_writable(html, 0)
    if png is not None:
        try:
            png.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"is no folder: {error.strerror}", where=f"--png {png}") from None
        check_writable(png / "concentration.png", 0)


def _draw(report: Any, info: Any, statistics: Any, evidence: Any, html: Path | None, png: Path | None) -> None:
    """Write the pictures, for which matplotlib is needed."""
    if html is None and png is None:
        return
    from ..inspection.figures import pictures
    from ..inspection.page import page

    drawn = list(pictures(info, statistics, evidence))
    if html is not None:
        write_whole(html, page(report, evidence, drawn).encode("utf-8", "replace"))
        console.say(f"wrote {html}")
    if png is not None:
        for picture in drawn:
            write_whole(png / f"{picture.name}.png", picture.png())
        console.say(f"wrote {len(drawn)} pictures into {png}")
