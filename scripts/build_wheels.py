"""Wheels of llama-cpp-python with TriAttention and of triattn-local, for machines other than this one.

    python scripts/build_wheels.py --out dist                 # the CPU's, for every 64-bit x86 processor since 2009
    python scripts/build_wheels.py --out dist --backend cuda  # needs nvcc; --arch 86,89,120 for these cards alone
    python scripts/build_wheels.py --out dist --backend vulkan

The last line of stdout is JSON: the wheels, their sizes, the newest glibc that they ask for, and how long it took. How
a release publishes them is in docs/releasing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = {"cpu": "", "cuda": "-DGGML_CUDA=on", "vulkan": "-DGGML_VULKAN=on"}


def glibc_of(wheel: Path) -> str | None:
    """The newest version of glibc that a library or program in the wheel names; None on other systems."""
    named = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "/lib/" in name or "/bin/" in name:
                named |= set(re.findall(rb"GLIBC_(\d+)\.(\d+)", archive.read(name)))
    return "{}.{}".format(*max((int(major), int(minor)) for major, minor in named)) if named else None


def build(out: Path, backend: str, arch: str | None) -> list[Path]:
    """Build both wheels into ``out`` and return their paths."""
    if backend == "cuda" and shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
        raise SystemExit("build_wheels: no nvcc on PATH; install the CUDA toolkit, or name nvcc in $CUDACXX")
    arguments = [BACKENDS[backend], os.environ.get("CMAKE_ARGS", "")]
    if arch:
        arguments.append(f"-DCMAKE_CUDA_ARCHITECTURES={arch.replace(',', ';')}")
    env = os.environ | {"TRIATTN_PORTABLE": "1", "CMAKE_ARGS": " ".join(filter(None, arguments))}
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=out) as folder:
        for source in ("./native", "."):
            command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source]
            if subprocess.run(command, cwd=ROOT, env=env, check=False, stdout=sys.stderr).returncode:
                raise SystemExit(f"build_wheels: {source} was not built; pip's words are above")
        for path in sorted(Path(folder).glob("*.whl")):
            made.append(path.replace(out / path.name))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels (default: dist)")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="what computes beside the CPU")
    parser.add_argument("--arch", help="compute capabilities of the cards, such as 86,89,120 (default: llama.cpp's)")
    arguments = parser.parse_args()
    began = time.monotonic()
    wheels = build(arguments.out.absolute(), arguments.backend, arguments.arch)
    told = [{"wheel": path.name, "bytes": path.stat().st_size, "glibc": glibc_of(path)} for path in wheels]
    print(json.dumps({"backend": arguments.backend, "wheels": told, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
