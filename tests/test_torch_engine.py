"""The torch engine beside transformers, which the models' makers wrote, and beside llama.cpp, which runs them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_transformers
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as dequantize_numpy
from retouched import retouched
from texts import prose
from tiny_models import write_tiny

import triattn_local.calib_tools.choose as choose_module
from triattn_local.calib_tools.accumulate import HeadSums
from triattn_local.calib_tools.calibrate import calibrate
from triattn_local.calib_tools.corpus import Corpus, Document, bundled_corpus
from triattn_local.calib_tools.dequantize import can_dequantize, dequantize
from triattn_local.calib_tools.engine_runtime import RuntimeEngine
from triattn_local.calib_tools.engine_torch import Hidden, TorchEngine
from triattn_local.calib_tools.tokens import SKIP_TOKENS, open_vocabulary, sequences
from triattn_local.calib_tools.weights import Weights
from triattn_local.engine.devices import Device
from triattn_local.errors import CalibrationError
from triattn_local.model.architectures import RopeType
from triattn_local.model.gguf_file import ValueType
from triattn_local.model.model_info import read_model_info
from triattn_local.model.stats import TriattnStats

CPU = torch.device("cpu")
Seen = dict[tuple[int, str], np.ndarray]

# some longer than Gemma's window of the tiny model, some not; the order must not matter
TEXTS = [list(range(3, 103)), [int(t) for t in np.random.default_rng(1).integers(3, 259, 150)], [7, 8, 9]]


def watch_torch(path: Path, texts: list[list[int]]) -> Seen:
    info = read_model_info(path)
    parts: dict[tuple[int, str], list[np.ndarray]] = {}

    def keep(il: int, q: torch.Tensor, k: torch.Tensor) -> None:
        parts.setdefault((il, "q"), []).append(q.numpy().copy())
        parts.setdefault((il, "k"), []).append(k.numpy().copy())

    with Weights(info) as weights:
        engine = TorchEngine(info, weights, CPU)
        hidden = engine.start(texts)
        for _ in range(info.n_layer):
            engine.step(hidden, range(info.n_layer), keep)
    return {key: np.concatenate(value) for key, value in parts.items()}


def watch_runtime(path: Path, texts: list[list[int]]) -> Seen:
    parts: dict[tuple[int, str], list[np.ndarray]] = {}
    with RuntimeEngine(path, n_ctx=256) as engine:
        for tokens in texts:
            engine.evaluate(tokens, lambda il, kind, x, _: parts.setdefault((il, kind[0]), []).append(x.copy()))
    return {key: np.concatenate(value) for key, value in parts.items()}


def largest_difference(ours: Seen, theirs: Seen) -> float:
    """Of any query or key, as part of the layer's mean length."""
    assert ours.keys() == theirs.keys()
    return max(
        float(np.linalg.norm(x - theirs[key], axis=-1).max() / np.linalg.norm(theirs[key], axis=-1).mean())
        for key, x in ours.items()
    )


# ---- the forward pass


@pytest.mark.parametrize("family", tiny_transformers.FAMILIES)
def test_each_family_is_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model, path = tiny_transformers.make(family, tmp_path / "m.gguf")
    want = tiny_transformers.watch(model, TEXTS, tiny_transformers.N_HEAD, tiny_transformers.N_HEAD_KV)
    if read_model_info(path).rope_type == "norm":
        want = {key: tiny_transformers.to_neighbours(x) for key, x in want.items()}
    difference = largest_difference(watch_torch(path, TEXTS), want)
    print(f"{family}: torch engine and transformers differ by {difference:.1e}")
    assert difference < 2e-4


@pytest.mark.parametrize("family", tiny_transformers.FAMILIES)
def test_each_family_is_what_llama_cpp_computes(family: str, tmp_path: Path) -> None:
    _, path = tiny_transformers.make(family, tmp_path / "m.gguf")
    difference = largest_difference(watch_torch(path, TEXTS), watch_runtime(path, TEXTS))
    print(f"{family}: torch engine and llama.cpp differ by {difference:.1e}")
    # its cache is float16, and so are some of its intermediate steps
    assert difference < 2e-2


@pytest.mark.parametrize("family", tiny_transformers.FAMILIES)
def test_keys_of_other_architectures_mean_nothing(family: str, tmp_path: Path) -> None:
    """llama.cpp reads a key for some architectures only: where it does not, this engine must not either."""
    _, plain = tiny_transformers.make(family, tmp_path / "plain.gguf")
    arch = read_model_info(plain).arch
    foreign = ("attention.scale", "expert_weights_scale", "residual_scale", "embedding_scale", "attention.clamp_kqv")
    path = retouched(plain, tmp_path / "m.gguf", {f"{arch}.{key}": (ValueType.FLOAT32, 3.0) for key in foreign})
    assert largest_difference(watch_torch(path, TEXTS), watch_runtime(path, TEXTS)) < 2e-2


def test_fused_weights_are_taken_apart(tmp_path: Path) -> None:
    seen = [watch_torch(write_tiny(tmp_path / f"{fused}.gguf", fused_qkv=fused), TEXTS) for fused in (False, True)]
    assert largest_difference(seen[0], seen[1]) < 1e-6


def test_what_is_not_wanted_is_not_computed(tmp_path: Path) -> None:
    """The last wanted layer ends at its queries; its weights behind them are not even read."""
    path = write_tiny(tmp_path / "m.gguf")
    info = read_model_info(path)
    layers: list[int] = []
    with Weights(info) as weights:
        engine = TorchEngine(info, weights, CPU)
        hidden = engine.start(TEXTS)
        for _ in range(2):
            engine.step(hidden, (1,), lambda il, q, k: layers.append(il))
        before = hidden.values.clone()
        assert "blk.1.ffn_up.weight" in weights
        engine.step(Hidden(hidden.values, hidden.spans, 1), (1,), lambda il, q, k: None)
    assert layers == [1, 1, 1]
    assert torch.equal(before, hidden.values)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"arch": "phi3", "fused_qkv": True, "leave_out": ("ffn_gate",)}, "does not know the architecture phi3"),
        ({"extra": "blk.2.attn_sinks.weight"}, r"does not know what the tensor blk\.2\.attn_sinks\.weight is for"),
        ({"add": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)}, "does not know LongRoPE"),
    ],
)
def test_what_it_does_not_know_is_refused(variant: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", **variant)
    with pytest.raises(CalibrationError, match=f"the torch engine {reason}.*give --engine runtime"):
        watch_torch(path, TEXTS)


# ---- real models


def centres(path: Path, engine: Any) -> TriattnStats:
    return calibrate(path, None, 1500, engine=engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3", "qwen25"])
def test_the_two_engines_agree(name: str, request: pytest.FixtureRequest) -> None:
    """On files whose weights are packed: llama.cpp packs activations to 8 bits too, the torch engine does not."""
    path: Path = request.getfixturevalue(name)
    ours, theirs = centres(path, "torch"), centres(path, "runtime")
    assert (ours.layers, ours.n_tokens, ours.model) == (theirs.layers, theirs.n_tokens, theirs.model)
    cosines, differences = [], []
    for a, b in zip(ours.q_mean + ours.k_mean, theirs.q_mean + theirs.k_mean, strict=True):
        cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
    for a, b in zip(ours.q_abs, theirs.q_abs, strict=True):
        differences.append(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1))
    worst, most = float(np.concatenate(cosines).min()), float(np.concatenate(differences).max())
    print(f"{name}: smallest cosine of centres {worst:.5f}, largest relative difference of q_abs {most:.2%}")
    assert worst > 0.999
    assert most < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rope_type"), [("smollm2", "norm"), ("qwen25", "neox"), ("gemma3", "neox")])
def test_transformers_on_the_same_file(
    name: str, rope_type: RopeType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a model made for the test, but the published GGUF, read by the transformers library itself."""
    from transformers import AutoModelForCausalLM

    path: Path = request.getfixturevalue(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    corpus = Corpus("short", (Document("prose", prose(1200)), bundled_corpus().documents[0]))
    info = read_model_info(path)
    assert info.rope_type == rope_type
    with open_vocabulary(path) as vocabulary:
        texts = sequences(vocabulary, corpus, 1000, 2048)
    ours = calibrate(path, corpus, 1000, engine="torch")
    seen = tiny_transformers.watch(model, texts, info.n_head[0], info.n_head_kv[0])
    begins = np.cumsum([0, *map(len, texts)])
    counted = np.concatenate([np.arange(a + SKIP_TOKENS, b) for a, b in itertools.pairwise(begins)])
    for i, il in enumerate(ours.layers):
        sums = HeadSums(info.n_head[il], info.head_dim, info.n_rot, rope_type)
        q = seen[il, "q"][counted]
        sums.add(torch.from_numpy(tiny_transformers.to_neighbours(q) if rope_type == "norm" else q))
        want = sums.mean()
        assert np.linalg.norm(ours.q_mean[i] - want) < 1e-3 * np.linalg.norm(want)
        assert np.abs(ours.q_abs[i] - sums.mean_abs()).max() < 1e-3 * sums.mean_abs().max()


# ---- the parts


@pytest.mark.parametrize("kind", [t for t in GGMLQuantizationType if can_dequantize(t)], ids=lambda t: t.name)
def test_unpacking_is_gguf_pys_bit_for_bit(kind: GGMLQuantizationType) -> None:
    n_block, n_bytes = GGML_QUANT_SIZES[kind]
    n_row, n_in_row = 37, -(-512 // n_block)
    packed = np.random.default_rng(0).integers(0, 256, (n_row, n_in_row * n_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random bytes are not always a number
        got = dequantize(torch.from_numpy(packed), kind).numpy()
        want = dequantize_numpy(packed, kind)
    assert got.shape == (n_row, n_in_row * n_block)
    assert np.array_equal(got.reshape(-1), want.reshape(-1).astype(np.float32), equal_nan=True)


def test_types_that_nobody_unpacks() -> None:
    assert not can_dequantize(GGMLQuantizationType.I32)
    assert not can_dequantize(9999)


def test_weights_of_a_split_model(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "m.gguf")
    write_tiny(tmp_path / "s.gguf", split_max_tensors=12)
    first = sorted(tmp_path.glob("s-*.gguf"))[0]
    assert len(read_model_info(first).shards) > 2
    assert largest_difference(watch_torch(first, TEXTS), watch_torch(whole, TEXTS)) == 0


def test_rows_of_a_large_tensor(tmp_path: Path) -> None:
    with Weights(read_model_info(write_tiny(tmp_path / "m.gguf"))) as weights:
        table = weights.read("token_embd.weight", CPU)
        rows = [5, 0, 258, 5]
        assert torch.equal(weights.read_rows("token_embd.weight", rows, CPU), table[rows])
        assert torch.equal(weights.read("token_embd.weight", CPU, first=7, n_row=3), table[7:10])


# ---- which engine


def gpu(free_bytes: int) -> Device:
    return Device("CUDA0", "a card", free_bytes, 24 << 30, kind="gpu")


@pytest.mark.parametrize(
    ("family", "gpus", "on", "free", "engine", "why"),
    [
        ("llama", [], "cpu", 8 << 30, "torch", "on a CPU"),
        ("llama", [], "cpu", 64 << 20, "torch", "the model needs 0.8 GiB in memory, 0.1 GiB are free"),
        ("llama", [gpu(8 << 30)], "cuda", 8 << 30, "runtime", "fits into CUDA0"),
        ("llama", [gpu(64 << 20)], "cuda", 8 << 30, "torch", "the model needs 0.8 GiB in CUDA0"),
        ("llama", [], "cuda", 8 << 30, "torch", "torch has a GPU"),
        ("qwen3moe", [], "cpu", 8 << 30, "runtime", "experts"),
    ],
)
def test_the_faster_engine_that_fits(
    family: str,
    gpus: list[Device],
    on: str,
    free: int,
    engine: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, path = tiny_transformers.make(family, tmp_path / "m.gguf")
    monkeypatch.setattr(choose_module, "devices", lambda: gpus)
    monkeypatch.setattr(choose_module, "best_device", lambda _: torch.device(on))
    monkeypatch.setattr(choose_module, "free_memory", lambda: free)
    info = read_model_info(path)
    with Weights(info) as weights:
        choice = choose_module.choose(info, weights)
    assert choice.engine == engine
    assert why in choice.why
