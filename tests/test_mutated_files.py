"""Files changed by chance end nothing: scripts/mutate_files.py with a few of them.

TRIATTN_TEST_FULL=1 makes 10,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "mutate_files.py"


def test_no_mutated_file_ends_a_process() -> None:
    n = 10_000 if os.environ.get("TRIATTN_TEST_FULL") else 40
    done = subprocess.run([sys.executable, str(SCRIPT), "--files", str(n)], capture_output=True, text=True)
    assert done.stdout.startswith("seed "), done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n:,} files, 0 faults" in done.stdout
