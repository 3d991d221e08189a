"""The instructions of a library for other machines: `TRIATTN_PORTABLE=1 pip wheel ./native`.

Why it exists: what is compiled for the processor at hand dies on an older one. So such a library is compiled for
every 64-bit x86 processor since 2009, and has ggml's CPU backend twice more, in `lib/glibc-hwcaps/`: glibc 2.33 and
later takes from there what the processor can do, an older one takes the plain file. The loops of our own that matter
have versions that are chosen in the same way (LLAMA_TRIATTN_PORTABLE).

Why not ggml's own GGML_CPU_ALL_VARIANTS: it looks for its variants beside the running program, which is Python.
"""

from __future__ import annotations

import os
import sys

import toolchain

NAME = "what processors since 2009 have"
FOLDER = "glibc-hwcaps"

_V2 = ("SSE42",)
_V3 = (*_V2, "AVX", "AVX2", "BMI2", "FMA", "F16C")
_V4 = (*_V3, "AVX512")
_ALL = (*_V4, "AVX_VNNI", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16")


def is_asked() -> bool:
    """Whether the library is for other machines than this one."""
    return os.environ.get("TRIATTN_PORTABLE", "0") not in ("", "0")


def _options(instructions: tuple[str, ...]) -> list[str]:
    return ["GGML_NATIVE=OFF", *(f"GGML_{name}={'ON' if name in instructions else 'OFF'}" for name in _ALL)]


def base() -> list[str]:
    """Definitions for CMake of what runs everywhere."""
    if not toolchain.platform_is_x86():
        return ["GGML_NATIVE=OFF"]
    return [*_options(_V2), f"TRIATTN_PORTABLE={'ON' if sys.platform == 'linux' else 'OFF'}"]


def variants() -> dict[str, list[str]]:
    """Folder below glibc-hwcaps -> definitions of the CPU backend that lies there."""
    if not toolchain.platform_is_x86() or sys.platform != "linux":
        return {}
    return {"x86-64-v3": _options(_V3), "x86-64-v4": _options(_V4)}
