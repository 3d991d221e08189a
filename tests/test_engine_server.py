"""llama-server of the same build, unmodified but for one hook, over HTTP: conversations that go past the cache."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from texts import prose

pytestmark = pytest.mark.slow

SERVER = Path(llama_cpp.__file__).parent / "bin" / "llama-server"
BUDGET, WINDOW, BATCH = 192, 64, 256


class Server:
    def __init__(self, model: Path, log: Path, *args: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.args = args
        environment = os.environ | {"TRIATTN_BUDGET": str(BUDGET), "TRIATTN_WINDOW": str(WINDOW)}
        command = [SERVER, "-m", model, "--port", str(port), "-c", "4096", "-b", str(BATCH), "-ub", str(BATCH)]
        command += ["--temp", "0", "--seed", "1", "-t", str(len(os.sched_getaffinity(0))), "-lv", "4", *args]
        with log.open("wb") as out:
            self.process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=out, env=environment)
        for _ in range(600):
            assert self.process.poll() is None, self.text()[-3000:]
            try:
                if self.get("/health")["status"] == "ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def chat(self, messages: list[dict[str, str]], n: int = 24, **more: object) -> dict[str, Any]:
        body = json.dumps({"messages": messages, "max_tokens": n, "temperature": 0, **more}).encode()
        request = urllib.request.Request(self.url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            reply = json.load(answer)
        assert isinstance(reply, dict)
        return reply

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self.text()[-3000:]


@pytest.fixture(params=[["-np", "1"], ["-np", "2", "-kvu"], ["-np", "2"]], ids=["one-slot", "two-slots", "streams"])
def server(request: pytest.FixtureRequest, smollm2_triattn: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(smollm2_triattn, tmp_path / "server.log", *request.param)
    yield server
    server.close()


def test_two_alternating_conversations_go_past_the_cache(server: Server) -> None:
    """Each grows to several times the budget; going back to an earlier turn re-reads and goes on."""
    conversations: list[list[dict[str, str]]] = [[], []]
    n_prompt = [0, 0]
    for turn in range(6):
        for i, messages in enumerate(conversations):
            messages.append({"role": "user", "content": prose(110, seed=10 * i + turn) + " What happened?"})
            reply = server.chat(messages)
            assert reply["usage"]["prompt_tokens"] > n_prompt[i]
            n_prompt[i] = reply["usage"]["prompt_tokens"]
            messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
    assert min(n_prompt) > 4 * BUDGET

    cells = [int(n) for n in re.findall(r"(\d+) cells instead of \d+", server.text())]
    n_sharing = 2 if "-kvu" in server.args else 1
    expected = n_sharing * (BUDGET + WINDOW) + BATCH
    assert cells
    assert set(cells) == {-(-expected // 256) * 256}

    # regenerate: the last answer again, which is inside the window or is read anew, never an abort
    for messages in conversations:
        again = server.chat(messages[:-1])
        assert again["usage"]["prompt_tokens"] == server.chat(messages[:-1])["usage"]["prompt_tokens"]
    # edit and resend: far before T
    edited = [*conversations[0][:2], {"role": "user", "content": "And now for something else?"}]
    assert server.chat(edited)["usage"]["completion_tokens"] > 0
    # and the other conversation still goes on
    assert server.chat(conversations[1][:-1])["usage"]["completion_tokens"] > 0
    assert server.get("/health")["status"] == "ok"
    assert "GGML_ABORT" not in server.text()


def test_n_ctx_is_the_logical_context(server: Server) -> None:
    settings = server.get("/props")["default_generation_settings"]
    assert settings["n_ctx"] in (4096, 2048)
    too_long = [{"role": "user", "content": prose(5000)}]
    with pytest.raises(urllib.error.HTTPError) as error:
        server.chat(too_long)
    assert error.value.code == 400
    assert "exceeds the available context size" in error.value.read().decode()


def test_a_prompt_that_fits_is_pinned_and_else_its_system_part(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--keep auto: half of the budget of 192 tokens."""
    monkeypatch.setenv("TRIATTN_KEEP", "auto")
    server = Server(smollm2_triattn, tmp_path / "server.log", "-np", "1", "--metrics")
    try:

        def n_pinned() -> int:
            return int(server.get("/slots")[0]["triattention"]["n_pinned"])

        system = {"role": "system", "content": "You tell stories of the sea, and never end them."}
        reply = server.chat([system, {"role": "user", "content": "Tell one."}], 240, ignore_eos=True)
        n_prompt = reply["usage"]["prompt_tokens"]
        assert n_prompt <= BUDGET // 2
        assert server.get("/slots")[0]["triattention"]["n_rounds"] > 0
        assert n_pinned() == n_prompt

        long = server.chat([system, {"role": "user", "content": prose(900)}], 8)
        assert long["usage"]["prompt_tokens"] > BUDGET
        assert 10 < n_pinned() < n_prompt

        server.chat([{"role": "system", "content": prose(700)}, {"role": "user", "content": prose(300)}], 8)
        assert n_pinned() == 0
        with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
            assert "llamacpp:triattn_pinned 0\n" in answer.read().decode()
    finally:
        server.close()
