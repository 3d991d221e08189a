"""Which tokens the cells of an evicting cache hold: native/src/llama-triattn-cells, alone, under operations by chance.

tests/support/cells_test.cpp has the plain model that it is compared with, after every operation.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    ROOT / "tests" / "support" / "cells_test.cpp",
    *(ROOT / "native" / "src" / f"llama-triattn-{name}.cpp" for name in ("cells", "choose", "select")),
]
SANITIZERS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test, with sanitizers where the compiler has them; nothing of ggml or llama.cpp is on its path."""
    named = os.environ.get("CXX")
    compiler = shlex.split(named) if named else [next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")]
    path = tmp_path_factory.mktemp("cells") / "cells_test"
    command = [*compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{ROOT / 'native' / 'src'}"]
    command += [*map(str, SOURCES), "-o", str(path), "-pthread"]
    done = subprocess.run([*command, *SANITIZERS], capture_output=True, text=True, check=False)
    # there, and able to start: the sanitizers' libraries may be missing
    if done.returncode or subprocess.run([path, "0", "0"], capture_output=True, check=False).returncode:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def test_cells_are_what_a_plain_model_says(program: Path) -> None:
    done = subprocess.run([program, "1", "100000"], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(n) for name, n in re.findall(r", ([a-z ]+) (\d+)", done.stdout)}
    assert done.stdout.startswith("100000 operations")
    for operation in ("round", "cut", "copy", "keep", "recall", "go back", "restore", "refuse"):
        assert counts[operation] > 300, f"{operation}: hardly tried, of {counts}"
