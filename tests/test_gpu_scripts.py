"""The scripts for GPU builds say what is missing, and carry what a build needs and no more."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """nvcc with headers and no cuBLAS, no GPU beside it, and a wheel's cuBLAS in a folder of its own."""
    root = tmp_path / "cuda"
    (root / "bin").mkdir(parents=True)
    (root / "include").mkdir()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    for name in ("libcublas.so.13", "libcublasLt.so.13"):
        library = tmp_path / "wheel" / "nvidia" / "cu13" / "lib" / name
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
    return root


def cuda_options(toolkit: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("CMAKE_ARGS", "CUDACXX", "CUDAFLAGS")}
    env |= {"PATH": f"{toolkit / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", **environment}
    command = [sys.executable, str(SCRIPTS / "cuda_options.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def exported(text: str) -> dict[str, str]:
    """The variables as a shell sees them."""
    script = f'{text}\nprintf \'%s\\n\' "$CUDACXX" "$CUDAFLAGS" "$CMAKE_ARGS"'
    result = subprocess.run(["bash", "-c", script], env={}, capture_output=True, text=True, check=True)
    return dict(zip(("CUDACXX", "CUDAFLAGS", "CMAKE_ARGS"), result.stdout.splitlines(), strict=True))


def test_options_for_a_toolkit_without_cublas(toolkit: Path) -> None:
    wheel = toolkit.parent / "wheel"
    result = cuda_options(toolkit, "--arch", "86;89", "--cublas", str(wheel), CMAKE_ARGS="-DMORE=1")
    assert result.returncode == 0, result.stderr
    found = exported(result.stdout)
    assert found["CUDACXX"] == str(toolkit / "bin" / "nvcc")
    assert found["CUDAFLAGS"] == f"-I{wheel}/nvidia/cu13/include"
    assert "-DGGML_CUDA=on" in found["CMAKE_ARGS"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89" in found["CMAKE_ARGS"]
    assert f"-DCUDA_cublas_LIBRARY={wheel}/nvidia/cu13/lib/libcublas.so.13" in found["CMAKE_ARGS"]
    assert f"-DCUDA_cublasLt_LIBRARY={wheel}/nvidia/cu13/lib/libcublasLt.so.13" in found["CMAKE_ARGS"]
    assert found["CMAKE_ARGS"].endswith("-DMORE=1")


def test_options_for_a_whole_toolkit(toolkit: Path) -> None:
    (toolkit / "include" / "cublas_v2.h").touch()
    found = exported(cuda_options(toolkit, "--arch", "90").stdout)
    assert "cublas" not in found["CMAKE_ARGS"]
    assert found["CUDAFLAGS"] == ""


def test_options_say_what_is_missing(toolkit: Path) -> None:
    result = cuda_options(toolkit, "--arch", "89", "--cublas", str(toolkit))
    assert result.returncode == 1
    assert "has no cuBLAS" in result.stderr
    if not Path("/usr/bin/nvidia-smi").exists():
        assert "give --arch" in cuda_options(toolkit).stderr
    result = cuda_options(toolkit, "--arch", "89", PATH="/nowhere", CUDACXX="/nowhere/nvcc")
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert "no nvcc" in result.stderr


def test_the_source_of_the_bundle_is_whole_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_bundle

    target = tmp_path / "source.tar.gz"
    gpu_bundle.write_source(target)
    assert target.stat().st_size < 10 << 20
    with tarfile.open(target) as tar:
        names = {name.partition("/pristine/")[2] for name in tar.getnames()}
    for needed in (
        "llama_cpp/llama_cpp.py",
        "vendor/llama.cpp/ggml/src/ggml-cuda/fattn.cu",
        "vendor/llama.cpp/CMakeLists.txt",
    ):
        assert needed in names
    for left_out in gpu_bundle.LEFT_OUT:
        assert not any(f"{name}/".startswith(f"{left_out}/") for name in names), left_out


def test_the_check_says_how_to_make_its_bundle(tmp_path: Path) -> None:
    for arguments, text in (([], "usage:"), ([str(tmp_path), str(tmp_path / "out")], "scripts/gpu_bundle.py")):
        command = ["bash", str(SCRIPTS / "gpu_check.sh"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr.startswith("gpu_check: ")
        assert text in result.stderr
