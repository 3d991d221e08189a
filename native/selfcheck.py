"""After a build: does this processor run what was compiled, and if not, with fewer instructions?

Why it exists: -march=native asks the compiler what the processor can do, and now and then it is wrong: a compiler
that makes wrong code for new instructions, a hypervisor that hides what it announces, an emulator around the
interpreter that the compiler does not see. Such a library dies by a signal at its first product. So it computes some
here, in a process of its own, and is compiled again without the suspects if it dies.

It does not know what the program computes (check/llama-triattn-check.cpp), nor how anything is compiled.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import toolchain
from upstream import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "llama-triattn-check"
REPORT = "triattn-build.json"  # beside the libraries: what the self-test of their build said
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Level:
    """One choice of instructions."""

    name: str
    definitions: tuple[str, ...] = ()


_OF_X86 = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")
_MORE = ("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16")
OPTIONS = tuple(f"GGML_{name}" for name in ("NATIVE", *_OF_X86, *_MORE))


def levels(macros: str, asked: str | None = None) -> list[Level]:
    """What to compile for, in order: all that the processor announces, or what is ``asked`` for, then less.

    ``macros``: the compiler's.
    """
    is_told = "GGML_NATIVE" in os.environ.get("CMAKE_ARGS", "").upper()
    result = [Level("what $CMAKE_ARGS asks for" if is_told else asked or "all instructions of this processor")]
    if not toolchain.platform_is_x86():
        return [*result, Level("the common instructions of its kind", ("GGML_NATIVE=OFF",))]

    def portable(name: str, common: bool, **more: bool) -> Level:
        options = {"NATIVE": False} | dict.fromkeys(_OF_X86, common) | dict.fromkeys(_MORE, False) | more
        return Level(name, tuple(f"GGML_{option}={'ON' if on else 'OFF'}" for option, on in options.items()))

    if "__AMX_TILE__" in macros and "__AVX512F__" in macros:
        names = {"AVX512_VBMI": "AVX512VBMI", "AVX512_VNNI": "AVX512VNNI", "AVX512_BF16": "AVX512BF16"}
        more = {option: f"__{macro}__" in macros for option, macro in names.items()}
        more |= {"AVX512": True, "AVX_VNNI": "__AVXVNNI__" in macros}
        result.append(portable("all but AMX", True, **more))
    if "__AVX2__" in macros:
        result.append(portable("AVX2 and older", True))
    return [*result, portable("SSE2 alone", False)]


def run(build: toolchain.Build) -> tuple[bool, str]:
    """Run the self-test of a build: whether it can be used here, and a line on it."""
    if lacking := _lacking(build):
        return False, f"this processor lacks {lacking}"
    program = next((path for path in build.folder.rglob(PROGRAM) if path.is_file()), None)
    if program is None:
        return True, "there was no self-test in the build"
    try:
        done = subprocess.run(
            [str(program)], capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False, f"the self-test did not end in {_TIMEOUT_S} s"
    except OSError as error:
        return True, f"the self-test could not be started: {error.strerror}"
    said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no word"])[-1]
    if done.returncode < 0:
        return False, f"the self-test was ended by {_name_of(-done.returncode)}"
    if done.returncode == 127:
        return True, f"the self-test could not be started: {said}"  # built for a GPU whose driver is not here
    return done.returncode == 0, said


def _lacking(build: toolchain.Build) -> str:
    """Instructions that the build needs and the processor that runs *this* interpreter lacks.

    Asked here too and not in a child alone: an emulator may be around this process and not around its children.
    """
    library = next((path for path in build.folder.rglob("libllama-triattn-cpu.*") if path.is_file()), None)
    if library is None:
        return ""
    import _ctypes

    lib = ctypes.CDLL(str(library))
    try:
        lib.llama_triattn_cpu_lacks.restype = ctypes.c_char_p
        return str(lib.llama_triattn_cpu_lacks().decode())
    finally:
        _ctypes.dlclose(lib._handle)  # or the next level's library would be taken for this one


def _name_of(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


def compile_and_check(build: toolchain.Build, targets: Sequence[str], asked: str | None = None) -> None:
    """Compile for the most instructions that this processor really runs; leave the report in the build folder.

    ``asked`` names the instructions that the build has been defined with, where they are not all of this processor.

    Raises
    ------
    BuildError
        Nothing that was compiled runs here.
    """
    dropped: list[str] = []
    for level in levels(toolchain.native_macros(), asked):
        # what another build's level has said is forgotten first
        build.compile([*targets, PROGRAM, "llama-triattn-cpu"], level.definitions, OPTIONS)
        is_good, said = run(build)
        line = f"self-test with {level.name}: {said}"
        build.note(line)
        print(line, file=sys.stderr, flush=True)
        if is_good:
            report = {"instructions": level.name, "self_test": said, "dropped": dropped}
            (build.folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            return
        dropped.append(line)
    raise BuildError(
        "; ".join(dropped) + f"; nothing that this compiler makes runs here: try another one (CC, CXX); see {build.log}"
    )
