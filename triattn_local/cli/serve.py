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
from .flags import CACHE, COMPUTE, SERVER, AsJson, Given, Model, NoEvict, argument, option, switch, with_settings


@app.command(context_settings={"allow_extra_args": True})
@with_settings(SERVER, "think", "effort", "think_budget", CACHE, COMPUTE, planned=True)
def serve(
    *,
    context: typer.Context,
    model: Model,
    given: Given,
    no_evict: NoEvict = False,
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

    settings = Settings.load(given)
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
@with_settings("api_key")
def openclaw_config(
    *,
    url: Annotated[str, argument("URL", "The base URL of a running server.")] = "http://127.0.0.1:8080/v1",
    given: Given,
    provider: Annotated[str, option("--provider", "NAME", "What OpenClaw is to call it.")] = "triattn",
    launch: Annotated[str | None, option("--launch", "MODEL", "Let OpenClaw start the server with this model.")] = None,
    output: Annotated[Path | None, option("--output", "FILE", "Write it there, whole or not at all.", "-o")] = None,
    force: Annotated[bool, switch("--force", "Write over a file that is there.")] = False,
) -> None:
    """Print the part of openclaw.json that makes a running server a provider of OpenClaw.

    The model's name and context are what the server itself says.
    """
    from ..server.api import Api
    from ..server.openclaw import provider_block, remark
    from ..support.atomic import write_whole

    settings = Settings.load(given)
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
