"""Fixtures that every test may ask for: real models, real models with statistics, and a clean environment.

The models are fetched when a test first asks for them, so that tests of one module start at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import real_models


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Background jobs of a shell ignore SIGINT, and tests press Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _threads_stand_still() -> Iterator[None]:
    """Results are compared bit for bit: their number is not to depend on what else this machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triattn_local.support.threads.used_s", lambda: None)
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, as published: no statistics inside."""
    return real_models.fetch(real_models.SMOLLM2)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M Q4_K_M, as published."""
    return real_models.fetch(real_models.GEMMA3)


@pytest.fixture(scope="session")
def qwen25() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct Q4_K_M, as published."""
    return real_models.fetch(real_models.QWEN25)


@pytest.fixture(scope="session")
def smollm2_triattn() -> Path:
    """SmolLM2 with statistics inside."""
    return real_models.with_statistics(real_models.SMOLLM2)


@pytest.fixture(scope="session")
def gemma3_triattn() -> Path:
    """Gemma 3 with statistics inside."""
    return real_models.with_statistics(real_models.GEMMA3)


@pytest.fixture(scope="session")
def qwen25_triattn() -> Path:
    """Qwen2.5-Coder with statistics inside."""
    return real_models.with_statistics(real_models.QWEN25)


@pytest.fixture(scope="session")
def unpatched_library() -> Path:
    """Folder of upstream's libllama, built from the same source with the same flags; compiled once and cached."""
    build = Path(__file__).parent.parent / "native" / "build_backend.py"
    done = subprocess.run([sys.executable, str(build), "unpatched"], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def open_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Opens the chat on a scripted runtime: ``async with open_chat(...) as t``, a ``chat_driver.Driver``."""
    from chat_driver import opener

    return opener(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings change no test."""
    for name in list(os.environ):
        if name.startswith("TRIATTN_") and name not in ("TRIATTN_TEST_MODELS", "TRIATTN_NATIVE_CACHE"):
            monkeypatch.delenv(name)
    config = tmp_path_factory.getbasetemp() / "empty-config.toml"
    config.touch()
    monkeypatch.setenv("TRIATTN_CONFIG", str(config))
