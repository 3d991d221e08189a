"""The instructions of a library for other machines; scripts/check_wheel.py asks a whole wheel on an older processor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "native"), str(ROOT / "scripts")]

import build_wheels  # noqa: E402
import portable  # noqa: E402
import selfcheck  # noqa: E402
import toolchain  # noqa: E402

needs_x86_linux = pytest.mark.skipif(
    not toolchain.platform_is_x86() or sys.platform != "linux", reason="x86 Linux has the variants"
)


def _on(definitions: list[str]) -> set[str]:
    return {name.removesuffix("=ON") for name in definitions if name.endswith("=ON")}


@needs_x86_linux
def test_the_base_asks_for_nothing_newer_than_sse4_2() -> None:
    assert _on(portable.base()) == {"GGML_SSE42", "TRIATTN_PORTABLE"}
    assert "GGML_NATIVE=OFF" in portable.base()


@needs_x86_linux
def test_a_variant_has_what_the_name_of_its_folder_promises() -> None:
    """x86-64-v3 and -v4 of the psABI: glibc takes the file where the processor has all of that."""
    v3, v4 = (_on(portable.variants()[name]) for name in ("x86-64-v3", "x86-64-v4"))
    assert v3 == {f"GGML_{name}" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")}
    assert v4 == v3 | {"GGML_AVX512"}


@needs_x86_linux
def test_every_choice_of_instructions_is_named_both_ways() -> None:
    """An option that is left out would have ggml's default, which may be on."""
    names = {definition.split("=")[0] for definition in portable.base()} - {"TRIATTN_PORTABLE"}
    assert names == set(selfcheck.OPTIONS)
    for definitions in portable.variants().values():
        assert {definition.split("=")[0] for definition in definitions} == names


def test_the_report_of_a_portable_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    assert selfcheck.levels("", portable.NAME)[0] == selfcheck.Level(portable.NAME)
    assert selfcheck.levels("")[0].name == "all instructions of this processor"


def test_cuda_wheels_need_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(SystemExit, match="no nvcc on PATH"):
        build_wheels.build(tmp_path, "cuda", None)
