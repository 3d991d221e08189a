"""Serve a model to agents."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..settings import Settings
from ..support import console
from .app import EXIT_INTERRUPTED, app
from .flags import (
    SERVER,
    ApiKey,
    AsJson,
    Batch,
    Cold,
    Effort,
    FlashAttn,
    Keep,
    Mode,
    Model,
    NoEvict,
    PlannedBudget,
    PlannedCtx,
    PlannedLayers,
    PlannedTypeK,
    PlannedTypeV,
    Policy,
    RopeScaling,
    Stats,
    Think,
    ThinkBudget,
    Threads,
    Window,
    YieldCores,
    flag,
    switch,
)


@app.command(context_settings={"allow_extra_args": True})
def serve(
    context: typer.Context,
    model: Model,
    host: Annotated[str | None, flag("host", "ADDRESS", SERVER)] = None,
    port: Annotated[int | None, flag("port", "N", SERVER)] = None,
    api_key: ApiKey = None,
    alias: Annotated[str | None, flag("alias", "NAME", SERVER)] = None,
    slots: Annotated[int | None, flag("slots", "N", SERVER)] = None,
    cache_ram: Annotated[int | None, flag("cache_ram", "MIB", SERVER)] = None,
    idle_unload: Annotated[int | None, flag("idle_unload", "SECONDS", SERVER)] = None,
    start_timeout: Annotated[int | None, flag("start_timeout", "SECONDS", SERVER)] = None,
    restarts: Annotated[int | None, flag("restarts", "N", SERVER)] = None,
    think: Think = None,
    effort: Effort = None,
    think_budget: ThinkBudget = None,
    ctx: PlannedCtx = None,
    rope_scaling: RopeScaling = None,
    budget: PlannedBudget = None,
    window: Window = None,
    cold: Cold = None,
    keep: Keep = None,
    mode: Mode = None,
    policy: Policy = None,
    no_evict: NoEvict = False,
    stats: Stats = None,
    cache_type_k: PlannedTypeK = None,
    cache_type_v: PlannedTypeV = None,
    flash_attn: FlashAttn = None,
    threads: Threads = None,
    yield_cores: YieldCores = None,
    gpu_layers: PlannedLayers = None,
    batch: Batch = None,
    verbose: Annotated[bool, switch("--verbose", "All that llama-server logs, on stderr.", "-v")] = False,
    as_json: AsJson = False,
) -> int:
    """Serve a model to agents, over OpenAI's protocol, until Ctrl-C.

    The base URL is on stdout once requests are answered; the log is on stderr. What is not given, such as context
    and budget, is chosen for this machine, as `plan` shows. What follows ` -- ` are flags for llama-server itself,
    but for those that set what is set here.
    """
    from .. import store
    from ..server.choose import choose
    from ..server.serve import is_chatter
    from ..server.serve import serve as keep_serving

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
    api_key: ApiKey = None,
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="What OpenClaw is to call it.")
    ] = "triattn",
    launch: Annotated[
        str | None,
        typer.Option(
            "--launch", metavar="MODEL", help="Let OpenClaw start the server with this model.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there, whole or not at all.", show_default=False),
    ] = None,
    force: Annotated[bool, switch("--force", "Write over a file that is there.")] = False,
) -> None:
    """Print the part of openclaw.json that makes a running server a provider of OpenClaw.

    The model's name and context are what the server itself says.
    """
    from ..server.api import Api
    from ..server.openclaw import provider_block, remark
    from ..support.atomic import write_whole

    settings = Settings.load(context.params)
    if output is not None and output.exists() and not force:
        raise UsageError(
            "is there already", where=str(output), fix="put the block into it, or give --force to write over it"
        )
    api = Api(url, settings.api_key)
    served = api.model()
    block = provider_block(api, provider, launch=launch, served=served)
    text = json.dumps(block, indent=2, ensure_ascii=False)
    said = remark(served)
    if said is not None:
        console.log("warn", said)
    if output is None:
        print(text)
    else:
        write_whole(output, f"{text}\n".encode(), mode=0o600)  # it may hold the key
