"""What is known of tensor types is what the library knows that loads them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType
from llama_cpp import llama_cpp

from triattn_local.model.ggml_types import block_of
from triattn_local.model.gguf_file import read_gguf


@pytest.mark.parametrize("number", range(llama_cpp.GGML_TYPE_COUNT))
def test_every_type_of_the_library_is_known(number: int) -> None:
    size = llama_cpp._lib.ggml_type_size
    size.restype = ctypes.c_size_t
    block = block_of(number)
    assert (0 if block is None else block[1]) == size(number)


def test_without_a_library_gguf_py_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    block_of.cache_clear()
    assert block_of(GGMLQuantizationType.Q4_K) == (256, 144)
    assert block_of(77) is None
    block_of.cache_clear()


def test_types_that_the_library_lacks_are_unknown() -> None:
    assert block_of(llama_cpp.GGML_TYPE_COUNT + 7) is None
    assert block_of(2**32 - 1) is None


def test_a_type_newer_than_gguf_py_can_be_planned(smollm2: Path, tmp_path: Path) -> None:
    q2_0 = 42
    assert q2_0 not in set(GGMLQuantizationType), "gguf-py has it now: take a newer type, or drop this test"
    beside, model = Path(sys.executable).parent, tmp_path / "m.gguf"
    quantize = [str(beside / "llama-quantize"), "--allow-requantize", str(smollm2), str(model), "Q2_0", "1"]
    subprocess.run(quantize, check=True, capture_output=True, timeout=300)
    assert any(tensor.ggml_type == q2_0 and tensor.n_bytes for tensor in read_gguf(model).tensors)
    plan = [str(beside / "triattn-local"), "plan", str(model), "--vram", "0"]
    done = subprocess.run(plan, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
