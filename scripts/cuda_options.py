"""Prints the environment in which `pip install ./native` builds for CUDA, where the toolkit alone is not enough.

A whole toolkit beside a GPU needs none of this: CMAKE_ARGS=-DGGML_CUDA=on is all. But nvcc often comes without cuBLAS,
which PyPI's nvidia-cublas has; and a machine without a GPU has no driver to link against, and cannot say for which
architecture to compile.

    pip install --no-deps --target /opt/cublas 'nvidia-cublas==13.0.*'      # of the same CUDA as `nvcc --version`
    eval "$(python scripts/cuda_options.py --arch 89 --cublas /opt/cublas)"
    pip install ./native

Options already in $CMAKE_ARGS stay, behind these.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def find_nvcc() -> Path:
    """nvcc of $CUDACXX, on PATH, or at the usual place."""
    for name in (os.environ.get("CUDACXX"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return Path(found).resolve()
    raise SystemExit(
        "cuda_options: no nvcc on PATH or in /usr/local/cuda; install the CUDA toolkit, or name it in $CUDACXX"
    )


def gpu_architecture() -> str | None:
    """Compute capability of the first GPU, as CMake writes it; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = result.stdout.split()
    return lines[0].replace(".", "") if result.returncode == 0 and lines else None


def find_library(pattern: str, folders: Iterator[Path]) -> Path | None:
    """The first file of that name, shortest name first: the link without a version, if there is one."""
    for folder in folders:
        if found := sorted(folder.glob(pattern), key=lambda path: len(path.name)):
            return found[0]
    return None


def toolkit_folders(nvcc: Path) -> Iterator[Path]:
    root = nvcc.parent.parent
    yield from (root / "lib64", root / "lib", *root.glob("targets/*/lib"))


def wheel_folders(given: Path | None) -> Iterator[Path]:
    """Where PyPI's wheels put cuBLAS: below nvidia/, in the folder given or anywhere on sys.path."""
    for root in [given] if given else [Path(entry) for entry in sys.path if entry]:
        yield from (root / "nvidia" / "cu13" / "lib", root / "nvidia" / "cublas" / "lib")


def driver_folders() -> Iterator[Path]:
    for name in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib"):
        yield Path(name)
    yield from (Path("/usr/local/nvidia/lib64"), Path("/usr/local/nvidia/lib"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--arch", help="architectures to compile for, such as 89 or 86;89 (default: this machine's GPU)"
    )
    parser.add_argument("--cublas", type=Path, help="folder that nvidia-cublas was installed into with --target")
    options = parser.parse_args()

    nvcc = find_nvcc()
    architecture = options.arch or gpu_architecture()
    if architecture is None:
        raise SystemExit("cuda_options: no GPU here that could say its architecture; give --arch, such as --arch 89")
    arguments = ["-DGGML_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    flags = os.environ.get("CUDAFLAGS", "")

    if not (nvcc.parent.parent / "include" / "cublas_v2.h").exists():
        found = find_library("libcublas.so*", wheel_folders(options.cublas))
        if found is None:
            raise SystemExit(
                f"cuda_options: the toolkit of {nvcc} has no cuBLAS, and no Python package has; "
                "pip install --no-deps --target DIR nvidia-cublas (of the same CUDA), and give --cublas DIR"
            )
        arguments.append(f"-DCUDA_cublas_LIBRARY={found}")
        light = find_library("libcublasLt.so*", iter([found.parent]))
        arguments.append(f"-DCUDA_cublasLt_LIBRARY={light}")
        flags = f"-I{found.parent.parent / 'include'} {flags}".strip()

    stubs = [folder / "stubs" for folder in toolkit_folders(nvcc)]
    driver = find_library("libcuda.so*", driver_folders()) or find_library("libcuda.so", iter(stubs))
    # without the driver's library only the pool that grows in place is lost
    arguments.append(f"-DCUDA_cuda_driver_LIBRARY={driver}" if driver else "-DGGML_CUDA_NO_VMM=on")

    arguments += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    for name, value in (("CUDACXX", str(nvcc)), ("CUDAFLAGS", flags), ("CMAKE_ARGS", shlex.join(arguments))):
        if value:
            print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
