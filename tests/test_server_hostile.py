"""Requests that no client should send: answered with the right status, and forgotten.

TRIATTN_TEST_FULL=1 sends a thousand.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from served import Served, rss_bytes
from texts import prose

pytestmark = pytest.mark.slow

N_REQUESTS = 1000 if os.environ.get("TRIATTN_TEST_FULL") else 80
CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0,
    # two limits, so that with one of them spoilt an answer is still a short one
    "max_tokens": 2,
    "stop": ["a", "e", "i", "o", "u"],
}


@pytest.fixture(scope="module")
def served(smollm2_triattn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    flags = ["--ctx", "512", "--budget", "160", "--window", "32", "--slots", "2", "--cache-ram", "64"]
    with Served(smollm2_triattn, log, *flags) as server:
        yield server


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 2000))


def cut_short(rng: random.Random) -> bytes:
    whole = json.dumps(GOOD).encode()
    return whole[: rng.randrange(1, len(whole) - 1)]


def deep(rng: random.Random) -> bytes:
    depth = rng.choice([100, 5000, 100_000])
    return b'{"messages":' + b"[" * depth + b"]" * rng.choice([depth, depth - 1]) + b"}"


def huge_number(rng: random.Random) -> bytes:
    number = rng.choice(["1e999", "-1e400", "9" * 400, "18446744073709551616", "-9223372036854775809", "1e308"])
    field = rng.choice(["max_tokens", "temperature", "top_k", "top_p", "seed", "n", "id_slot", "n_probs"])
    return json.dumps({**GOOD, field: 0}).replace(f'"{field}": 0', f'"{field}": {number}').encode()


def wrong_type(rng: random.Random) -> bytes:
    field = rng.choice(
        [
            "messages",
            "max_tokens",
            "temperature",
            "tools",
            "tool_choice",
            "stream",
            "stop",
            "logit_bias",
            "response_format",
        ]
    )
    value = rng.choice([None, True, -1, 1.5, "text", [], {}, [[]], [None], {"": {}}, [{"role": 5}], "\x00", [1] * 100])
    return json.dumps({**GOOD, field: value}).encode()


def bad_message(rng: random.Random) -> bytes:
    message = rng.choice(
        [
            {},
            {"role": "user"},
            {"role": "user", "content": {"text": "x"}},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
            {"role": "user", "content": [{"type": "nothing"}]},
            {"role": "tool", "content": "alone"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{not json"}}]},
            {"role": "\ud800", "content": "x"},
            {"role": "user", "content": "<|im_start|>" * 200},
        ]
    )
    return json.dumps({**GOOD, "messages": [message]}).encode()


def bad_schema(rng: random.Random) -> bytes:
    parameters = rng.choice(
        [
            {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}},
            {"type": "string", "pattern": "((((a*)*)*)*)*$"},
            {"type": "array", "minItems": 10**9},
            {"anyOf": []},
            {"type": "no such type"},
            7,
        ]
    )
    tool = {
        "type": "function",
        "function": {"name": rng.choice(["f", "", "a b", "x" * 5000]), "parameters": parameters},
    }
    return json.dumps({**GOOD, "tools": [tool], "tool_choice": "required"}).encode()


def too_long(rng: random.Random) -> bytes:
    content = "word " * rng.choice([3000, 200_000])
    return json.dumps({**GOOD, "messages": [{"role": "user", "content": content}]}).encode()


KINDS: list[Callable[[random.Random], bytes]] = [
    noise,
    cut_short,
    deep,
    huge_number,
    wrong_type,
    bad_message,
    bad_schema,
    too_long,
]


def test_hostile_requests_are_answered_and_forgotten(served: Served) -> None:
    rng = random.Random(0)
    served.chat(GOOD["messages"], 2)
    child = served.child
    memory = []
    for i in range(N_REQUESTS):
        kind = KINDS[i % len(KINDS)]
        body = kind(rng)
        path = CHAT if i % 5 else rng.choice(["/completion", "/v1/completions", "/tokenize", "/slots/0", "/nowhere"])
        status = served.status("POST", path, body)
        assert served.child == child, f"request {i}, {kind.__name__}: {body[:200]!r}\n{served.text()[-3000:]}"
        is_refused = kind in (noise, cut_short) or (kind is too_long and path == CHAT)
        answers = (400, 404, 413, 415, 501) if is_refused else (200, 400, 404, 413, 415, 501)
        assert status in answers, (i, path, kind.__name__, status, body[:200])
        if i % 16 == 0:
            assert served.get("/health")["status"] == "ok"
            memory.append(rss_bytes(child))
    served.idle(within=120)
    assert served.chat(GOOD["messages"], 2)["choices"]
    half = memory[len(memory) // 2 :]
    assert max(half) - half[0] < 96 << 20, memory


def test_methods_and_paths(served: Served) -> None:
    assert served.status("GET", "/nowhere", b"") == 404
    assert served.status("DELETE", CHAT, b"") in (404, 405)
    assert served.status("POST", CHAT, b"") == 400
    assert served.status("GET", "/" + "a" * 20_000, b"") in (0, 400, 404, 414)


def test_slow_clients_take_nobody_s_place(served: Served) -> None:
    """Connections that send a header and then nothing, or read nothing, while others are answered."""
    netloc = urlsplit(served.root)
    open_ones = []
    for i in range(24):
        s = socket.create_connection((netloc.hostname, netloc.port), timeout=30)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        s.sendall((head + ("\r\n{" if i % 2 else "")).encode())
        open_ones.append(s)
    try:
        start = time.monotonic()
        assert served.chat(GOOD["messages"], 2)["choices"]
        assert time.monotonic() - start < 60
    finally:
        for s in open_ones:
            s.close()


def test_a_stream_that_nobody_reads(served: Served) -> None:
    netloc = urlsplit(served.root)
    body = json.dumps({**GOOD, "messages": [{"role": "user", "content": prose(20)}], "stream": True, "max_tokens": 200})
    with socket.create_connection((netloc.hostname, netloc.port), timeout=60) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        s.sendall((head + body).encode())
        assert served.chat(GOOD["messages"], 2)["choices"]
    served.idle(within=120)
