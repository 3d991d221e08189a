"""Makes what a machine with a GPU and without a network needs for scripts/gpu_check.sh, beside this repository.

    python scripts/gpu_bundle.py gpu-bundle

The folder then holds llama.cpp's source without what a CUDA build does not read (source.tar.gz), and the Python
packages that such a machine seldom has, as wheels that run on any Python 3. It is refused if it is larger than 60 MiB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import upstream  # noqa: E402

MAX_BYTES = 60 << 20

PACKAGES = (
    "annotated-doc",
    "diskcache",
    "filelock",
    "gguf",
    "jinja2",
    "markdown-it-py",
    "mdurl",
    "nvidia-ml-py",
    "platformdirs",
    "pygments",
    "rich",
    "shellingham",
    "tqdm",
    "typer",
    "typing-extensions",
)
"""what `doctor` and `bench` import, but for what is no pure Python, which the machine must have: see gpu_check.sh"""

_BACKENDS = (
    "blas", "cann", "et", "hexagon", "hip", "metal", "musa", "opencl", "openvino", "rpc", "sycl", "virtgpu", "vulkan",
    "webgpu", "zdnn", "zendnn",
)  # fmt: skip
_LLAMA = "vendor/llama.cpp"
LEFT_OUT = (
    *(f"{_LLAMA}/ggml/src/ggml-{name}" for name in _BACKENDS),
    *(
        f"{_LLAMA}/{name}"
        for name in ("conversion", "gguf-py", "grammars", "requirements", "skills", "examples", "pocs")
    ),
    *(f"{_LLAMA}/tools/ui/{name}" for name in ("src", "static", "tests")),
    *(f"{_LLAMA}/tools/mtmd/test-{name}" for name in ("1.jpeg", "2.mp3", "3.mp4")),
    *("docker", "docs", "examples", "tests"),
)
"""below the distribution's root: what neither CMake nor a compiler reads when it builds for the CPU and CUDA"""


def write_source(target: Path) -> None:
    """Pack the pristine tree as the native cache holds it, so that it need only be unpacked there."""
    pin = upstream.read_pin(ROOT / "patches" / "UPSTREAM")
    cache = upstream.cache_root()
    with upstream.locked(cache):
        pristine = upstream.pristine_tree(pin, cache)

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inside = member.name.partition("/pristine/")[2]
        return None if f"{inside}/".startswith(tuple(f"{name}/" for name in LEFT_OUT)) else member

    with tarfile.open(target, "w:gz", compresslevel=9) as tar:
        tar.add(pristine, f"{pristine.parent.name}/pristine", filter=wanted)


def fetch_wheels(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.10", "--implementation", "py", "--abi", "none"]
    subprocess.run([*command, "--platform", "any", "--dest", str(target), *PACKAGES], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"gpu_bundle: {folder} is there and not empty; name a new folder, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    write_source(folder / "source.tar.gz")
    fetch_wheels(folder / "wheels")
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    print(f"{folder}: {total / 2**20:.1f} MiB in {len(files)} files")
    if total > MAX_BYTES:
        raise SystemExit(f"gpu_bundle: more than {MAX_BYTES >> 20} MiB; add to LEFT_OUT what the build does not read")


if __name__ == "__main__":
    main()
