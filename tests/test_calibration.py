"""From a model and a text to statistics: are they what the model really does, and does nothing half-done stay."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from packed import BOOL, U16, U32, Packed, stats_for
from texts import prose
from tiny_models import write_tiny

from triattn_local.calib_tools import ggml_tensor
from triattn_local.calib_tools.accumulate import HeadSums
from triattn_local.calib_tools.calibrate import calibrate, check_can_calibrate
from triattn_local.calib_tools.convert import convert
from triattn_local.calib_tools.corpus import (
    Corpus,
    Document,
    bundled_corpus,
    check_varied,
    read_corpus,
    share_out,
)
from triattn_local.calib_tools.engine_runtime import Recorded, RuntimeEngine
from triattn_local.calib_tools.tokens import SKIP_TOKENS
from triattn_local.engine import native
from triattn_local.errors import (
    BackendMissingError,
    CalibrationError,
    DoesNotFitError,
    ModelNotFoundError,
    StatsError,
    UsageError,
)
from triattn_local.model import scoring
from triattn_local.model.architectures import ROPE_TYPES, RopeType
from triattn_local.model.gguf_file import GgufFile, read_gguf
from triattn_local.model.metadata import hash_tensor_data, read_stats, write_sidecar, write_with_stats
from triattn_local.model.model_info import fingerprint, read_model_info
from triattn_local.model.stats import band_magnitude

MODELS = ["smollm2", "gemma3", "qwen25"]

ALL: tuple[Recorded, ...] = ("q_pre", "k_pre", "q_rot", "k_rot")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(params=MODELS)
def converted(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_triattn")
    return path


def watch(engine: RuntimeEngine, tokens: Sequence[int]) -> dict[tuple[int, Recorded], np.ndarray]:
    """All queries and keys of one sequence, [n_token, heads, head_dim]."""
    parts: dict[tuple[int, Recorded], list[np.ndarray]] = {}

    def keep(il: int, kind: Recorded, values: np.ndarray, first_pos: int) -> None:
        got = parts.setdefault((il, kind), [])
        assert sum(map(len, got)) == first_pos
        got.append(values.copy())

    engine.evaluate(tokens, keep)
    return {key: np.concatenate(value) for key, value in parts.items()}


# ---- the text


def test_the_bundled_text() -> None:
    corpus = bundled_corpus()
    texts = [document.text for document in corpus.documents]
    assert 40_000 < sum(len(text.encode()) for text in texts) < 60_000
    assert [d.name for d in corpus.documents] == sorted(d.name for d in corpus.documents)
    assert len(corpus.documents) >= 6
    assert corpus.label == f"triattn-local mix 1 sha256:{hashlib.sha256(''.join(texts).encode()).hexdigest()}"
    for document in corpus.documents:
        check_varied(document.text, Path(document.name))


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(prose(3000), encoding="utf-8")
    corpus = read_corpus([path])
    path.with_name("hex").write_bytes(_HEX_LINES)
    read_corpus([path.with_name("hex")])
    assert corpus.label == f"own.txt sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


_HEX_LINES = np.random.default_rng(0).bytes(32_000).hex("\n", 32).encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"All work and no play.\n" * 500, "repeats itself"),
        (b"spam " * 3000, "repeats itself"),
        (_HEX_LINES * 8, "repeats itself"),  # at a distance that zlib does not see
        ("Grüße\n".encode("latin1") * 9, "is not UTF-8: byte 2 is 0xfc"),
        (b"\xff\xfeH\x00i\x00", "is not UTF-8: byte 0 is 0xff"),
        (None, "cannot be read"),
    ],
)
def test_texts_that_are_refused(raw: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(CalibrationError, match=reason) as caught:
        read_corpus([path])
    assert caught.value.where == str(path)


@pytest.mark.parametrize("n_tokens", [1, 7, 100, 250, 999, 5000])
@pytest.mark.parametrize("n_chunk", [1, 30, 64, 4096])
def test_share_out(n_tokens: int, n_chunk: int) -> None:
    documents = [list(range(1000, 1100)), [], list(range(2000, 2010)), list(range(3000, 3500))]
    pieces = share_out(documents, n_tokens, n_chunk)
    taken = [token for piece in pieces for token in piece]
    assert len(taken) == min(n_tokens, 610)
    assert all(0 < len(piece) <= n_chunk for piece in pieces)
    by_document = [[t for t in taken if t // 1000 == i] for i in (1, 2, 3)]
    for got, document in zip(by_document, (documents[0], documents[2], documents[3]), strict=True):
        assert got == document[: len(got)]
    lengths = sorted(map(len, by_document))
    for got, document in zip(by_document, (documents[0], documents[2], documents[3]), strict=True):
        # nobody gives much less than another who could give more
        assert len(got) == len(document) or len(got) >= lengths[-1] - 1


# ---- the sums


@pytest.mark.parametrize("rope_type", ["norm", "neox"])
def test_sums(rope_type: RopeType) -> None:
    x = np.random.default_rng(0).standard_normal((500, 3, 10)).astype(np.float32) + 5
    sums = HeadSums(3, 10, 8, rope_type)
    for part in np.split(x, [1, 17, 300]):
        sums.add(torch.from_numpy(part))
    assert sums.n_tokens == 500
    assert sums.mean().dtype == np.float32
    assert np.allclose(sums.mean(), x.mean(0, dtype=np.float64), rtol=1e-7)
    assert np.allclose(sums.mean_abs(), band_magnitude(x, 8, rope_type).mean(0), rtol=1e-7)


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((4000, 2, 8)) * 10.0 ** rng.integers(-4, 4, (4000, 1, 1))).astype(np.float32)
    results = []
    for order, n in ((np.arange(4000), 1), (rng.permutation(4000), 7), (np.arange(4000)[::-1], 64)):
        sums = HeadSums(2, 8, 8, "neox")
        for part in np.array_split(x[order], n):
            sums.add(torch.from_numpy(part.copy()))
        results.append((sums.mean(), sums.mean_abs()))
    for mean, mean_abs in results[1:]:
        assert np.array_equal(mean, results[0][0])
        assert np.array_equal(mean_abs, results[0][1])


# ---- which models


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (Packed(arch="bert"), r"is an encoder \(bert\)"),
        (Packed().set("ARCH.attention.causal", BOOL, False), "is an encoder"),
        (Packed(arch="mamba").drop("ARCH.rope.dimension_count"), r"is recurrent \(mamba\)"),
        (Packed(arch="gpt2").drop("ARCH.rope.dimension_count"), r"has no RoPE \(gpt2\)"),
        (Packed().set("ARCH.rope.dimension_count", U32, 0), "has no RoPE"),
        (Packed(arch="deepseek2").set("ARCH.attention.kv_lora_rank", U32, 8), "multi-head latent attention"),
        (Packed(arch="unheard-of"), "architecture 'unheard-of'"),
    ],
    ids=lambda x: x.arch if isinstance(x, Packed) else None,
)
def test_models_that_cannot_be_calibrated(packed: Packed, reason: str, tmp_path: Path) -> None:
    path = packed.write(tmp_path / "m.gguf")
    with pytest.raises(CalibrationError, match=reason) as caught:
        check_can_calibrate(read_model_info(path))
    assert caught.value.where == str(path)
    assert caught.value.fix
    with pytest.raises(CalibrationError, match=reason):
        convert(path, tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_the_mirror_of_ggmls_tensor_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    ggml_tensor._library.cache_clear()
    assert ggml_tensor._library()
    ggml_tensor._library.cache_clear()

    class Longer(ctypes.Structure):
        _fields_ = (*ggml_tensor.GgmlTensor._fields_, ("more", ctypes.c_int64))

    monkeypatch.setattr(ggml_tensor, "GgmlTensor", Longer)
    with pytest.raises(BackendMissingError, match="tensors of 336 bytes, the calibration knows those of 344"):
        ggml_tensor._library()


# ---- convert, before anything is computed


def test_dry_run_names_the_output_and_writes_nothing(tmp_path: Path) -> None:
    path = Packed().write(tmp_path / "m.gguf")
    result = convert(path, dry_run=True)
    assert (result.path, result.model, result.dry_run) == (tmp_path / "m.triattn.gguf", path, True)
    assert (result.sidecar, result.replaced_stats, result.n_tokens, result.concentration) == (False, False, None, None)
    assert convert(path, sidecar=True, dry_run=True).path == tmp_path / "m.triattn-stats.gguf"
    assert convert(path, tmp_path / "x.gguf", dry_run=True).path == tmp_path / "x.gguf"
    assert json.loads(json.dumps(result.as_dict()))["path"] == str(result.path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_statistics_that_are_there_are_told(tmp_path: Path) -> None:
    path = Packed().write(tmp_path / "m.gguf")
    with_stats = tmp_path / "with.gguf"
    write_with_stats(path, with_stats, stats_for(path))
    assert convert(with_stats, dry_run=True).replaced_stats


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    path = Packed().write(tmp_path / "m.gguf")
    there = tmp_path / "m.triattn.gguf"
    there.write_bytes(b"something")
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        convert(path)
    convert(path, force=True, dry_run=True)
    for out in (path, link):
        for force in (False, True):
            with pytest.raises(UsageError, match="would replace the model itself"):
                convert(path, out, force=force)
    with pytest.raises(UsageError, match="is a folder"):
        convert(path, tmp_path, force=True)
    with pytest.raises(UsageError, match="No such file or directory"):
        convert(path, tmp_path / "none" / "out.gguf")
    assert path.read_bytes() == before
    assert there.read_bytes() == b"something"


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    path = Packed().write(tmp_path / "m.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
    with pytest.raises(DoesNotFitError):
        convert(path)
    assert convert(path, sidecar=True, dry_run=True)


def test_inputs_that_are_refused(tmp_path: Path) -> None:
    path = Packed().write(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        convert(tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(ModelNotFoundError, match="is not a GGUF"):
        convert(text)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelNotFoundError, match="truncated"):
        convert(cut)
    text.write_text("again " * 1000)
    with pytest.raises(CalibrationError, match="repeats itself"):
        convert(path, corpus=[text])
    with pytest.raises(CalibrationError, match="100 tokens are too few"):
        convert(path, n_tokens=100)
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "text.gguf", "cut.gguf"}


def test_the_telling_check_comes_first(tmp_path: Path) -> None:
    """An output that is there already says nothing of a text that is not."""
    path = Packed().write(tmp_path / "m.gguf")
    Packed().write(tmp_path / "m.triattn.gguf")
    with pytest.raises(CalibrationError, match=r"missing\.txt: cannot be read"):
        convert(path, corpus=[tmp_path / "missing.txt"], dry_run=True)
    with pytest.raises(UsageError, match="exists already"):
        convert(path, dry_run=True)


def test_names_of_a_split_model(tmp_path: Path) -> None:
    packed = Packed().set("split.no", U16, 0).set("split.count", U16, 3)
    path = packed.write(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(ModelNotFoundError, match="m-00002-of-00003"):
        convert(path, sidecar=True, dry_run=True)
    for i in (1, 2):
        Packed(tensors={}).set("split.no", U16, i).write(tmp_path / f"m-0000{i + 1}-of-00003.gguf")
    with pytest.raises(UsageError, match=r"split into 3 files.*-00001-of-00003\.gguf"):
        convert(path, tmp_path / "whole.gguf", dry_run=True)
    assert convert(path, dry_run=True).path.name == "m.triattn-00001-of-00003.gguf"
    assert convert(path, tmp_path / "n-00001-of-00003.gguf", dry_run=True)
    assert convert(path, sidecar=True, dry_run=True).path.name == "m-00001-of-00003.triattn-stats.gguf"
    (tmp_path / "n-00002-of-00003.gguf").write_text("somebody's")
    with pytest.raises(UsageError, match=r"n-00002-of-00003\.gguf: exists already, and is another file"):
        convert(path, tmp_path / "n-00001-of-00003.gguf", dry_run=True)


@pytest.mark.parametrize("can_link", [True, False], ids=["hard", "symbolic"])
def test_a_split_model_from_end_to_end(can_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted first file finds the others by its name, in llama.cpp too; converting it again changes nothing."""
    whole = convert(write_tiny(tmp_path / "w.gguf"), n_tokens=700, engine="runtime")
    write_tiny(tmp_path / "m.gguf", split_max_tensors=12)
    if not can_link:
        monkeypatch.setattr(os, "link", refuse_links)
    result = convert(min(tmp_path.glob("m-00001-of-*.gguf")), n_tokens=700, engine="runtime")
    assert result.path.name.startswith("m.triattn-00001-of-")
    info = read_model_info(result.path)
    assert len(info.shards) > 2
    assert [shard.is_symlink() for shard in info.shards[1:]] == [not can_link] * (len(info.shards) - 1)
    stats, want = read_stats(result.path), read_stats(whole.path)
    assert stats is not None
    assert want is not None
    assert all(np.array_equal(a, b) for a, b in zip(stats.q_mean, want.q_mean, strict=True))
    again = convert(result.path, tmp_path / f"a-00001-of-{len(info.shards):05d}.gguf", n_tokens=700, engine="runtime")
    assert again.path.read_bytes() == result.path.read_bytes()


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


# ---- what the engine sees is what the model does


@pytest.mark.slow
def test_rope_lies_between_what_is_seen_before_and_after(model: Path) -> None:
    """In every layer, sliding-window ones too, whatever the batches."""
    info = read_model_info(model)
    with RuntimeEngine(model, n_ctx=512, n_batch=150, kinds=ALL) as engine:
        assert engine.fingerprint == fingerprint(model)
        assert sorted(engine.layers) == list(range(info.n_layer))
        seen = watch(engine, engine.vocabulary.tokenize(prose(4000), add_special=False)[:400])
        assert len(seen) == 4 * info.n_layer
        for il, layer in engine.layers.items():
            assert (layer.n_head, layer.n_head_kv, layer.head_dim) == (
                info.n_head[il],
                info.n_head_kv[il],
                info.head_dim,
            )
            assert (layer.rope.rope_type, layer.rope.n_rot) == (info.rope_type, info.n_rot)
            if il in (info.full_layers or ()):
                assert replace(layer.rope, n_ctx_orig=0) == replace(scoring.RopeParams.of(info), n_ctx_orig=0)
            for letter, n_head in (("q", layer.n_head), ("k", layer.n_head_kv)):
                pre, rot = seen[il, f"{letter}_pre"], seen[il, f"{letter}_rot"]  # type: ignore[index]
                assert pre.shape == rot.shape == (400, n_head, layer.head_dim)
                want = scoring.rope(pre, np.arange(400)[:, None], layer.rope, np.float32)
                assert np.abs(want - rot).max() < 2e-5 * np.abs(rot).max()


class Weights:
    """Dequantised tensors of one file."""

    def __init__(self, path: Path) -> None:
        self.file: GgufFile = read_gguf(path)
        self.infos = {t.name.decode(): t for t in self.file.tensors}

    def rows(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        info = self.infos[name]
        n_rows = int(np.prod(info.shape[1:], dtype=int))
        data = np.memmap(self.file.path, np.uint8, "r", self.file.data_start + info.offset, (info.n_bytes,))
        packed = data.reshape(n_rows, -1)
        packed = packed if rows is None else packed[np.asarray(rows)]
        out: np.ndarray = dequantize(np.ascontiguousarray(packed), GGMLQuantizationType(info.ggml_type))
        return out.reshape(len(packed), info.shape[0]).astype(np.float64)

    def __contains__(self, name: str) -> bool:
        return name in self.infos


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.slow
def test_queries_and_keys_of_the_first_layer_follow_from_the_weights(model: Path) -> None:
    """Embedding, norm, projection, bias, query norm: computed from the file, without llama.cpp."""
    info, weights = read_model_info(model), Weights(model)
    eps = weights.file.number(f"{info.arch}.attention.layer_norm_rms_epsilon")
    assert eps is not None
    with RuntimeEngine(model, n_ctx=256) as engine:
        tokens = engine.vocabulary.tokenize(prose(2000), add_special=False)[:200]
        seen = watch(engine, tokens)
    x = weights.rows("token_embd.weight", tokens)
    if info.arch == "gemma3":
        x *= np.sqrt(info.n_embd)
    x = rms_norm(x, weights.rows("blk.0.attn_norm.weight"), eps)
    for letter in ("q", "k"):
        want = x @ weights.rows(f"blk.0.attn_{letter}.weight").T
        if (bias := f"blk.0.attn_{letter}.bias") in weights:
            want += weights.rows(bias)
        want = want.reshape(len(tokens), -1, info.head_dim)
        if (norm := f"blk.0.attn_{letter}_norm.weight") in weights:
            want = rms_norm(want, weights.rows(norm), eps)
        got = seen[0, f"{letter}_pre"].astype(np.float64)  # type: ignore[index]
        cosine = (got * want).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)
        # llama.cpp quantises activations to 8 bits
        assert cosine.min() > 0.99
        assert cosine.mean() > 0.9995
        assert np.linalg.norm(got.mean(0) - want.mean(0)) < 0.01 * np.linalg.norm(want.mean(0))


@pytest.mark.slow
def test_the_library_tells_full_layers_from_others(gemma3: Path) -> None:
    with RuntimeEngine(gemma3, n_ctx=2048, n_batch=256) as engine:
        assert engine.full_layers == read_model_info(gemma3).full_layers
        assert engine.layers[5].n_cells == 2048
        assert engine.layers[4].n_cells < 2048


@pytest.mark.slow
def test_an_exception_in_the_callback_comes_out_and_the_engine_lives_on(smollm2: Path) -> None:
    with RuntimeEngine(smollm2, n_ctx=256, n_batch=64) as engine:
        tokens = engine.vocabulary.tokenize(prose(2000), add_special=False)[:200]
        calls: list[int] = []

        def interrupt(il: int, kind: Recorded, values: np.ndarray, first_pos: int) -> None:
            calls.append(first_pos)
            if il == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.evaluate(tokens, interrupt)
        assert set(calls) == {0}
        assert len(watch(engine, tokens)) == 60
    engine.close()


@pytest.mark.slow
def test_a_file_that_llama_cpp_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot load the model"):
        RuntimeEngine(Packed().write(tmp_path / "m.gguf"), n_ctx=256)


# ---- architectures and RoPE variants of which no small real model is at hand


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(1024)
    writer.add_rope_scaling_attn_factors(1.19)


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_rope_freq_base(5e5)


def partial(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(16)


FACTORS = [1.0, 1.0, 1.5, 2.0] + [8.0] * 12
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fused weights": {"fused_qkv": True},
    "yarn": {"add": yarn},
    "linear scaling": {"add": linear},
    "frequency factors": {"freq_factors": FACTORS},
    "neox": {"arch": "qwen2"},
    "partial": {"arch": "phi3", "fused_qkv": True, "leave_out": ("ffn_gate",), "add": partial},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_rope_variants(variant: dict[str, Any], tmp_path: Path) -> None:
    """The library rotates with the parameters that the file's description leads to, and so does the reference."""
    path = write_tiny(tmp_path / "m.gguf", **variant)
    info = read_model_info(path)
    factors = variant.get("freq_factors")
    params = scoring.RopeParams.of(info, None if factors is None else tuple(factors))
    with RuntimeEngine(path, n_ctx=256, n_batch=100, kinds=ALL) as engine:
        seen = watch(engine, list(range(3, 203)))
        assert sorted(engine.layers) == list(range(4))
        for layer in engine.layers.values():
            assert layer.rope.rope_type == params.rope_type
            real, told = (astuple(rope)[1:-1] for rope in (layer.rope, params))  # all but pairing and factors
            assert real == pytest.approx(told, rel=1e-6)
    for il in range(4):
        for letter in ("q", "k"):
            pre, rot = seen[il, f"{letter}_pre"], seen[il, f"{letter}_rot"]  # type: ignore[index]
            want = scoring.rope(pre, np.arange(200)[:, None], params, np.float32)
            assert np.abs(want - rot).max() < 2e-5 * np.abs(rot).max()


def test_fused_weights_give_the_same_queries(tmp_path: Path) -> None:
    seen = []
    for fused in (False, True):
        path = write_tiny(tmp_path / f"{fused}.gguf", fused_qkv=fused)
        with RuntimeEngine(path, n_ctx=256) as engine:
            seen.append(watch(engine, list(range(3, 203))))
    assert seen[0].keys() == seen[1].keys()
    for key, values in seen[0].items():
        assert np.allclose(values, seen[1][key], rtol=0, atol=1e-4)


def test_file_and_library_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade of llama.cpp that changed how an architecture pairs its dimensions."""
    path = write_tiny(tmp_path / "m.gguf")
    monkeypatch.setitem(ROPE_TYPES, "llama", "neox")
    with pytest.raises(CalibrationError, match=r"'neox'\) by its file, and llama\.cpp computes .*'norm'\)"):
        calibrate(path, n_tokens=600, engine="runtime")


def test_a_tiny_model_from_end_to_end(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", add=yarn)
    result = convert(path, n_tokens=700)
    stats, info = read_stats(result.path), read_model_info(result.path)
    assert stats is not None
    stats.validate(info)
    assert result.n_tokens == stats.n_tokens
    # seven documents, each with a BOS before its 100 tokens
    assert stats.n_tokens == 7 * (1 + 100 - SKIP_TOKENS)
    again = convert(result.path, tmp_path / "again.gguf", n_tokens=700)
    assert again.replaced_stats
    assert again.path.read_bytes() == result.path.read_bytes()


# ---- calibrate


def little(text: str) -> Corpus:
    return Corpus("little", (Document("a", text[: len(text) // 3]), Document("b", text[len(text) // 3 :])))


@pytest.mark.slow
def test_statistics_are_the_means_of_what_the_model_does(smollm2: Path) -> None:
    corpus = little(prose(4000))
    stats = calibrate(smollm2, corpus, 600, n_batch=128, engine="runtime")
    assert stats.corpus == corpus.label
    assert stats.model == fingerprint(smollm2)
    with RuntimeEngine(smollm2, n_ctx=512, n_batch=128) as engine:
        seen: list[dict[tuple[int, Recorded], np.ndarray]] = []
        for piece in share_out(
            [engine.vocabulary.tokenize(d.text, add_special=False) for d in corpus.documents], 600, 512
        ):
            seen.append(watch(engine, piece))
        rope_type = engine.layers[0].rope.rope_type
    assert len(seen) == 2
    for i, il in enumerate(stats.layers):
        q = np.concatenate([part[il, "q_pre"][SKIP_TOKENS:] for part in seen]).astype(np.float64)
        k = np.concatenate([part[il, "k_pre"][SKIP_TOKENS:] for part in seen]).astype(np.float64)
        assert stats.n_tokens == len(q) == 600 - 2 * SKIP_TOKENS
        assert np.allclose(stats.q_mean[i], q.mean(0), rtol=1e-5, atol=1e-6)
        assert np.allclose(stats.k_mean[i], k.mean(0), rtol=1e-5, atol=1e-6)
        assert np.allclose(stats.q_abs[i], band_magnitude(q, 64, rope_type).mean(0), rtol=1e-5)


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(smollm2: Path, tmp_path: Path) -> None:
    info, outs = read_model_info(smollm2), []
    for name in ("a.gguf", "b.gguf"):
        write_sidecar(tmp_path / name, calibrate(smollm2, little(prose(4000)), 600), info)
        outs.append((tmp_path / name).read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.slow
def test_too_little_text(smollm2: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "short.txt", tmp_path / "out.gguf"
    path.write_text(prose(300))
    with pytest.raises(CalibrationError, match=r"short\.txt: has \d+ tokens, too few"):
        convert(smollm2, out, corpus=[path])
    assert not out.exists()


# ---- the statistics of real models


@pytest.mark.slow
def test_queries_gather_around_their_centres(converted: Path) -> None:
    """The observation that all stands on: in nine heads of ten the dominant band has R > 0.95."""
    stats, info = read_stats(converted), read_model_info(converted)
    assert stats is not None
    stats.validate(info)
    stats.check_belongs(fingerprint(converted))
    r = np.concatenate(stats.head_concentration(info))
    print(f"{info.name}: R mean {r.mean():.4f}, median {np.median(r):.4f}, {np.mean(r > 0.95):.1%} of heads above 0.95")
    assert np.median(r) > 0.99
    assert np.mean(r > 0.95) > 0.9


@pytest.mark.slow
def test_centres_know_what_will_be_attended_to(converted: Path) -> None:
    """On text that was not calibrated on: the share of later queries' attention that the best quarter of keys holds."""
    stats, info = read_stats(converted), read_model_info(converted)
    assert stats is not None
    with RuntimeEngine(converted, n_ctx=1024, kinds=("q_rot", "k_rot")) as engine:
        seen = watch(engine, engine.vocabulary.tokenize(prose(8000), add_special=False)[:1000])
        ropes = {il: engine.layers[il].rope for il in stats.layers}
    t, candidates = 750, np.arange(SKIP_TOKENS, 750 - 64)
    scale = 1 / 16 if info.arch == "gemma3" else info.head_dim**-0.5
    shares: dict[str, list[np.ndarray]] = {"centres": [], "random": [], "other pairs": []}
    rng = np.random.default_rng(0)
    for i, il in enumerate(stats.layers):
        q, k = seen[il, "q_rot"][t:], seen[il, "k_rot"]
        logits = np.einsum("qhd,khd->hqk", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1)) * scale
        logits[:, np.arange(1000) > np.arange(t, 1000)[:, None]] = -np.inf
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        attention = (attention / attention.sum(-1, keepdims=True)).sum(1)[:, candidates]

        def share(scores: np.ndarray, attention: np.ndarray = attention) -> np.ndarray:
            kept = scoring.keep_top(scores, len(candidates) // 4)
            part: np.ndarray = np.take_along_axis(attention, kept, -1).sum(-1) / attention.sum(-1)
            return part

        other: RopeType = "neox" if ropes[il].rope_type == "norm" else "norm"
        for name, rope in (("centres", ropes[il]), ("other pairs", replace(ropes[il], rope_type=other))):
            shares[name].append(share(scoring.score(stats.q_mean[i], stats.q_abs[i], k[candidates], t, rope)))
        shares["random"].append(share(rng.random(attention.shape)))
    mean = {name: float(np.concatenate(values).mean()) for name, values in shares.items()}
    print(info.name, {name: round(value, 3) for name, value in mean.items()})
    assert mean["centres"] > 0.5
    assert mean["centres"] > mean["random"] + 0.25
    assert mean["centres"] > mean["other pairs"] + 0.2


@pytest.mark.slow
def test_only_metadata_differs(model: Path, request: pytest.FixtureRequest) -> None:
    name = next(name for name in MODELS if request.getfixturevalue(name) == model)
    copy: Path = request.getfixturevalue(f"{name}_triattn")
    assert hash_tensor_data(copy) == hash_tensor_data(model)
    old, new = read_gguf(model), read_gguf(copy)
    for key, pair in old.pairs.items():
        assert new.head[new.pairs[key].start : new.pairs[key].end] == old.head[pair.start : pair.end]
    assert {key for key in new.pairs if key not in old.pairs} == {k for k in new.pairs if k.startswith("triattention.")}


# ---- convert


@pytest.mark.slow
def test_convert(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # settings of a chat must not reach into a calibration
    monkeypatch.setenv("TRIATTN_BUDGET", "256")
    stages: list[tuple[str, int, int | None]] = []
    units: dict[str, str] = {}

    def progress(stage: str, done: int, total: int | None, unit: str = "tokens") -> None:
        stages.append((stage, done, total))
        units[stage] = unit

    out = tmp_path / "out.gguf"
    result = convert(smollm2, out, n_tokens=600, progress=progress, engine="runtime")
    assert result.path == out
    assert (result.n_layers, result.fingerprint) == (30, fingerprint(smollm2))
    assert result.n_tokens is not None
    assert 400 < result.n_tokens < 600
    assert result.tensor_sha256 == hash_tensor_data(smollm2) == hash_tensor_data(out)
    assert result.file_bytes == out.stat().st_size
    assert result.concentration is not None
    assert result.concentration.n_heads == 270
    assert result.concentration.share_high > 0.9
    assert units == {"runtime engine: as asked for": "tokens", "calibrating": "tokens", "writing out.gguf": "bytes"}
    for wanted in ("calibrating", "writing out.gguf"):
        counts = [(done, total) for stage, done, total in stages if stage == wanted]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1]
    json.dumps(result.as_dict())

    sidecar = convert(smollm2, tmp_path / "stats.gguf", sidecar=True, n_tokens=600, engine="runtime")
    ours, theirs = read_stats(out), read_stats(sidecar.path)
    assert ours is not None
    assert theirs is not None
    assert all(map(np.array_equal, ours.q_mean, theirs.q_mean))
    assert sidecar.tensor_sha256 is None
    assert sidecar.file_bytes is not None
    assert sidecar.file_bytes < 200_000
    assert {p.name for p in tmp_path.iterdir()} == {"out.gguf", "stats.gguf"}


_CONVERT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from triattn_local.calib_tools.convert import convert
print("ready", flush=True)
convert(Path(sys.argv[1]), Path(sys.argv[2]), engine=sys.argv[3], progress=lambda stage, *_: print(stage, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "stage"),
    [("runtime", "ready"), ("runtime", "runtime engine"), ("runtime", "calibrating"), ("torch", "calibrating")],
)
def test_ctrl_c_leaves_nothing_but_a_checkpoint(engine: str, stage: str, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", _CONVERT, str(smollm2), str(out), engine]
    # not in the checkout: -c would import from there what is to be imported as installed
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(stage):
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT or "KeyboardInterrupt" in stderr
    assert time.monotonic() - sent < 30
    assert {path.name for path in tmp_path.iterdir()} <= {"out.gguf.checkpoint"}


@pytest.mark.slow
def test_the_library_knows_whose_statistics_they_are(smollm2_triattn: Path, gemma3: Path, tmp_path: Path) -> None:
    import llama_cpp

    native.library()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(smollm2_triattn), llama_cpp.llama_model_default_params())
    try:
        native.check_stats(model)
        native.load_stats(model, _sidecar(smollm2_triattn, tmp_path / "own.gguf"))
        native.check_stats(model)
        native.load_stats(model, _foreign(gemma3, tmp_path / "foreign.gguf"))
        with pytest.raises(StatsError, match="gemma3/L18"):
            native.check_stats(model)
    finally:
        llama_cpp.llama_model_free(model)


def _sidecar(converted: Path, out: Path) -> Path:
    stats = read_stats(converted)
    assert stats is not None
    write_sidecar(out, stats, read_model_info(converted))
    return out


def _foreign(model: Path, out: Path) -> Path:
    write_sidecar(out, stats_for(model), read_model_info(model))
    return out
