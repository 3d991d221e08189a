"""Check the installation."""

from __future__ import annotations

from typing import Annotated

from ..settings import Settings
from ..support import console
from .app import app
from .flags import AsJson, Given, argument, option, with_settings


@app.command()
@with_settings("stats", "api_key")
def doctor(
    *,
    model: Annotated[str | None, argument("MODEL", "A model to check too.")] = None,
    given: Given,
    server: Annotated[str | None, option("--server", "URL", "A running server to call a tool through.")] = None,
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
