"""Installs wheels into an empty virtual environment and asks for a few tokens, here and on an older processor.

    python scripts/check_wheel.py --model MODEL.triattn.gguf dist/*.whl

Needs qemu-x86_64 (Debian's qemu-user) for the older processor. Prints which CPU backend the loader took
and what was answered on each; exit code 1 if one of them did not answer, or not with the file that is meant for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# processor for qemu -> where its CPU backend lies below llama_cpp/lib; "" is this machine. The Haswell is asked what
# it loads, no more: qemu plays AVX2 so slowly that six tokens take more than eight minutes
EXPECTED = {"": None, "Haswell": "glibc-hwcaps/x86-64-v3/libggml-cpu.so", "Nehalem": "libggml-cpu.so"}
LOADED = """
import pathlib, llama_cpp
lib = pathlib.Path(llama_cpp.__file__).parent / "lib"
paths = {line.split()[-1] for line in open("/proc/self/maps") if "libggml-cpu" in line}
print(*(pathlib.Path(path).relative_to(lib) for path in paths))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a small GGUF with statistics")
    parser.add_argument("--environment", type=Path, help="one that has the wheels already; nothing is installed")
    arguments = parser.parse_args()
    qemu = shutil.which("qemu-x86_64")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.environment or Path(folder) / "venv"
        python = root / "bin" / "python"
        if not arguments.environment:
            venv.create(root, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *arguments.wheels], check=True)
        for cpu, expected in EXPECTED.items():
            if cpu and not qemu:
                print(f"{cpu}: no qemu-x86_64, not tried")
                continue
            before = [qemu, "-cpu", cpu] if cpu and qemu else []
            run = [python, python.with_name("triattn-local"), "run", arguments.model.absolute(), "The sea is"]
            run += ["-n", "6", "--threads", "1", "--ctx", "512"]
            # an environment of its own: neither the checkout nor what the user has set
            env = {"PATH": os.environ["PATH"], "HOME": folder, "OMP_NUM_THREADS": "1"}
            commands = [[python, "-c", LOADED]] + ([run] if cpu != "Haswell" else [])
            told = [
                subprocess.run(
                    [*before, *map(str, c)], cwd=folder, env=env, capture_output=True, text=True, check=False
                )
                for c in commands
            ]
            loaded, said = told[0].stdout.strip(), told[-1].stdout.strip()
            is_good = all(done.returncode == 0 for done in told) and loaded == (expected or loaded)
            is_good &= len(told) == 1 or len(said.split()) >= 3
            failures += not is_good
            print(
                f"{cpu or 'here'}: {'ok' if is_good else 'FAILED'}; {loaded or 'nothing loaded'}; {said!r}", flush=True
            )
            if not is_good:
                print(*(done.stderr for done in told), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
