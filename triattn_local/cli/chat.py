"""Open the chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Annotated

from ..errors import ModelNotFoundError, StatsError, UsageError
from ..settings import Settings
from .app import app
from .flags import ANSWER, CACHE, COMPUTE, LOOKS, Given, NoEvict, argument, option, switch, with_settings

CHAT_SETTINGS: Mapping[str, object] = {"temp": 0.7}


@app.command()
@with_settings(ANSWER, LOOKS, CACHE, COMPUTE, planned=True)
def chat(
    *,
    model: Annotated[
        str | None, argument("MODEL", "A path, or a name that `ls` shows; else the one used last.")
    ] = None,
    go_on: Annotated[bool, switch("--continue", "Go on with the session used last.", "-c")] = False,
    resume: Annotated[str | None, option("--resume", "ID", "Go on with this session; F2 lists them.")] = None,
    mcp: Annotated[
        list[str] | None,
        option(
            "--mcp",
            "SERVER",
            "Tools that the model may call, of an MCP server: its command line, or its address. May be given several "
            "times; config.toml has more under [mcp.NAME].",
        ),
    ] = None,
    given: Given,
    no_evict: NoEvict = False,
) -> None:
    """Talk with a model in the terminal.

    Sessions are stored as they come; F1 shows all keys. Without a model on this machine it offers to fetch one.
    """
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("needs a terminal", where="chat", fix="for pipes and scripts there is: triattn-local run")
    if go_on and resume is not None:
        raise UsageError("--continue and --resume name two sessions", where="chat", fix="leave one of the two out")
    settings = Settings.load(given, defaults=_chat_defaults())
    from .. import store

    path = store.resolve(model, settings.models) if model is not None else None
    if path is not None:
        from .. import planning

        # what does not fit is said here; what else is wrong with the model, the chat says with a way out
        with contextlib.suppress(StatsError, ModelNotFoundError):
            planning.plan_run(path, settings, evict=not no_evict, checkpoint_bytes=settings.snapshot_memory << 20)
    from ..tui.app import Start
    from ..tui.run import run_chat

    run_chat(settings, Start(path, resume, go_on, settings.system or "", evict=not no_evict, mcp=tuple(mcp or ())))


def _chat_defaults() -> Mapping[str, object]:
    """Lively answers; and batches that a CPU is through with soon, since a stop is heard between two of them."""
    from ..engine.runtime import has_gpu

    return CHAT_SETTINGS if has_gpu() else {**CHAT_SETTINGS, "batch": 64}
