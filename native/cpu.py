"""Can this processor run the libraries in this folder? (llama_cpp/_cpu.py in the wheel.)

Why it exists: the libraries are compiled for the processor that built them. In a shared home, a copied environment or a
virtual machine that moved, the first product would end the process by SIGILL, without a word. So this is asked before
any of them is loaded; the answer comes from a library of its own, compiled for the oldest processor.
"""

from __future__ import annotations

import ctypes
from pathlib import Path


class UnfitProcessorError(RuntimeError):
    """The libraries were compiled for another processor than this one."""


def lacking(folder: Path) -> list[str]:
    """Names of the instruction sets that the libraries in ``folder`` need and this processor lacks."""
    for path in sorted(folder.glob("libllama-triattn-cpu.*")):
        try:
            ask = ctypes.CDLL(str(path)).llama_triattn_cpu_lacks
        except (OSError, AttributeError):
            continue  # not ours to judge
        ask.restype = ctypes.c_char_p
        return list(ask().decode().split())
    return []


def check(folder: Path) -> None:
    """Raise unless this processor runs the libraries in ``folder``."""
    if missing := lacking(folder):
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UnfitProcessorError(
            f"the libraries in {folder} were compiled for another processor, this one lacks {named}; "
            "build them here: pip install --force-reinstall --no-deps ./native"
        )
