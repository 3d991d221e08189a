"""Statistics as the method's authors write them: in, out, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_transformers
import torch
from malicious import Malicious
from packed import U32, Packed
from tiny_models import write_tiny

from triattn_local.calib_tools.accumulate import HeadSums
from triattn_local.calib_tools.calibrate import calibrate
from triattn_local.calib_tools.engine_torch import TorchEngine
from triattn_local.calib_tools.official import read_official, write_official
from triattn_local.calib_tools.weights import Weights
from triattn_local.errors import StatsError
from triattn_local.model.metadata import read_stats, write_sidecar
from triattn_local.model.model_info import read_model_info


def as_the_authors_do(model: Any, tokens: list[int]) -> dict[str, Any]:
    """Their layout, from a model of the transformers library: means of complex pairs (f, f + head_dim / 2)."""
    n_head = tiny_transformers.N_HEAD
    seen = tiny_transformers.watch(model, [tokens], n_head, tiny_transformers.N_HEAD_KV)
    stats = {}
    for il in range(model.config.num_hidden_layers):
        q = torch.from_numpy(seen[il, "q"])
        half = q.shape[-1] // 2
        pairs = torch.complex(q[..., :half], q[..., half:])
        for head in range(n_head):
            mean = pairs[:, head].mean(0)
            stats[f"layer{il:02d}_head{head:02d}"] = {
                "q_mean_real": mean.real,
                "q_mean_imag": mean.imag,
                "q_abs_mean": pairs[:, head].abs().mean(0),
            }
    heads = [[il, head] for il in range(model.config.num_hidden_layers) for head in range(n_head)]
    metadata = {"num_traces": 1, "head_dim": 2 * half, "dtype": "float32", "use_chat_template": False}
    metadata |= {"rope_style": "half", "rope_type": "default", "sampled_heads": heads}
    return {"metadata": metadata, "stats": stats}


TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 259, 120)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_what_the_authors_measure_is_what_we_measure(family: str, tmp_path: Path) -> None:
    model, path = tiny_transformers.make(family, tmp_path / "m.gguf")
    torch.save(as_the_authors_do(model, TOKENS), tmp_path / "m.pt")
    info = read_model_info(path)
    assert info.full_layers is not None
    assert info.rope_type is not None
    stats = read_official(tmp_path / "m.pt", info)
    assert stats.layers == info.full_layers
    assert stats.k_mean == ()
    sums = {il: HeadSums(info.n_head[il], info.head_dim, info.n_rot, info.rope_type) for il in info.full_layers}
    with Weights(info) as weights:
        engine = TorchEngine(info, weights, torch.device("cpu"))
        hidden = engine.start([TOKENS])
        while hidden.next_layer <= info.full_layers[-1]:
            engine.step(hidden, info.full_layers, lambda il, q, k: sums[il].add(q))
    for il, q_mean, q_abs in zip(stats.layers, stats.q_mean, stats.q_abs, strict=True):
        assert np.allclose(q_mean, sums[il].mean(), atol=1e-4)
        assert np.allclose(q_abs, sums[il].mean_abs(), atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_out_and_in_again(arch: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    info = read_model_info(path)
    stats = calibrate(path, None, 700, engine="torch")
    write_official(tmp_path / "s.pt", stats, info)
    payload = torch.load(tmp_path / "s.pt", weights_only=True)
    assert len(payload["stats"]) == 16
    assert payload["metadata"]["rope_style"] == "half"
    again = read_official(tmp_path / "s.pt", info)
    assert (again.layers, again.model, again.n_tokens) == (stats.layers, stats.model, stats.n_tokens)
    assert all(map(np.array_equal, again.q_mean, stats.q_mean))
    assert all(map(np.array_equal, again.q_abs, stats.q_abs))
    # a file keeps what it does not have
    write_sidecar(tmp_path / "side.gguf", again, info)
    read = read_stats(tmp_path / "side.gguf")
    assert read is not None
    assert read.k_mean == ()
    read.validate(info)
    assert len(read.head_concentration(info)) == 4


def test_a_pickle_that_tries_to_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    info = read_model_info(write_tiny(tmp_path / "m.gguf"))
    torch.save({"metadata": {}, "stats": {"layer00_head00": Malicious()}}, tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("bad.pt", "raw.pt"):
        with pytest.raises(StatsError, match="would run code if it were loaded; it was not") as caught:
            read_official(tmp_path / name, info)
        assert caught.value.exit_code == 6
    assert not (tmp_path / "executed").exists()


def sound(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = write_tiny(tmp_path / "m.gguf")
    write_official(tmp_path / "s.pt", calibrate(path, None, 700, engine="torch"), read_model_info(path))
    payload: dict[str, Any] = torch.load(tmp_path / "s.pt", weights_only=True)
    return path, payload


def test_what_is_not_this_models(tmp_path: Path) -> None:
    path, payload = sound(tmp_path)
    info = read_model_info(path)

    def refused(match: str) -> None:
        torch.save(payload, tmp_path / "x.pt")
        with pytest.raises(StatsError, match=match):
            read_official(tmp_path / "x.pt", info)

    head = payload["stats"].pop("layer02_head01")
    refused("has no head 1 of layer 2")
    payload["stats"]["layer02_head01"] = {**head, "q_abs_mean": head["q_abs_mean"][:-1]}
    refused(r"has shapes .*the model needs \[16\]")
    payload["stats"]["layer02_head01"] = {**head, "q_mean_real": [1.0] * 16}
    refused("has shapes")
    payload["stats"]["layer02_head01"] = {"q_mean_real": head["q_mean_real"]}
    refused("'layer02_head01' that is no head's")
    payload["stats"]["layer02_head01"] = {**head, "q_abs_mean": head["q_abs_mean"] / 10}
    refused(r"smaller than \|E q_f\|")
    payload["stats"]["layer02_head01"] = {**head, "q_mean_imag": head["q_mean_imag"] * float("nan")}
    refused("not finite")
    payload["stats"]["layer02_head01"] = head
    payload["stats"]["layer09_head00"] = head
    refused("a head 0 of layer 9, the model has no such")
    del payload["stats"]["layer09_head00"]
    payload["metadata"]["head_dim"] = 128
    refused("heads of 128 dimensions, the model 32")
    payload["metadata"] |= {"head_dim": 32, "rope_style": "interleaved"}
    refused("RoPE style 'interleaved'")
    payload["metadata"] = None
    refused("has no metadata and stats")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    info = read_model_info(write_tiny(tmp_path / "m.gguf"))
    with pytest.raises(StatsError, match="cannot be read: No such file"):
        read_official(tmp_path / "none.pt", info)
    for raw in (b"", b"text", b"PK\x03\x04"):
        (tmp_path / "x.pt").write_bytes(raw)
        with pytest.raises(StatsError, match=r"is not a file of torch|holds more than numbers"):
            read_official(tmp_path / "x.pt", info)
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(StatsError, match="holds no statistics"):
        read_official(tmp_path / "x.pt", info)


def test_partial_rope_is_refused(tmp_path: Path) -> None:
    path = Packed().set("ARCH.rope.dimension_count", U32, 6).write(tmp_path / "m.gguf")
    with pytest.raises(StatsError, match="RoPE turns 6 of 8 dimensions"):
        read_official(tmp_path / "x.pt", read_model_info(path))
