"""Long words: the patterns of some tokenizers go deeper with every character, and no text may end the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import llama_cpp
import pytest
from retouched import retouched

from triattn_local.engine.vocabulary import LONGEST_RUN, SHORT_RUN, Vocabulary
from triattn_local.errors import UsageError
from triattn_local.support.deep_stack import with_stack


def deep(n: int) -> int:
    return 0 if n == 0 else 1 + deep(n - 1)


def test_the_result_and_the_error_of_a_call_come_back() -> None:
    assert with_stack(64 << 20, lambda: deep(500)) == 500
    before = threading.stack_size()
    with pytest.raises(ZeroDivisionError):
        with_stack(16 << 20, lambda: 1 / 0)
    assert threading.stack_size() == before


def test_ctrl_c_waits_for_the_call() -> None:
    """It may be using what would be freed next, a model: that ended by SIGSEGV."""
    ended, pressed = [], []

    def call() -> None:
        time.sleep(1)
        ended.append(True)

    def press(*_: object) -> None:
        pressed.append(True)
        if len(pressed) <= 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            with_stack(16 << 20, call)
        assert ended
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def recursive(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cuts text as gpt-oss does, by a pattern that llama.cpp leaves to std::regex."""
    return retouched(smollm2, tmp_path_factory.mktemp("t") / "m.gguf", {"tokenizer.ggml.pre": "gpt-4o"})


@pytest.mark.parametrize("text", ["a" * 100_000, "!" * 100_000, "é" * 100_000, " " * 100_000, "Aa" * 50_000])
def test_a_long_word_is_tokenized(recursive: Path, text: str) -> None:
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(recursive).encode(), params)
    vocabulary = Vocabulary(model)
    tokens = vocabulary.tokenize(text, add_special=False)
    assert vocabulary.detokenize(tokens) == text
    short = text[: SHORT_RUN // 4] + " "
    assert vocabulary.tokenize(short, add_special=False) == vocabulary._tokenize(short.encode(), False, False)
    with pytest.raises(UsageError, match="in one line"):
        vocabulary.tokenize("a" * (LONGEST_RUN + 1))
    llama_cpp.llama_model_free(model)


def test_run_ends_by_no_signal(recursive: Path) -> None:
    command = [str(Path(sys.executable).parent / "triattn-local"), "run", str(recursive), "--no-evict", "-q"]
    command += ["--ctx", "256", "--batch", "64", "--threads", "1", "-n", "2"]
    done = subprocess.run(command, input="a" * 40_000, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    assert "exceeds the context" in done.stderr
