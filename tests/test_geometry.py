"""Geometries: the sizes of the published files, llama.cpp's own mix of types, and files that it runs."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from triattn_local import geometry
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine.contexts import Model
from triattn_local.errors import DoesNotFitError, TriattnError, UsageError
from triattn_local.geometry import GEOMETRIES, Geometry, find_geometry, geometry_bytes, write_geometry, write_outline
from triattn_local.model import metadata, model_info
from triattn_local.model.gguf_file import read_gguf

PUBLISHED_GB = {
    "qwen3-8b": 5.03,
    "qwen3-32b": 19.76,
    "qwq-32b": 19.85,
    "deepseek-r1-distill-llama-8b": 4.92,
    "deepseek-r1-distill-qwen-32b": 19.85,
    "gpt-oss-20b": 12.1,
}
"""the files on the hub, Q4_K_M, of gpt-oss MXFP4"""

PUBLISHED_PARAMETERS = {
    "qwen3.5-27b": 26.9e9,
    "qwen3.8-27b": 26.9e9,
    "qwen3.5-35b-a3b": 34.7e9,
    "glm-4.7-flash": 29.9e9,
}
"""of the language model, as llama.cpp counts them: whose files on the hub are mixes of their own"""

NAMES = sorted(GEOMETRIES)


def small(name: str, n_layer: int = 16) -> Geometry:
    """The same tensors and types, a thousandth of the bytes."""
    big = find_geometry(name)
    experts = big.experts and dataclasses.replace(big.experts, n_expert=4, n_used=2, n_ff=256)
    net = big.delta_net and dataclasses.replace(big.delta_net, n_head_k=2, n_head_v=4, d_state=64)
    shape = dataclasses.replace(
        big, n_layer=n_layer, n_embd=256, n_ff=256, n_head=4, n_vocab=512, experts=experts, delta_net=net
    )
    # a latent's dimensions hang together
    return shape if shape.latent else dataclasses.replace(shape, n_head_kv=2, head_dim=64)


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_a_geometry_has_the_parameters_of_the_published_model(name: str) -> None:
    n = sum(math.prod(tensor.shape) for tensor in find_geometry(name).tensors())
    assert n == pytest.approx(PUBLISHED_PARAMETERS[name], rel=2e-3)


def test_every_geometry_is_compared_with_what_is_published() -> None:
    assert set(NAMES) == set(PUBLISHED_GB) | set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", sorted(PUBLISHED_GB))
def test_a_geometry_has_the_size_of_the_published_file(name: str) -> None:
    assert geometry_bytes(find_geometry(name)) / 1e9 == pytest.approx(PUBLISHED_GB[name], rel=2e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt-oss-20b"])
def test_the_types_are_those_that_llama_cpp_quantises_to(name: str, tmp_path: Path) -> None:
    shape = small(name)
    ours = write_geometry(shape, tmp_path / "ours.gguf")
    tool = Path(llama_cpp.__file__).parent / "bin" / "llama-quantize"
    command = [tool, "--allow-requantize", ours, tmp_path / "theirs.gguf", "Q4_K_M", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = {tensor.name: tensor.ggml_type for tensor in read_gguf(tmp_path / "theirs.gguf").tensors}
    assert theirs == {tensor.name.encode(): tensor.type for tensor in shape.tensors()}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_its_geometry_is(name: str, tmp_path: Path) -> None:
    shape = small(name)
    path = write_geometry(shape, tmp_path / "m.gguf")
    info = model_info.read_model_info(path)
    assert (info.n_layer, info.n_embd, info.head_dim, info.head_dim_v) == (16, 256, shape.head_dim, shape.head_dim_v)
    assert info.n_rot == shape.n_rot
    assert info.full_layers == shape.full_layers
    assert info.rope_freq_base == shape.rope_freq_base
    assert info.is_mla is not shape.evicts
    stats = metadata.read_stats(path)
    if not shape.evicts:
        assert stats is None
        return
    assert stats is not None
    stats.validate(info)
    stats.check_belongs(model_info.fingerprint(path))


def test_the_same_geometry_is_the_same_file(tmp_path: Path) -> None:
    one, two = (write_geometry(small("qwen3-8b", 2), tmp_path / name) for name in ("a.gguf", "b.gguf"))
    assert one.read_bytes() == two.read_bytes()


def test_an_outline_takes_no_room(tmp_path: Path) -> None:
    path = write_outline(find_geometry("qwen3-32b"), tmp_path / "m.gguf")
    assert path.stat().st_size > 19e9
    assert path.stat().st_blocks * 512 < 64 << 20
    assert model_info.read_model_info(path).n_layer == 64


@pytest.mark.parametrize("name", ["qwen3.5-27b", "qwen3.5-35b-a3b"])
def test_a_small_hybrid_runs_and_forgets(name: str, tmp_path: Path) -> None:
    path = write_geometry(small(name, 8), tmp_path / "m.gguf")
    config = RuntimeConfig(n_batch=64, n_ubatch=64, n_threads=1)
    with Model(path, config) as model, model.context(EvictionConfig(budget_tokens=96, window=32), 4096) as context:
        logits = context.prefill([300 + i * 97 % 200 for i in range(192)])
        assert np.isfinite(logits).all()
        assert logits.std() > 0.01
        assert context.stats().n_rounds >= 1


def test_a_latent_runs_with_full_attention_and_says_why_not_otherwise(tmp_path: Path) -> None:
    path = write_geometry(small("glm-4.7-flash", 3), tmp_path / "m.gguf")
    with Model(path, RuntimeConfig(n_batch=64, n_ubatch=64, n_threads=1)) as model:
        with model.context(None, 1024) as context:
            assert np.isfinite(context.prefill(list(range(300, 364)))).all()
        with pytest.raises(TriattnError, match="latent"):
            model.context(EvictionConfig(budget_tokens=96, window=32, policy="streaming"), 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if GEOMETRIES[name].evicts])
def test_llama_cpp_runs_it_and_forgets(name: str, tmp_path: Path) -> None:
    """At full width: activations stay finite, rounds happen, and two tokens do not look the same to it."""
    n_layer = GEOMETRIES[name].full_layers[0] + 1
    path = write_geometry(find_geometry(name).cut(n_layer, 1024), tmp_path / "m.gguf")
    try:
        eviction = EvictionConfig(budget_tokens=96, window=32)
        with (
            Model(path, RuntimeConfig(n_batch=64, n_ubatch=64)) as model,
            model.context(eviction, 4096) as context,
        ):
            rng = np.random.default_rng(0)
            logits = context.prefill(rng.integers(300, 1024, 192).tolist())
            assert np.isfinite(logits).all()
            assert logits.std() > 0.01
            stats = context.stats()
            assert stats.n_rounds >= 1
            assert stats.n_cells < 512
            assert stats.kv_bytes < stats.kv_bytes_full
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("n_layer", "n_vocab", "told"),
    [
        (0, None, "0 layers"),
        (-3, None, "-3 layers"),
        (513, None, "513 layers"),
        (None, 3, "3 tokens"),
        (None, 2**40, "to"),
    ],
)
def test_absurd_sizes_are_refused(n_layer: int | None, n_vocab: int | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        find_geometry("qwen3-8b").cut(n_layer, n_vocab)


def test_an_unknown_geometry_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no geometry 'qwen3-32'; did you mean 'qwen3-32b'\?"):
        find_geometry("qwen3-32")
    with pytest.raises(UsageError, match="there are qwen3-8b"):
        find_geometry("bert")


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**9))
    with pytest.raises(
        DoesNotFitError, match=r"Qwen3 32B: needs 18,?8\d\d\.\d MiB, the disk has 953\.7 MiB free; write to"
    ):
        write_geometry(find_geometry("qwen3-32b"), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_file_is_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_geometry(small("qwen3-8b", 2), tmp_path / "m.gguf", stop)
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_that_of_a_buffer(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from triattn_local.geometry import find_geometry, geometry_bytes, write_geometry\n"
        "from triattn_local.geometry.blocks import random_blocks\n"
        "small = find_geometry('qwen3-8b').cut(1, 512)\n"
        "write_geometry(small, sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_geometry(find_geometry('qwen3-8b').cut(4, 512), sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.gguf"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) << 10 < 32 << 20, "four layers are 400 MB"


def test_the_package_offers_what_bench_needs() -> None:
    assert set(geometry.__all__) >= {"GEOMETRIES", "find_geometry", "write_geometry"}
