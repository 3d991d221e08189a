"""Long reasoning on one desktop GPU: a llama.cpp whose KV cache keeps what later queries will want.

What one's own programs need is here. It is fetched when it is first asked for, so that importing the package loads no
native library: ``doctor`` must be able to say that there is none.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

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


_MOVED = {
    "answers": "messages text_stream thinking tool_calls",
    "engine": "cache_layout cache_rows context_options contexts devices native runtime sampling snapshot trial "
    "vocabulary",
    "inspection": "evidence",
    "model": "architectures ggml_types gguf_file metadata model_info scoring stats",
    "sessions": "conversation",
    "support": "aio atomic console interrupts paths stop turns",
}
"""room -> its modules that lay at the top before there were rooms: scripts that were written then still find them"""
_ROOM = {f"{__name__}.{module}": room for room, modules in _MOVED.items() for module in modules.split()}


class _OldPlaces(MetaPathFinder, Loader):
    """``triattn_local.stats`` is ``triattn_local.model.stats``, the same module."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        return ModuleSpec(name, self) if name in _ROOM else None

    def create_module(self, spec: ModuleSpec) -> Any:
        module = importlib.import_module(f".{_ROOM[spec.name]}.{spec.name.rpartition('.')[2]}", __name__)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self._spec  # what has run already stays what it was


sys.meta_path.append(_OldPlaces())


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
