"""A model served by `triattn-local serve`, as a user starts it, and raw requests to it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

START_S = 240.0
"""a model must be served after this, also on a machine that is ten times slower than usual"""


class Served:
    """`triattn-local serve MODEL --port 0 ARGS`, until the end of the block."""

    def __init__(
        self, model: Path, log: Path, *args: str, wait: bool = True, env: dict[str, str] | None = None
    ) -> None:
        self.log = log
        command = [
            str(Path(sys.executable).parent / "triattn-local"),
            "serve",
            str(model),
            "--port",
            "0",
            "--json",
            *args,
        ]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=out, text=True, env={**os.environ, **(env or {})}
            )
        assert self.process.stdout is not None
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if wait:
            self.announced()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def announced(self) -> dict[str, Any]:
        """What it says on stdout once it answers."""
        line = self._lines.get(timeout=START_S)
        assert line is not None, self.text()[-3000:]
        self.said: dict[str, Any] = json.loads(line)
        self.base_url = str(self.said["base_url"])
        self.root = self.base_url.removesuffix("/v1")
        return self.said

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def child(self) -> int:
        """pid of llama-server"""
        mine = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return int(mine.stdout.split()[0])

    def close(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------- requests

    def get(self, path: str, **headers: str) -> Any:
        with urllib.request.urlopen(urllib.request.Request(self.root + path, headers=headers), timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers["Content-Type"].startswith("application/json") else body.decode()

    def post(self, path: str, body: Any, timeout: float = 300) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def chat(self, messages: list[dict[str, Any]], n: int = 16, **more: Any) -> dict[str, Any]:
        body = {"messages": messages, "max_tokens": n, "temperature": 0, **more}
        reply = self.post("/v1/chat/completions", body)
        assert isinstance(reply, dict)
        return reply

    def status(self, method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> int:
        """The status code of any request; 0 if the connection was closed without one."""
        connection = http.client.HTTPConnection(urlsplit(self.root).netloc, timeout=120)
        try:
            connection.request(method, path, body, headers or {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (http.client.HTTPException, ConnectionError):
            return 0
        finally:
            connection.close()

    def events(self, body: dict[str, Any], timeout: float = 300) -> Iterator[str]:
        """The data of a streamed chat's events, as they come: raw SSE."""
        data = json.dumps({**body, "stream": True}).encode()
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            for raw in answer:
                line = raw.decode()
                if line.startswith("data: "):
                    yield line.removeprefix("data: ").rstrip("\n")

    def idle(self, within: float = 60.0) -> float:
        """Wait until no slot works; the seconds that it took."""
        start = time.monotonic()
        while any(slot["is_processing"] for slot in self.get("/slots")):
            assert time.monotonic() - start < within, "a slot still works"
            time.sleep(0.02)
        return time.monotonic() - start

    def metric(self, name: str) -> float:
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"llamacpp:{name} "):
                return float(line.split()[1])
        raise AssertionError(f"{name} is not in /metrics")


def rss_bytes(pid: int) -> int:
    """Memory that a process has in main memory and that no other shares."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")
