"""Long reasoning on one desktop GPU: a llama.cpp whose KV cache keeps what later queries will want.

``Runtime`` is the way in for one's own programs. It is fetched when it is first asked for, so that importing the
package loads no native library: ``doctor`` must be able to say that there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["Runtime", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Runtime":
        from .engine.runtime import Runtime

        return Runtime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
