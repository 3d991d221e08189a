"""What calibration and the statistics' doors refuse, as a person at a terminal meets it: one line, one exit code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from malicious import Malicious
from packed import BOOL, U32, Packed
from tiny_models import write_tiny

from triattn_local.cli import run_app

Make = Callable[[Path], list[str]]


def packed(model: Packed, *flags: str) -> Make:
    return lambda folder: ["convert", str(model.write(folder / "m.gguf")), *flags]


def text(raw: bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "t.txt").write_bytes(raw)
        return ["convert", str(write_tiny(folder / "m.gguf")), "--corpus", str(folder / "t.txt")]

    return make


def not_a_gguf(folder: Path) -> list[str]:
    (folder / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    return ["convert", str(folder / "m.gguf")]


def statistics(payload: object) -> Make:
    def make(folder: Path) -> list[str]:
        torch.save(payload, folder / "s.pt")
        return ["import-stats", str(folder / "s.pt"), str(write_tiny(folder / "m.gguf"))]

    return make


_HEAD = dict.fromkeys(("q_mean_real", "q_mean_imag", "q_abs_mean"), torch.ones(99))

CASES: dict[str, tuple[Make, int, str]] = {
    "not a GGUF": (not_a_gguf, 3, "is not a GGUF"),
    "no such file": (lambda folder: ["convert", str(folder / "none.gguf")], 3, "none.gguf"),
    "no RoPE": (packed(Packed(arch="gpt2").drop("ARCH.rope.dimension_count")), 1, "has no RoPE"),
    "an encoder": (packed(Packed(arch="bert")), 1, "is an encoder"),
    "not causal": (packed(Packed().set("ARCH.attention.causal", BOOL, False)), 1, "is an encoder"),
    "recurrent": (packed(Packed(arch="mamba").drop("ARCH.rope.dimension_count")), 1, "is recurrent"),
    "latent keys": (packed(Packed(arch="deepseek2").set("ARCH.attention.kv_lora_rank", U32, 8)), 1, "latent"),
    "an engine that does not know it": (
        lambda folder: ["convert", str(write_tiny(folder / "m.gguf", "phi3", fused_qkv=True)), "--engine", "torch"],
        1,
        "the torch engine does not know the architecture phi3.*--engine runtime",
    ),
    "text too short": (text(b"Only a few words."), 1, "too few to calibrate on"),
    "text not UTF-8": (text("Grüße\n".encode("latin1") * 90), 1, "is not UTF-8"),
    "one line repeated": (text(b"All work and no play makes Jack a dull boy.\n" * 500), 1, "repeats itself.*--corpus"),
    "no tokens": (packed(Packed(), "--tokens", "100"), 1, "100 tokens are too few.*--tokens 512"),
    "statistics of another shape": (statistics({"metadata": {}, "stats": {"layer00_head00": _HEAD}}), 6, "has shapes"),
    "statistics of too few heads": (statistics({"metadata": {}, "stats": {}}), 6, "has no head 0 of layer 0"),
    "a pickle that tries to execute": (statistics({"stats": Malicious()}), 6, "would run code"),
    "no statistics to export": (
        lambda folder: ["export-stats", str(write_tiny(folder / "m.gguf"))],
        6,
        "has no statistics; triattn-local convert",
    ),
    "pictures without statistics": (
        lambda folder: ["inspect", str(write_tiny(folder / "m.gguf")), "--html", str(folder / "x.html")],
        6,
        "has no statistics",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_an_exit_code(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, code, reason = CASES[case]
    command = make(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert run_app(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*\n", err.splitlines(keepends=True)[-1])
    assert re.search(reason, err.splitlines()[-1]), err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny(tmp_path / "m.gguf")
    assert run_app(["convert", str(model), "--tokens", "700", "--engine", "torch"]) == 0
    assert run_app(["export-stats", str(tmp_path / "m.triattn.gguf"), "-o", str(tmp_path / "s.pt")]) == 0
    assert run_app(["export-stats", str(tmp_path / "m.triattn.gguf"), "-o", str(tmp_path / "s.pt")]) == 2
    assert run_app(["import-stats", str(tmp_path / "s.pt"), str(model), "--sidecar"]) == 0
    assert run_app(["inspect", str(model), "--stats", str(tmp_path / "m.triattn-stats.gguf")]) == 0
    assert "imported" in capsys.readouterr().out
