"""Check the installation."""

from __future__ import annotations

from typing import Annotated

import typer

from ..settings import Settings
from ..support import console
from .app import app
from .flags import AsJson, Given, with_settings


@app.command()
@with_settings("stats", "api_key")
def doctor(
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model to check too.", show_default=False)
    ] = None,
    given: Given,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="URL", help="A running server to call a tool through.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check the installation: library, devices, tools, folders, the statistics of a model, and a running server."""
    from .. import store
    from ..doctor import check_all

    settings = Settings.load(given)
    path = store.resolve(model, settings.models) if model is not None else None
    checks = list(check_all(settings, path, server))
    if as_json:
        console.write_json([check.as_dict() for check in checks])
    else:
        console.write_checks([(check.name, check.status, check.found, check.fix) for check in checks])
    return next((check.exit_code for check in checks if check.status == "fail"), 0)
