"""The torch engine's memory does not know how many layers a model has: the script that measures it, at small width."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_memory.py"


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    flags = ["--shrink", "4", "--tokens", "128", "--layers", "4", "16", "--folder", str(tmp_path)]
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    few, many = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert many["file_bytes"] > 3.5 * few["file_bytes"]
    # twelve more layers are 190 MiB of packed weights, and 1,300 MiB of unpacked ones
    assert many["peak_bytes"] - few["peak_bytes"] < 48 << 20
    # one layer of this width is 118 MiB unpacked
    assert many["peak_bytes"] - many["before_bytes"] < 350 << 20
    assert few["layer_s"] > 0
    assert list(tmp_path.iterdir()) == []
