"""The flags that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..settings import fields
from ..support.paths import decode

CACHE, COMPUTE, ANSWER, GRID, MACHINE = "Cache", "Compute", "Answer", "Grid", "Machine"
SERVER = "Server"
"""headings in ``--help``"""


def flag(setting: str, metavar: str, panel: str, *names: str, default: str | None = None) -> Any:
    """The flag of a setting: its text and its default stand in ``settings``, and None is "not given"."""
    entry = fields()[setting]
    told = entry.default if default is None else default
    default = "" if told in (None, "") else f" [default: {told}]"
    return typer.Option(
        *(names or (entry.metadata["flag"],)),
        metavar=metavar,
        help=entry.metadata["help"] + default,
        show_default=False,
        rich_help_panel=panel,
    )


def switch(name: str, text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A flag without a value."""
    return typer.Option(name, *names, metavar="", help=text, show_default=False, rich_help_panel=panel, **more)


def text_argument(text: str, where: str) -> str:
    """A text from the command line, whose bytes may be anything; without the byte order mark of a file it came from.

    Raises
    ------
    UsageError
        It is not UTF-8.
    """
    try:
        return decode(os.fsencode(text))
    except UnicodeError:
        raise UsageError("is not UTF-8 text", where=where) from None


AsJson = Annotated[bool, switch("--json", "One JSON value on stdout instead of text.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A path, a name that `ls` shows, or `demo`.")]
Stats = Annotated[Path | None, flag("stats", "SIDECAR", CACHE)]
CacheTypeK = Annotated[str | None, flag("cache_type_k", "TYPE", CACHE)]
CacheTypeV = Annotated[str | None, flag("cache_type_v", "TYPE", CACHE)]
Threads = Annotated[int | None, flag("threads", "N", COMPUTE, "--threads", "-t")]
GpuLayers = Annotated[int | None, flag("gpu_layers", "N", COMPUTE)]
ApiKey = Annotated[str | None, flag("api_key", "KEY", SERVER)]
Batch = Annotated[int | None, flag("batch", "TOKENS", COMPUTE)]
FlashAttn = Annotated[bool | None, flag("flash_attn", "", COMPUTE, "--flash-attn/--no-flash-attn")]
Cold = Annotated[str | None, flag("cold", "SIZE", CACHE)]
Keep = Annotated[int | None, flag("keep", "TOKENS", CACHE)]
Effort = Annotated[str | None, flag("effort", "LEVEL", ANSWER)]
MaxTokens = Annotated[int | None, flag("max_tokens", "TOKENS", ANSWER, "-n", "--max-tokens")]
MinP = Annotated[float | None, flag("min_p", "P", ANSWER)]
Mode = Annotated[str | None, flag("mode", "MODE", CACHE)]
NoEvict = Annotated[bool, switch("--no-evict", "Full attention: a cell for every token.", panel=CACHE)]
Policy = Annotated[str | None, flag("policy", "POLICY", CACHE)]
PresencePenalty = Annotated[float | None, flag("presence_penalty", "X", ANSWER)]
Preset = Annotated[str | None, flag("preset", "NAME", ANSWER)]
RepeatPenalty = Annotated[float | None, flag("repeat_penalty", "X", ANSWER)]
RopeScaling = Annotated[str | None, flag("rope_scaling", "KIND", CACHE)]
Seed = Annotated[int | None, flag("seed", "N", ANSWER)]
Stop = Annotated[list[str] | None, flag("stop", "TEXT", ANSWER, default="")]
System = Annotated[str | None, flag("system", "TEXT", ANSWER)]
Temp = Annotated[float | None, flag("temp", "T", ANSWER)]
Think = Annotated[bool | None, flag("think", "", ANSWER, "--think/--no-think")]
ThinkBudget = Annotated[int | None, flag("think_budget", "TOKENS", ANSWER)]
TopK = Annotated[int | None, flag("top_k", "N", ANSWER)]
TopP = Annotated[float | None, flag("top_p", "P", ANSWER)]
YieldCores = Annotated[bool | None, flag("yield_cores", "", COMPUTE, "--yield-cores/--no-yield-cores")]
Window = Annotated[int | None, flag("window", "TOKENS", CACHE)]

# of the commands that plan: what is not given is chosen, and so is what is `auto`
FITTING_TYPE = "auto, f16 or q8_0, what fits"
PlannedCtx = Annotated[
    str | None, flag("ctx", "TOKENS", CACHE, default="auto, what the model was trained for, at most 131072")
]
PlannedBudget = Annotated[
    str | None,
    flag("budget", "TOKENS", CACHE, default="auto, 2048 or on a GPU up to 4096, what fits; off is full attention"),
]
PlannedTypeK = Annotated[str | None, flag("cache_type_k", "TYPE", CACHE, default=FITTING_TYPE)]
PlannedTypeV = Annotated[str | None, flag("cache_type_v", "TYPE", CACHE, default=FITTING_TYPE)]
PlannedLayers = Annotated[str | None, flag("gpu_layers", "N", COMPUTE, default="auto, as many as fit")]
