"""Compiles a laid-down tree with CMake and Ninja, and installs from it.

Why not scikit-build-core's own CMake run: it works from a new temporary environment each time, and forgets the
configuration when the paths of that environment change. This one keeps one build folder per configuration, so that a
second build compiles only what changed; a patched and an unpatched build share compiler results through ccache.

It does not know what is compiled: the targets and the tree come from the caller.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from upstream import BuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

CMAKE_MINIMUM = (3, 21)

# what changes the result besides the sources: a build folder belongs to one setting of these
_ENVIRONMENT = ("CMAKE_ARGS", "CC", "CXX", "CUDACXX", "HIPCXX", "CFLAGS", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS")
_LOG_LINES_SHOWN = 40


def _answers(command: str) -> str | None:
    """What `command --version` prints; None when it is not there or does not run.

    Tools that pip put into some virtual environment are found on PATH, but fail to start from a build environment.
    """
    if not (path := shutil.which(command)):
        return None
    result = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return result.stdout if result.returncode == 0 else None


def find_cmake() -> str | None:
    """The path of a CMake that is new enough."""
    version = re.search(r"(\d+)\.(\d+)", _answers("cmake") or "")
    if version is None or (int(version.group(1)), int(version.group(2))) < CMAKE_MINIMUM:
        return None
    return shutil.which("cmake")


def find_ninja() -> str | None:
    """The path of Ninja."""
    return next((shutil.which(name) for name in ("ninja", "ninja-build") if _answers(name)), None)


def check_tools() -> None:
    """Find out before anything is downloaded whether this machine can compile.

    Raises
    ------
    BuildError
        Naming the first tool that is missing and how to get it.
    """
    arguments = os.environ.get("CMAKE_ARGS", "")
    for language, variable, names in (("C", "CC", "cc gcc clang"), ("C++", "CXX", "c++ g++ clang++")):
        if f"CMAKE_{variable}_COMPILER=" in arguments or "CMAKE_TOOLCHAIN_FILE" in arguments:
            continue
        named = os.environ.get(variable)
        candidates = shlex.split(named)[:1] if named else names.split()
        if not any(shutil.which(name) for name in candidates):
            raise BuildError(
                f"no {language} compiler: {' or '.join(candidates)} not found on PATH; install one "
                "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
                f"or name it in ${variable}"
            )
    wanted = ".".join(map(str, CMAKE_MINIMUM))
    if find_cmake() is None:
        raise BuildError(f"no CMake {wanted} or newer on PATH; install it (pip install cmake)")
    if find_ninja() is None:
        raise BuildError("no Ninja on PATH; install it (pip install ninja)")


def platform_is_x86() -> bool:
    """Whether this is a 64-bit x86 machine."""
    return platform.machine() in ("x86_64", "AMD64")


def native_macros() -> str:
    """What the compilers say of themselves and of -march=native: their versions, and each set of instructions."""
    told = []
    for variable, default, language in (("CC", "cc", "c"), ("CXX", "c++", "c++")):
        compiler = shlex.split(os.environ.get(variable, default))
        command = [*compiler, "-march=native", "-dM", "-E", "-x", language, os.devnull]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            told.append(subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout)
    return "".join(told)


def _machine_key() -> str:
    """The compilers and what -march=native means here, so that another machine's objects are never taken for these."""
    told = " ".join(os.uname()[i] for i in (0, 4)) + native_macros()
    return hashlib.sha256(told.encode()).hexdigest()[:12]


class Build:
    """One build folder of one tree.

    Parameters
    ----------
    tree : Path
        The sources; their top CMakeLists.txt is native/CMakeLists.txt.
    definitions : Sequence[str]
        `NAME=VALUE` for CMake, before those in $CMAKE_ARGS, which therefore win.
    """

    def __init__(self, tree: Path, definitions: Sequence[str]) -> None:
        machine = _machine_key()
        settings = [list(definitions), machine, [os.environ.get(name, "") for name in _ENVIRONMENT]]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        self.tree = tree
        self.folder = tree.parent / f"build-{key}"
        self.log = tree.parent / f"build-{key}.log"
        self._is_logged = False
        self._definitions = definitions
        self._env = {
            # upstream asks git for its commit: it must not find that of a repository around the cache
            "GIT_CEILING_DIRECTORIES": str(tree.parent),
            "NINJA_STATUS": "[%f/%t] ",
            # results survive a moved or second tree; kept apart by machine, since ccache takes -march=native literally
            "CCACHE_BASEDIR": str(tree.parent),
            "CCACHE_NOHASHDIR": "1",
            "CCACHE_NAMESPACE": f"triattn-{machine}",
        } | dict(os.environ)

    def compile(self, targets: Sequence[str], definitions: Sequence[str] = (), forgotten: Sequence[str] = ()) -> None:
        """Configure and compile; on failure print the compiler's words and raise.

        ``definitions`` are for this time: what they change is compiled again, and only that. CMake
        remembers what it was told, so options that an earlier time defined are to be named in ``forgotten``.
        """
        cmake, ninja = find_cmake(), find_ninja()
        if cmake is None or ninja is None:
            raise BuildError("CMake or Ninja went away while building; run it again")
        configure = [cmake, "-S", str(self.tree), "-B", str(self.folder), "-G", "Ninja"]
        # found anew each time: these may have been in a build environment that is gone
        configure += ["-U", "GGML_CCACHE_FOUND", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += [part for name in forgotten for part in ("-U", name)]
        configure += [
            "-DCMAKE_BUILD_TYPE=Release",
            *(f"-D{definition}" for definition in (*self._definitions, *definitions)),
        ]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        self._run("configuring", configure)
        self._run("compiling", [cmake, "--build", str(self.folder), "--target", *targets])

    def note(self, line: str) -> None:
        """Write a line into the build's log."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def install(self, component: str, prefix: Path) -> None:
        """Copy a component's files below `prefix`."""
        command = [find_cmake() or "cmake", "--install", str(self.folder), "--prefix", str(prefix)]
        self._run("installing", [*command, "--component", component])

    def _run(self, doing: str, command: list[str]) -> None:
        began, shown = time.monotonic(), 0
        lines: list[str] = []
        mode = "a" if self._is_logged else "w"
        self._is_logged = True
        with self.log.open(mode, encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            process = subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            with process:
                try:
                    for line in process.stdout or ():
                        log.write(line)
                        lines.append(line)
                        if match := re.match(r"\[(\d+)/(\d+)\] ", line):
                            done, total = map(int, match.groups())
                            if 20 * done // total > shown:
                                shown = 20 * done // total
                                elapsed_s = time.monotonic() - began
                                print(f"{doing}: {done} of {total} in {elapsed_s:.0f} s", file=sys.stderr, flush=True)
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode:
            error = re.compile(r"FAILED: |CMake Error|.*\berror\b", re.IGNORECASE)
            last_lines = max(0, len(lines) - _LOG_LINES_SHOWN)
            first = next((i for i, line in enumerate(lines) if error.match(line)), last_lines)
            sys.stderr.write("".join(lines[first : first + _LOG_LINES_SHOWN]))
            raise BuildError(f"{doing} failed: the first error is above, everything is in {self.log}")
