"""Long reasoning on one desktop GPU: a llama.cpp whose KV cache keeps what later queries will want.

What one's own programs need is here. It is fetched when it is first asked for, so that importing the package loads no
native library: ``doctor`` must be able to say that there is none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .answers.tool_calls import ToolCall
    from .config import EvictionConfig, RuntimeConfig, SamplingConfig
    from .engine.contexts import Context, Model
    from .engine.runtime import Done, Prefill, Runtime, RuntimeStats, Text, Token
    from .errors import TriattnError
    from .planning import plan_run
    from .settings import Settings
    from .support.aio import in_thread

_HOMES = {
    "answers.tool_calls": ("ToolCall",),
    "config": ("EvictionConfig", "RuntimeConfig", "SamplingConfig"),
    "engine.contexts": ("Context", "Model"),
    "engine.runtime": ("Done", "Prefill", "Runtime", "RuntimeStats", "Text", "Token"),
    "errors": ("TriattnError",),
    "planning": ("plan_run",),
    "settings": ("Settings",),
    "support.aio": ("in_thread",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Context",
    "Done",
    "EvictionConfig",
    "Model",
    "Prefill",
    "Runtime",
    "RuntimeConfig",
    "RuntimeStats",
    "SamplingConfig",
    "Settings",
    "Text",
    "Token",
    "ToolCall",
    "TriattnError",
    "__version__",
    "in_thread",
    "plan_run",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
