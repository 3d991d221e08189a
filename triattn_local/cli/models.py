"""Fetch models, and see which there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import UsageError
from ..settings import Settings
from ..support import console, formats
from .app import app
from .flags import AsJson, argument, switch


@app.command()
def pull(
    model: Annotated[
        str,
        argument("MODEL", "`demo`, or ORG/REPO[:QUANT] of the Hugging Face hub (default Q4_K_M).", show_default=True),
    ],
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the models folder.

    `demo` is SmolLM2-135M-Instruct (98 MB). Downloads from the hub resume where they stopped, and heed HF_HOME,
    HF_TOKEN and HF_HUB_OFFLINE. TRIATTN_MODELS names another models folder.
    """
    from .. import store

    models = Settings.load().models
    with console.Stages() as stages:
        path = store.pull(model, models, progress=stages)
    if as_json:
        size = next(entry.size_bytes for entry in store.entries(models) if entry.path == path)
        console.write_json({"path": str(path), "bytes": size})
    else:
        print(path)


@app.command("rm")
def remove(
    model: Annotated[str, argument("MODEL", "A name that `ls` shows.")],
    yes: Annotated[bool, switch("--yes", "Do not ask.", "-y")] = False,
) -> None:
    """Remove a model from the models folder; of one that is linked, the link alone."""
    from .. import store

    models = Settings.load().models
    path = store.resolve(model, models)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("asks before it removes", where="rm", fix="give --yes")
        if not typer.confirm(f"Remove {path}?", err=True):
            raise typer.Exit(1)
    for file in store.remove(model, models):
        print(file)


@app.command("ls")
def list_models(as_json: AsJson = False) -> None:
    """List the models in the models folder, and which have statistics inside."""
    from .. import store
    from ..inspection.describe import glance

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
                    formats.size(int(str(row["bytes"]))),
                    str(row["architecture"]),
                    "yes" if row["statistics"] else "no",
                )
                for row in rows
            ),
            right=(1,),
        )
    else:
        console.say(f"no models in {models}; fetch a small one with: triattn-local pull demo")
