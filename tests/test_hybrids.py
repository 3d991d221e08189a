"""Hybrids from end to end: calibrated, measured, run past a budget, talked to; in tiny models of the Qwen3.5 kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from talk import Talk
from texts import prose
from tiny_models import HEAD_DIM, N_HEAD, N_HEAD_KV, write_qwen35
from typer.testing import CliRunner

from triattn_local import Runtime
from triattn_local.calib_tools.convert import convert
from triattn_local.calib_tools.engine_runtime import Recorded, RuntimeEngine, _bands_that_stand_still
from triattn_local.cli import app
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.errors import CalibrationError, ModelNotFoundError
from triattn_local.model import scoring
from triattn_local.model.gguf_file import read_gguf
from triattn_local.model.metadata import usable_stats
from triattn_local.model.model_info import read_model_info

KINDS: tuple[Recorded, ...] = ("q_pre", "k_pre", "q_rot", "k_rot")
CONFIG = RuntimeConfig(n_ctx=4096, n_batch=128, n_ubatch=128, n_threads=1)
EVICTION = EvictionConfig(budget_tokens=256, window=32, n_keep=4)
TOKENS = [3 + i * 97 % 250 for i in range(200)]


@pytest.fixture(scope="module", params=["qwen35", "qwen35moe", "qwen3next"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_qwen35(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", request.param)
    result = convert(path, n_tokens=700, n_threads=1)
    assert result.engine == "runtime"
    return result.path


def watch(path: Path, tokens: Sequence[int]) -> dict[tuple[int, Recorded], np.ndarray]:
    """Queries and keys of one sequence, [n_token, heads, head_dim]."""
    seen: dict[tuple[int, Recorded], np.ndarray] = {}
    with RuntimeEngine(path, n_ctx=256, n_batch=256, n_threads=1, kinds=KINDS) as engine:
        engine.evaluate(tokens, lambda il, kind, values, _: seen.__setitem__((il, kind), values.copy()))
    return seen


def tensor(path: Path, name: str) -> np.ndarray:
    """A float32 tensor, in float64."""
    file = read_gguf(path)
    info = next(one for one in file.tensors if one.name.decode() == name)
    data = np.fromfile(path, "<f4", int(np.prod(info.shape)), offset=file.data_start + info.offset)
    return data.reshape(info.shape[::-1]).astype(np.float64)


def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def test_queries_of_gated_attention_follow_from_the_weights(tmp_path: Path) -> None:
    """Where the first layer has attention, it reads embeddings: its queries are the first half of each head's rows."""
    path = write_qwen35(tmp_path / "m.gguf", recurrent=(False, True, True, False))
    assert read_model_info(path).full_layers == (0, 3)
    seen = watch(path, TOKENS)
    assert {il for il, _ in seen} == {0, 3}
    x = normed(tensor(path, "token_embd.weight")[TOKENS], tensor(path, "blk.0.attn_norm.weight"))
    for letter, n_head in (("q", N_HEAD), ("k", N_HEAD_KV)):
        want = (x @ tensor(path, f"blk.0.attn_{letter}.weight").T).reshape(200, n_head, -1)[..., :HEAD_DIM]
        want = normed(want, tensor(path, f"blk.0.attn_{letter}_norm.weight"))
        assert np.abs(seen[0, f"{letter}_pre"] - want).max() < 1e-4 * np.abs(want).max()  # type: ignore[index]


def test_text_turns_in_sections_as_it_would_without(converted: Path) -> None:
    info = read_model_info(converted)
    seen = watch(converted, TOKENS)
    assert {il for il, _ in seen} == set(info.full_layers or ())
    params = scoring.RopeParams.of(info)
    assert params.n_rot == HEAD_DIM // 2
    for (il, kind), before in seen.items():
        if kind.endswith("_pre"):
            after = seen[il, kind.replace("_pre", "_rot")]  # type: ignore[index]
            want = scoring.rope(before, np.arange(200)[:, None], params, np.float32)
            assert np.abs(want - after).max() < 2e-5 * np.abs(after).max()


def test_sections_that_do_not_turn_all_are_refused(tmp_path: Path) -> None:
    path = write_qwen35(tmp_path / "m.gguf", sections=(4, 2, 2, 0))  # the eighth band has no place among them
    with pytest.raises(CalibrationError, match="leave some of 16 dimensions where they are"):
        RuntimeEngine(path, n_ctx=256, n_threads=1)


@pytest.mark.parametrize(
    ("mode", "n_band", "sections", "still"),
    [
        (40, 32, (11, 11, 10, 0), []),  # Qwen3.5
        (40, 64, (24, 20, 20, 0), [61, 62]),  # Qwen3-VL
        (40, 8, (4, 2, 2, 0), [7]),
        (8, 64, (16, 24, 24, 0), []),  # Qwen2-VL
        (8, 8, (2, 2, 2, 2), [6, 7]),
        (2, 8, (0, 0, 0, 0), []),
    ],
)
def test_bands_that_text_does_not_turn(mode: int, n_band: int, sections: tuple[int, ...], still: list[int]) -> None:
    assert _bands_that_stand_still(mode, n_band, sections) == still


def test_a_hybrid_without_a_state_is_refused(tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    with pytest.raises(ModelNotFoundError, match="none of its layers is recurrent"):
        convert(write_qwen35(tmp_path / "m.gguf", interval=1))


def test_a_layer_that_predicts_further_tokens_is_no_layer_of_the_model(tmp_path: Path) -> None:
    """As the published files carry one, behind the last."""
    path = write_qwen35(tmp_path / "m.gguf", n_nextn=1)
    assert read_model_info(path).full_layers == (1,)
    stats = usable_stats(read_model_info(convert(path, n_tokens=700, n_threads=1).path))
    assert stats.layers == (1,)


def test_statistics_have_the_shape_of_the_layers_that_evict(converted: Path) -> None:
    stats = usable_stats(read_model_info(converted))
    assert stats.layers == (1, 3)
    for q_mean, q_abs, k_mean in zip(stats.q_mean, stats.q_abs, stats.k_mean, strict=True):
        assert q_mean.shape == (N_HEAD, HEAD_DIM)
        assert q_abs.shape == (N_HEAD, HEAD_DIM // 4)
        assert k_mean.shape == (N_HEAD_KV, HEAD_DIM)


def test_what_is_told_and_measured(converted: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["inspect", str(converted), "--measure", "--tokens", "1200", "--json"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert report["n_layer_full"] == 2
    # two layers' keys and values of two heads of 32 dimensions, in two bytes: recurrent layers do not grow
    assert report["kv_bytes_per_token"] == 2 * 2 * (32 + 32) * 2
    assert report["evidence"]["n_tokens"] > 1000


def test_it_runs_past_its_budget(converted: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(prose(300), encoding="utf-8")
    flags = ["--ctx", "4096", "--budget", "256", "--window", "32", "--batch", "128", "--threads", "1"]
    told = CliRunner().invoke(
        app, ["run", str(converted), "--file", str(prompt), "--raw", "--max-tokens", "40", "--json", *flags]
    )
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout.splitlines()[-1])
    assert report["n_evictions"] >= 2, report


def test_a_conversation_is_not_read_again(converted: Path, tmp_path: Path) -> None:
    """A recurrent state cannot go back, so what an answer ends with must fit what the next question begins with."""
    with Runtime.load(converted, CONFIG, EVICTION) as rt:
        talk = Talk(rt, tmp_path / "snapshots")
        for turn in range(5):
            question = prose(400)[turn * 60 :][:200]
            n_before = talk.answered.n_prompt + talk.answered.n_content if turn else 0
            talk.ask(question, max_tokens=24)
            # the question, and a few marks of the template around it and the answer before
            assert talk.n_read <= talk.answered.n_prompt - n_before + 8
        assert rt.stats().n_evictions >= 2
