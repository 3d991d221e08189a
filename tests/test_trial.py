"""Files that would end the process inside llama.cpp are refused, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packed import I32, STRING, U32, Packed
from retouched import Value, retouched
from tiny_models import write_tiny

from triattn_local.engine import trial
from triattn_local.engine.runtime import Runtime, check_stats
from triattn_local.errors import ModelNotFoundError, TriattnError
from triattn_local.model.gguf_file import ValueType, read_gguf
from triattn_local.model.model_info import read_model_info

V = ValueType


@pytest.fixture(autouse=True)
def _own_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_survived", set())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expert_count": (U32, 4)}, "expert_used_count is 0, of 4 experts"),
        ({"expert_used_count": (U32, 2)}, "expert_used_count is 2, of 0 experts"),
        ({"expert_count": (U32, 1025), "expert_used_count": (U32, 1)}, r"expert_count is 1025, not in 0 \.\.\. 1024"),
        ({"expert_group_count": (U32, 2)}, "expert_group_count is 2, of 0 experts"),
        (
            {"expert_count": (U32, 8), "expert_used_count": (U32, 2), "expert_group_count": (U32, 3)},
            "expert_group_count is 3, of 8 experts",
        ),
        (
            {"expert_count": (U32, 8), "expert_used_count": (U32, 2), "expert_group_count": (U32, 4)},
            "expert_group_used_count is 0, of 4 groups",
        ),
        ({"rope.scaling.type": (STRING, "elastic")}, "rope.scaling.type is 'elastic'"),
        ({"rope.scaling.type": (STRING, "")}, "rope.scaling.type is ''"),
        ({"nextn_predict_layers": (U32, 2)}, "all of them for multi-token prediction"),
    ],
)
def test_what_a_header_shows_is_said_by_name(changes: dict[str, tuple[int, object]], said: str, tmp_path: Path) -> None:
    packed = Packed()
    for key, (kind, value) in changes.items():
        packed.set(f"ARCH.{key}", kind, value)
    with pytest.raises(ModelNotFoundError, match=said):
        read_model_info(packed.write(tmp_path / "m.gguf"))


def test_experts_that_differ_by_layer(tmp_path: Path) -> None:
    packed = Packed().set("ARCH.expert_count", U32, 8).set_array("ARCH.expert_used_count", I32, [2, 4])
    assert read_model_info(packed.write(tmp_path / "m.gguf")).n_layer == 2


@pytest.mark.parametrize(
    ("arch", "said"), [("bert", "is an encoder"), ("mamba", "is recurrent"), ("gpt2", "has no RoPE")]
)
def test_what_no_statistics_would_mend_is_said_before_they_are_missed(arch: str, said: str, tmp_path: Path) -> None:
    path = Packed(arch=arch).drop("ARCH.rope.dimension_count").write(tmp_path / "m.gguf")
    with pytest.raises(TriattnError, match=f"cannot evict: it {said}.*--no-evict"):
        check_stats(path, None)


def test_a_sound_file_is_tried_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    really = trial.try_to_load
    monkeypatch.setattr(trial, "try_to_load", lambda path: (tried.append(path), really(path))[1])
    trial.check_survives(tiny)
    trial.check_survives(tiny)
    trial._survived.clear()  # as another process would
    trial.check_survives(tiny)
    assert tried == [tiny]


def twice(tiny: Path) -> dict[str, bytes]:
    """A vocabulary with the same token twice, which is one of llama.cpp's assertions."""
    file = read_gguf(tiny)
    pair = file.pairs["tokenizer.ggml.tokens"]
    raw = file.head[pair.start : pair.end]
    first = pair.value - pair.start
    n = int.from_bytes(raw[first : first + 8], "little")
    token = raw[first : first + 8 + n]
    second = first + len(token)
    n_second = int.from_bytes(raw[second : second + 8], "little")
    return {"tokenizer.ggml.tokens": raw[:second] + token + raw[second + 8 + n_second :]}


def test_an_assertion_of_the_library_becomes_an_error(tiny: Path, tmp_path: Path) -> None:
    bad = retouched(tiny, tmp_path / "bad.gguf", {}, raw=twice(tiny))
    with pytest.raises(ModelNotFoundError, match=r"would end by SIGABRT \(llama-vocab\.cpp:\d+: GGML_ASSERT"):
        Runtime.load(bad)
    program = str(Path(sys.executable).parent / "triattn-local")
    for words in (["plan", str(bad), "--vram", "0"], ["run", str(bad), "Hi", "--no-evict"]):
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 3, done
        assert "SIGABRT" in done.stderr


@pytest.mark.parametrize(
    "change",
    [{"general.architecture": "nonsense"}, {"tokenizer.ggml.model": "nonsense"}, {"general.alignment": (V.UINT32, 64)}],
)
def test_what_the_library_refuses_by_itself_is_left_to_it(
    change: dict[str, tuple[ValueType, Value] | str | None], tiny: Path, tmp_path: Path
) -> None:
    assert trial.try_to_load(retouched(tiny, tmp_path / "m.gguf", change)) is None


def test_a_trial_without_an_end_is_given_up(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIME_LIMIT_S", 0.001)
    with pytest.raises(ModelNotFoundError, match="does not come to an end"):
        trial.check_survives(tiny)
