"""The command line as a person and a script meet it: what goes where, and which exit code comes back.

A scripted runtime stands in for the model; the slow tests at the end run the installed command on the real one.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_plan import as_written
from fake_runtime import FakeRuntime, press_ctrl_c
from gguf_files import HEAD_DIM, N_HEAD, N_HEAD_KV, N_LAYER, write_model

import triattn_local
from triattn_local import errors, planning, store
from triattn_local.cli import run_app
from triattn_local.cli.run import DEMO_SETTINGS
from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig, ThinkingConfig
from triattn_local.engine import native, runtime
from triattn_local.model import metadata, model_info
from triattn_local.model.stats import TriattnStats

COMMANDS = (
    "pull",
    "ls",
    "convert",
    "import-stats",
    "export-stats",
    "inspect",
    "plan",
    "run",
    "chat",
    "serve",
    "openclaw-config",
    "bench",
    "eval",
    "doctor",
)
REPORT_KEYS = {
    "n_prompt",
    "n_generated",
    "n_ctx",
    "n_cells",
    "n_evictions",
    "tokens_evicted",
    "evict_ms",
    "decode_tps",
    "prefill_tps",
    "kv_bytes",
    "kv_bytes_full",
    "mode",
    "budget",
}
PROGRAM = Path(sys.executable).parent / "triattn-local"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    monkeypatch.setenv("TRIATTN_MODELS", str(path))
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRuntime]:
    monkeypatch.setattr(runtime, "Runtime", FakeRuntime)
    monkeypatch.setattr(planning, "plan_run", as_written)
    monkeypatch.setattr(FakeRuntime, "loads", [])
    return FakeRuntime


@pytest.fixture
def model(models: Path) -> Path:
    return write_model(models / "tiny.gguf")


def stats_of(path: Path, seed: int = 0) -> TriattnStats:
    rng = np.random.default_rng(seed)
    q_mean = tuple(rng.standard_normal((N_HEAD, HEAD_DIM)).astype(np.float32) for _ in range(N_LAYER))
    return TriattnStats(
        layers=tuple(range(N_LAYER)),
        q_mean=q_mean,
        q_abs=tuple(np.full((N_HEAD, HEAD_DIM // 2), 10.0, np.float32) for _ in range(N_LAYER)),
        k_mean=tuple(np.zeros((N_HEAD_KV, HEAD_DIM), np.float32) for _ in range(N_LAYER)),
        n_tokens=1234,
        corpus="prose sha256:abc",
        tool="triattn-local test",
        model=model_info.fingerprint(path),
    )


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def report(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout, or else of stderr."""
        text = self.out if self.out.rstrip().endswith("}") else self.err
        report: dict[str, Any] = json.loads(text.splitlines()[-1])
        return report


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*args: str | Path) -> Result:
        capfd.readouterr()
        code = run_app([str(arg) for arg in args])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# help, version, errors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Any, command: str) -> None:
    for flag in ("--help", "-h"):
        result = run(command, flag)
        assert result.code == 0
        assert f"triattn-local {command}" in result.out


def test_the_commands_are_listed_in_the_order_of_a_first_use(run: Any) -> None:
    result = run("--help")
    places = [result.out.index(f" {command} ") for command in COMMANDS]
    assert result.code == 0
    assert places == sorted(places)


def test_without_a_command_there_is_help_and_a_usage_error(run: Any) -> None:
    result = run()
    assert result.code == 2
    assert "Usage: triattn-local" in result.out + result.err
    assert "error:" not in result.err


def test_the_version(run: Any) -> None:
    assert run("--version").out == f"triattn-local {triattn_local.__version__}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("run", "--frob"), "No such option: --frob"),
        (("run", "m", "hi", "--ctx", "many"), "--ctx"),
        (("run", "m", "hi", "--budget"), "--budget"),
        (("inspect",), "MODEL"),
        (("run",), "no model given"),
        (("pull", "nothing"), "neither 'demo' nor org/repo"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(run: Any, args: tuple[str, ...], words: str) -> None:
    result = run(*args)
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(r"error: .*\n", result.err)
    assert words in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TriattnError("w", where="x", fix="f"), 1),
        (errors.UsageError("w", where="x", fix="f"), 2),
        (errors.ModelNotFoundError("w", where="x", fix="f"), 3),
        (errors.DoesNotFitError("w", where="x", fix="f"), 4),
        (errors.BackendMissingError("w", where="x", fix="f"), 5),
        (errors.StatsError("w", where="x", fix="f"), 6),
        (errors.CalibrationError("w", where="x", fix="f"), 1),
        (errors.StateError("w", where="x", fix="f"), 1),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: errors.TriattnError, code: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(store, "pull", refuse)
    result = run("pull", "demo")
    assert (result.code, result.out, result.err) == (code, "", "error: x: w; f\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("line one\nline two"), 1, "ValueError: line one line two; this is a bug"),
        (MemoryError(), 4, "out of memory"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    keep = os.dup(1)
    monkeypatch.setattr(store, "pull", refuse)
    result = run("pull", "demo")
    os.dup2(keep, 1)
    assert result.code == code
    assert words in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == bool(words)


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_a_traceback_only_when_it_is_asked_for(
    run: Any, monkeypatch: pytest.MonkeyPatch, value: str, shown: bool
) -> None:
    monkeypatch.setenv("TRIATTN_DEBUG", value)
    result = run("inspect", "nothing")
    assert result.code == 3
    assert ("Traceback" in result.err) == shown


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from triattn_local.cli import run_app; run_app(['run', '--help'])\n"
        "print([m for m in ('torch', 'llama_cpp', 'huggingface_hub', 'gguf', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_completion_is_offered(tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM, "--show-completion", "bash"], capture_output=True, text=True, cwd=tmp_path)
    assert "_TRIATTN_LOCAL_COMPLETE" in done.stdout


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([PROGRAM, "--version"], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def in_a_terminal(args: list[str], **variables: str) -> str:
    """Everything that a command shows in a terminal of its own."""
    shown, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", **variables}
    env.pop("CI", None)
    process = subprocess.Popen([PROGRAM, *args], stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    data = b""
    while True:
        try:
            chunk = os.read(shown, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        data += chunk
    os.close(shown)
    process.wait()
    return data.decode()


def test_colours_only_where_they_are_wanted() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colour.search(in_a_terminal(["--help"]))
    assert not colour.search(in_a_terminal(["--help"], NO_COLOR="1"))
    assert not colour.search(in_a_terminal(["pull", "nothing"], NO_COLOR="1"))


# pull, ls, convert


def test_pull_prints_the_path(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(spec: str, models: Path, *, progress: Any) -> Path:
        progress("fetching it", 1, 2)
        progress("fetching it", 2, 2)
        progress("asking", 0, 0)
        return model

    monkeypatch.setattr(store, "pull", fetch)
    result = run("pull", "demo")
    assert result.out == f"{model}\n"
    assert result.err == "fetching it ...\nasking ...\n"  # lines, no bars: this is no terminal
    assert json.loads(run("pull", "demo", "--json").out) == {"path": str(model), "bytes": model.stat().st_size}


def test_ls_tells_which_models_have_statistics(run: Any, model: Path) -> None:
    metadata.write_with_stats(model, model.with_name("tiny.triattn.gguf"), stats_of(model))
    (model.parent / "broken.gguf").write_bytes(b"GGUF\x03")
    lines = [line.split() for line in run("ls").out.splitlines()]
    assert lines[0] == ["NAME", "SIZE", "ARCHITECTURE", "STATISTICS"]
    assert [(line[0], line[-2], line[-1]) for line in lines[1:]] == [
        ("broken", "?", "no"),
        ("tiny", "llama", "no"),
        ("tiny.triattn", "llama", "yes"),
    ]
    rows = json.loads(run("ls", "--json").out)
    assert [(row["name"], row["statistics"]) for row in rows][1:] == [("tiny", False), ("tiny.triattn", True)]
    assert Path(rows[1]["path"]) == model


def test_a_long_name_is_not_cut_in_a_pipe(run: Any, models: Path) -> None:
    name = "x" * 150
    write_model(models / f"{name}.gguf")
    assert name in run("ls").out


def test_an_empty_folder_says_what_to_do(run: Any, models: Path) -> None:
    result = run("ls")
    assert (result.code, result.out) == (0, "")
    assert "triattn-local pull demo" in result.err
    assert json.loads(run("ls", "--json").out) == []


# inspect, doctor


def test_inspect_describes_a_model(run: Any, model: Path) -> None:
    result = run("inspect", "tiny")
    assert result.code == 0
    assert "llama, trained for 4,096 tokens" in result.out
    assert f"{N_LAYER * N_HEAD_KV * HEAD_DIM * 2 * 2:,} bytes a token as f16" in result.out
    assert "none; triattn-local convert tiny" in result.out
    report = json.loads(run("inspect", "tiny", "--json", "--cache-type-k", "f32").out)
    assert report["statistics"] is None
    assert report["kv_bytes_per_token"] == N_LAYER * N_HEAD_KV * HEAD_DIM * (4 + 2)
    assert report["fingerprint"] == model_info.fingerprint(model)


def test_inspect_tells_whose_statistics_there_are(run: Any, model: Path) -> None:
    sidecar = model.with_name("sidecar")
    metadata.write_sidecar(sidecar, stats_of(model), model_info.read_model_info(model))
    inside = model.with_name("with.gguf")
    metadata.write_with_stats(model, inside, stats_of(model))
    for args in ((inside,), (model, "--stats", sidecar)):
        result = run("inspect", *args)
        assert result.code == 0
        assert "of this model" in result.out
        assert "1,234 tokens of prose sha256:abc" in result.out
        found = json.loads(run("inspect", *args, "--json").out)["statistics"]
        assert found["problem"] is None
        assert 0 < found["concentration"] < 1


def test_statistics_of_another_model_are_reported_and_exit_code_6(run: Any, model: Path) -> None:
    other = write_model(model.with_name("other.gguf"), name="another")
    wrong = model.with_name("wrong.gguf")
    metadata.write_with_stats(model, wrong, stats_of(other))
    result = run("inspect", wrong)
    assert result.code == 6
    assert "statistics belong to" in result.out
    assert re.fullmatch(r"error: .*statistics belong to.*convert.*\n", result.err)
    assert "belong to" in json.loads(run("inspect", wrong, "--json").out)["statistics"]["problem"]


def test_a_sidecar_without_statistics_is_named(run: Any, model: Path) -> None:
    result = run("inspect", model, "--stats", model)
    assert result.code == 0  # the model itself, which has none
    other = write_model(model.with_name("other.gguf"))
    result = run("inspect", model, "--stats", other)
    assert result.code == 6
    assert str(other) in result.err


def test_doctor_finds_a_sound_installation(run: Any, model: Path) -> None:
    result = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.out)}
    assert result.code == 0
    assert checks["library"]["status"] == "ok"
    assert "TriAttention" in checks["library"]["found"]
    assert "CPU" in checks["backends"]["found"]
    assert "GiB free" in checks["CPU"]["found"]
    assert re.search(r"scores within .* rows the same bytes", checks["CPU self-test"]["found"])
    assert checks["models"]["found"].startswith("1 in ")
    text = run("doctor").out
    assert all(name in text for name in checks)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (errors.BackendMissingError("llama_cpp cannot be loaded", fix="pip install ./native"), "llama_cpp cannot be"),
        (AttributeError("no attribute 'llama_cpp'"), "AttributeError: no attribute 'llama_cpp'"),
    ],
)
def test_doctor_says_how_to_get_the_library(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, found: str
) -> None:
    def missing() -> None:
        raise error

    monkeypatch.setattr(native, "library", missing)
    result = run("doctor")
    assert result.code == 5
    assert re.search(rf"fail +library +{found}.*\n +pip install ./native", result.out)


def test_doctor_checks_the_statistics_of_a_model(run: Any, model: Path) -> None:
    assert run("doctor", "tiny").code == 6
    good = model.with_name("good.gguf")
    metadata.write_with_stats(model, good, stats_of(model))
    assert run("doctor", "good").code == 0


def test_doctor_sees_a_misspelt_variable(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIATTN_BUGDET", "512")
    assert "TRIATTN_BUGDET" in run("doctor").out


# run


def test_the_answer_on_stdout_and_the_report_on_stderr(run: Any, fake: Any, model: Path) -> None:
    result = run("run", "tiny", "Tell me about the sea")
    assert result.code == 0
    assert result.out == "The sea is wide.\n"
    assert len(result.err.splitlines()) == 1
    assert result.report.keys() >= REPORT_KEYS
    assert fake.loads[0].path == model
    assert fake.loads[0].closed


def test_with_json_the_report_is_the_last_line_of_stdout(run: Any, fake: Any, model: Path) -> None:
    result = run("run", model, "hi", "--json", "--budget", "512", "--mode", "shared")
    answer, last = result.out.splitlines()
    assert answer == "The sea is wide."
    assert result.err == ""
    report = json.loads(last)
    assert report.keys() >= REPORT_KEYS
    assert (
        report
        | {
            "n_prompt": 2,
            "n_generated": 5,
            "n_cells": 768,
            "n_evictions": 3,
            "tokens_evicted": 384,
            "evict_ms": 12.346,
            "prefill_tps": 100.0,
            "decode_tps": 50.0,
            "kv_bytes": 1 << 20,
            "kv_bytes_full": 16 << 20,
            "mode": "shared",
            "budget": 512,
            "interrupted": False,
            "stop_reason": "stop",
        }
        == report
    )


def test_quiet_leaves_only_the_answer(run: Any, fake: Any, model: Path) -> None:
    result = run("run", model, "hi", "-q")
    assert (result.out, result.err) == ("The sea is wide.\n", "")


def test_an_answer_that_ends_its_line_gets_no_second(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "script", ("a\n", ""))
    assert run("run", model, "hi").out == "a\n"
    monkeypatch.setattr(fake, "script", ())
    assert run("run", model, "hi").out == ""


def test_text_comes_as_it_is_made(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    class Pipe(io.StringIO):
        arrived = ""

        def flush(self) -> None:
            self.arrived = self.getvalue()

    pipe, seen = Pipe(), []
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(fake, "on_token", lambda n: seen.append(pipe.arrived))
    run_app(["run", str(model), "hi"])
    assert seen == ["The", "The sea", "The sea is", "The sea is wide", "The sea is wide."]


def test_the_prompt_goes_through_the_chat_template(run: Any, fake: Any, model: Path) -> None:
    run("run", model, "hi there", "--system", "be kind")
    [rt] = fake.loads
    assert rt.messages == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi there"}]
    assert rt.text == "<chat> be kind hi there"
    assert rt.special == (True, True)


def test_raw_text_is_continued_as_it_stands(run: Any, fake: Any, model: Path) -> None:
    run("run", model, "<|im_start|> once", "--raw")
    [rt] = fake.loads
    assert (rt.messages, rt.text, rt.special) == (None, "<|im_start|> once", (True, False))


def test_raw_and_system_do_not_go_together(run: Any, fake: Any, model: Path) -> None:
    assert run("run", model, "hi", "--raw", "--system", "x").code == 2


def test_the_prompt_may_come_from_a_file(run: Any, fake: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("Es war einmal ein Bär.", encoding="utf-8")
    run("run", model, "--file", file)
    run("run", model, "Who was it?", "--file", file)
    assert [rt.messages[0]["content"] for rt in fake.loads] == [
        "Es war einmal ein Bär.",
        "Es war einmal ein Bär.\n\nWho was it?",
    ]


def test_the_prompt_may_come_from_stdin(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    pipe_in(monkeypatch, b"Wie weit?")
    run("run", model)
    pipe_in(monkeypatch, b"a text")
    run("run", model, "Short:", "--file", "-")
    assert [rt.messages[0]["content"] for rt in fake.loads] == ["Wie weit?", "a text\n\nShort:"]


def test_a_prompt_leaves_stdin_alone(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    pipe_in(monkeypatch, b"not this")
    run("run", model, "this")
    assert fake.loads[0].messages[0]["content"] == "this"


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe"])
def test_a_prompt_that_cannot_be_used_is_refused_before_loading(
    run: Any, fake: Any, model: Path, monkeypatch: Any, data: bytes
) -> None:
    pipe_in(monkeypatch, data)
    result = run("run", model)
    assert result.code == 2
    assert result.err.startswith("error: stdin: ")
    assert fake.loads == []


def test_a_file_that_is_not_there_is_named(run: Any, fake: Any, model: Path) -> None:
    result = run("run", model, "--file", "/nowhere.txt")
    assert result.code == 2
    assert "--file /nowhere.txt" in result.err


def test_without_a_prompt_in_a_terminal_one_is_asked_for(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    result = run("run", model)
    assert result.code == 2
    assert "no prompt" in result.err


def test_every_flag_arrives(run: Any, fake: Any, model: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "s.gguf"
    flags = "--ctx 4096 --budget 512 --window 64 --keep 8 --mode per-head --policy knorm --cache-type-k q8_0"
    flags += " --cache-type-v q4_0 --flash-attn --threads 3 --gpu-layers 7 --batch 256"
    flags += " --temp 0.5 --repeat-penalty 1.2 --seed 9 -n 3 -v"
    run("run", model, "hi", *flags.split(), "--stats", sidecar)
    [rt] = fake.loads
    assert rt.config == RuntimeConfig(
        n_ctx=4096,
        n_batch=256,
        n_ubatch=256,
        cache_type_k="q8_0",
        cache_type_v="q4_0",
        flash_attn=True,
        n_threads=3,
        n_gpu_layers=7,
        verbose=True,
    )
    assert rt.eviction == EvictionConfig(
        budget_tokens=512, window=64, n_keep=8, mode="per-head", policy="knorm", seed=9
    )
    assert rt.sampling == SamplingConfig(temperature=0.5, repeat_penalty=1.2, seed=9)
    assert (rt.max_tokens, rt.stats_path) == (3, sidecar)


def test_the_flags_of_answers_arrive(run: Any, fake: Any, model: Path) -> None:
    flags = "--no-think --effort low --top-k 7 --top-p 0.5 --min-p 0.2 --presence-penalty 1.5 --stop END --stop ###"
    run("run", model, "hi", *flags.split())
    [rt] = fake.loads
    assert rt.thinking == ThinkingConfig(enabled=False, effort="low")
    assert rt.sampling == SamplingConfig(top_k=7, top_p=0.5, min_p=0.2, presence_penalty=1.5)
    assert rt.stop == ("END", "###")
    assert rt.interject is not None


def test_sampling_is_what_the_file_says_unless_somebody_says_otherwise(
    run: Any, fake: Any, model: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fake, "suggested", {"temperature": 0.6, "top_k": 20, "repeat_last_n": 8})
    run("run", model, "hi", "--top-k", "3")
    assert fake.loads[0].sampling == SamplingConfig(temperature=0.6, top_k=3, repeat_last_n=8)
    run("run", model, "hi", "--temp", "0")
    assert fake.loads[1].sampling == SamplingConfig(temperature=0.0, top_k=20, repeat_last_n=8)


def test_an_effort_that_the_template_does_not_ask_for_is_told(
    run: Any, fake: Any, model: Path, monkeypatch: Any
) -> None:
    assert "takes no effort: --effort changes nothing" in run("run", model, "hi", "--effort", "high").err
    monkeypatch.setattr(fake, "template", "{{ reasoning_effort }}")
    assert "--effort" not in run("run", model, "hi", "--effort", "high").err


@pytest.mark.parametrize("flags", [["--no-think"], ["--effort", "low"]])
def test_a_raw_text_has_no_template_to_turn_thinking_off(run: Any, fake: Any, model: Path, flags: list[str]) -> None:
    result = run("run", model, "hi", "--raw", *flags)
    assert result.code == 2
    assert f"{flags[0]} needs the chat template" in result.err.replace("--think", "--no-think")


def test_a_preset_answers(run: Any, fake: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = tmp_path / "config.toml"
    config.write_text('temp = 0.3\n[presets.coder]\nsystem = "Only code."\ntemp = 0.1\nthink = false\nstop = ["END"]\n')
    monkeypatch.setenv("TRIATTN_CONFIG", str(config))
    run("run", model, "hi", "--preset", "coder")
    run("run", model, "hi", "--preset", "coder", "--temp", "1", "--system", "Be kind.")
    run("run", model, "hi")
    first, second, third = fake.loads
    assert first.messages[0] == {"role": "system", "content": "Only code."}
    assert (first.sampling.temperature, first.thinking.enabled, first.stop) == (0.1, False, ("END",))
    assert second.messages[0] == {"role": "system", "content": "Be kind."}
    assert (second.sampling.temperature, second.thinking.enabled) == (1.0, False)
    assert (third.sampling.temperature, third.thinking.enabled, len(third.messages)) == (0.3, None, 1)
    result = run("run", model, "hi", "--preset", "cook")
    assert result.code == 2
    assert "there is no preset 'cook'" in result.err
    assert "there are coder" in result.err


def test_without_flags_the_defaults_arrive(run: Any, fake: Any, model: Path) -> None:
    run("run", model, "hi")
    [rt] = fake.loads
    assert (rt.config, rt.eviction, rt.sampling) == (RuntimeConfig(), EvictionConfig(), SamplingConfig())
    assert (rt.max_tokens, rt.stats_path) == (None, None)


def test_a_flag_comes_before_the_environment(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRIATTN_BUDGET", "300")
    monkeypatch.setenv("TRIATTN_FLASH_ATTN", "on")
    run("run", model, "hi")
    run("run", model, "hi", "--budget", "200", "--no-flash-attn")
    assert [(rt.eviction.budget_tokens, rt.config.flash_attn) for rt in fake.loads] == [(300, True), (200, False)]


def test_full_attention_on_request(run: Any, fake: Any, model: Path) -> None:
    result = run("run", model, "hi", "--no-evict", "--json")
    assert fake.loads[0].eviction is None
    assert result.report["mode"] is None
    assert result.report["budget"] is None
    assert result.report["n_cells"] == RuntimeConfig.n_ctx


@pytest.mark.parametrize(
    "flags",
    [
        "--budget 0",
        "--budget -1",
        "--budget 132",
        "--window 0",
        "--window -1",
        "--keep -1",
        "--ctx 0",
        "--ctx -5",
        "--batch 0",
        "--batch -1",
        "--threads 0",
        "-n 0",
        "-n -1",
        "--temp -0.5",
        "--temp nan",
        "--mode banana",
        "--policy banana",
        "--cache-type-k banana",
        "--cache-type-v q8_0 --no-flash-attn",
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(run: Any, fake: Any, model: Path, flags: str) -> None:
    result = run("run", model, "hi", *flags.split())
    assert result.code == 2
    assert re.fullmatch(r"error: -.*\n", result.err)
    assert flags.split()[0] in result.err
    assert fake.loads == []


def test_a_model_without_statistics_is_exit_code_6_with_the_way_out(run: Any, model: Path) -> None:
    result = run("run", model, "hi")
    assert result.code == 6
    assert f"triattn-local convert {model}" in result.err


def test_a_model_that_is_not_there_is_exit_code_3(run: Any, fake: Any) -> None:
    assert run("run", "nothing", "hi").code == 3


def test_ctrl_c_in_the_answer_keeps_what_there_is(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "on_token", lambda n: press_ctrl_c() if n == 2 else None)
    before = signal.getsignal(signal.SIGINT)
    result = run("run", model, "hi", "--json")
    assert result.code == 130
    assert result.out.splitlines()[0] == "The sea"
    assert result.report | {"interrupted": True, "stop_reason": "cancelled", "n_generated": 2} == result.report
    assert fake.loads[0].closed
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_prompt_reports_too(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "on_prefill", lambda n: press_ctrl_c() if n == 2 else None)
    result = run("run", model, "one two three four")
    assert result.code == 130
    assert result.out == ""
    assert result.report | {"interrupted": True, "n_generated": 0, "prefill_tps": 100.0} == result.report


def test_a_second_ctrl_c_ends_at_once(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "on_token", lambda n: (press_ctrl_c(), press_ctrl_c()))
    result = run("run", model, "hi")
    assert result.code == 130
    assert result.err == ""
    assert fake.loads[0].closed


def test_ctrl_c_while_loading(run: Any, fake: Any, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "on_load", staticmethod(press_ctrl_c))
    assert run("run", model, "hi").code == 130


# convert, through the calibration's own checks


def test_convert_says_what_it_would_do(run: Any, model: Path) -> None:
    result = run("convert", "tiny", "--dry-run")
    assert (result.code, result.out) == (0, f"{model.with_suffix('.triattn.gguf')}\n")
    engine, text, *_ = result.err.splitlines()
    assert re.fullmatch(r"(torch|runtime) engine: .+", engine)
    assert text.startswith("would calibrate on ")
    plan = json.loads(run("convert", "tiny", "--dry-run", "--sidecar", "--json").out)
    assert plan["path"] == str(model.with_name("tiny.triattn-stats.gguf"))
    assert plan["dry_run"]


def test_convert_shows_what_it_did(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triattn_local.calib_tools import convert

    asked: dict[str, Any] = {}

    def make(source: Path, out: Path | None, **kwargs: Any) -> convert.ConvertResult:
        asked.update(kwargs, source=source, out=out)
        for done in (0, 4, 8):
            kwargs["progress"]("calibrating", done, 8)
        kwargs["progress"]("writing x", 0, None)
        return convert.ConvertResult(
            path=Path("out.gguf"),
            model=source,
            sidecar=False,
            dry_run=False,
            replaced_stats=False,
            corpus="c",
            engine="runtime",
            engine_why="because",
            checkpoint=Path("out.gguf.checkpoint"),
            n_tokens=8000,
            n_layers=2,
            concentration=convert.Concentration(n_heads=8, mean_r=0.98765, min_r=0.5, share_high=0.9),
        )

    monkeypatch.setattr(convert, "convert", make)
    result = run("convert", "tiny")
    assert (result.code, result.out) == (0, "out.gguf\n")
    assert result.err.splitlines() == [
        "calibrating ...",
        "writing x ...",
        "8,000 tokens, 2 layers, 8 heads, mean R 0.988",
    ]
    assert (asked["source"], asked["out"], asked.get("n_tokens")) == (model, None, None)
    flags = "-o o.gguf --sidecar --tokens 1000 --corpus c.txt --corpus d.txt --force --threads 2 --gpu-layers 0"
    flags += " --engine torch --resume"
    assert json.loads(run("convert", "tiny", *flags.split(), "--json").out)["path"] == "out.gguf"
    wanted = {
        "out": Path("o.gguf"),
        "sidecar": True,
        "n_tokens": 1000,
        "corpus": [Path("c.txt"), Path("d.txt")],
        "engine": "torch",
        "resume": True,
        "force": True,
        "dry_run": False,
        "n_threads": 2,
        "n_gpu_layers": 0,
    }
    assert asked.items() >= wanted.items()


@pytest.mark.parametrize("lost", ["printed", "turned into an error", "noticed at the next step"])
def test_ctrl_c_in_a_callback_of_the_library_is_not_lost(
    run: Any, model: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from triattn_local.calib_tools import convert

    @ctypes.CFUNCTYPE(None)
    def callback() -> None:
        press_ctrl_c()

    def calibrate(source: Path, text: Any, n_tokens: int, progress: Any, **kwargs: Any) -> None:
        callback()
        if lost == "turned into an error":
            raise errors.CalibrationError("llama.cpp fails")
        if lost == "noticed at the next step":
            progress(1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "calibrate", calibrate)
    before = (signal.getsignal(signal.SIGINT), sys.unraisablehook)
    result = run("convert", "tiny")
    assert (result.code, result.out) == (130, "")
    assert re.fullmatch(r"(torch|runtime) engine: .+ \.\.\.\n", result.err)
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_convert_without_torch_says_how_to_get_it(run: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("triattn_local.calib_tools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(triattn_local, "calib_tools", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # what import finds when there is none
    result = run("convert", "tiny")
    assert result.code == 5
    assert "pip install '.[calib]'" in result.err


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ("--tokens 0", 2),
        ("--engine banana", 2),
        ("--tokens -5", 2),
        ("--corpus /nowhere.txt", 1),
        ("-o /nowhere/x.gguf", 2),
        ("-o {model}", 2),
    ],
)
def test_convert_refuses_bad_input(run: Any, model: Path, flags: str, code: int) -> None:
    result = run("convert", "tiny", *flags.format(model=model).split())
    assert result.code == code
    assert re.fullmatch(r"error: .*\n", result.err.splitlines(keepends=True)[-1])
    assert [path.name for path in model.parent.iterdir()] == ["tiny.gguf"]


# the demo


@pytest.fixture
def demo(models: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of ``--demo``, with nothing fetched and nothing calibrated."""
    from triattn_local.calib_tools import convert

    steps: list[str] = []

    def pull(spec: str, folder: Path, **kwargs: Any) -> Path:
        steps.append(f"pull {spec}")
        return write_model(folder / store.DEMO.file)

    def make(source: Path, out: Path, **kwargs: Any) -> None:
        steps.append("convert")
        metadata.write_with_stats(source, out, stats_of(source))

    monkeypatch.setattr(store, "pull", pull)
    monkeypatch.setattr(convert, "convert", make)
    return steps


def test_the_demo_fetches_and_converts_once(run: Any, fake: Any, demo: list[str], models: Path) -> None:
    for _ in range(2):
        assert run("run", "--demo", "Tell me about the sea").code == 0
    assert demo == ["pull demo", "convert"]
    assert fake.loads[0].path == models / "SmolLM2-135M-Instruct.Q4_1.triattn.gguf"
    assert fake.loads[0].messages[-1]["content"] == "Tell me about the sea"


def test_the_demo_has_a_small_cache_unless_told_otherwise(run: Any, fake: Any, demo: list[str]) -> None:
    run("run", "--demo", "hi")
    run("run", "--demo", "hi", "--budget", "512")
    assert [rt.eviction.budget_tokens for rt in fake.loads] == [DEMO_SETTINGS["budget"], 512]


@pytest.mark.parametrize("command", ["run", "serve"])
@pytest.mark.parametrize(
    ("flag", "told"), [("--budget", "a whole number, off or auto"), ("--ctx", "a whole number or auto")]
)
def test_a_budget_or_context_that_is_none(run: Any, command: str, flag: str, told: str) -> None:
    result = run(command, "model", flag, "much")
    assert result.code == 2
    assert result.err == f"error: {flag}: 'much' is not {told}\n"


def test_the_demo_takes_no_other_model(run: Any, fake: Any, demo: list[str]) -> None:
    assert run("run", "--demo", "model", "prompt").code == 2
    assert demo == []


def test_bad_flags_are_told_before_the_demo_is_fetched(run: Any, fake: Any, demo: list[str]) -> None:
    assert run("run", "--demo", "hi", "--budget", "1").code == 2
    assert demo == []


# the installed command on the real model


def real(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROGRAM), *map(str, args)], capture_output=True, text=True, timeout=600, **kwargs)


@pytest.mark.slow
def test_a_real_model_answers_past_its_cache(smollm2_triattn: Path) -> None:
    flags = ["--ctx", "2048", "--budget", "160", "--window", "32", "--batch", "64", "-n", "300", "--json"]
    done = real("run", smollm2_triattn, "Tell me a long story about the sea.", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    answer = "\n".join(done.stdout.splitlines()[:-1])
    assert "sea" in answer.lower()
    assert report.keys() >= REPORT_KEYS
    assert report["n_cells"] == 256
    assert report["n_prompt"] + report["n_generated"] > report["n_cells"]
    assert report["n_evictions"] > 0
    assert report["kv_bytes"] * 7 < report["kv_bytes_full"]
    assert done.stderr == ""


@pytest.mark.slow
def test_a_real_model_without_statistics(smollm2: Path) -> None:
    done = real("run", smollm2, "hi")
    assert (done.returncode, done.stdout) == (6, "")
    assert re.fullmatch(r"error: .*triattn-local convert .*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("in_prompt", [False, True])
def test_ctrl_c_on_a_real_model(smollm2_triattn: Path, tmp_path: Path, in_prompt: bool) -> None:
    text = tmp_path / "text"
    text.write_text("The sea is wide. " * (1200 if in_prompt else 1))
    command = [str(PROGRAM), "run", str(smollm2_triattn), "--file", str(text), "--json", "--budget", "512"]
    command += ["--batch", "2048", "--verbose"]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    if in_prompt:
        while "sched_reserve: reserve took" not in log.read_text():  # then the context is made, and reading begins
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        time.sleep(2)
        first = ""
    else:
        first = process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, log.read_text()
    report = json.loads((first + out).splitlines()[-1])
    assert report["interrupted"]
    assert (report["n_generated"] == 0) == in_prompt
    assert (report["prefill_tps"] == 0) == in_prompt, "it does not wait for the batch"


@pytest.mark.slow
def test_ctrl_c_in_a_real_conversion(smollm2: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.gguf", tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([str(PROGRAM), "convert", str(smollm2), "-o", str(out)], stderr=stderr)
    while not (tmp_path / "out.gguf.checkpoint").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in log.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "models", "out.gguf.checkpoint"}
    assert "--resume goes on from here" in log.read_text()
