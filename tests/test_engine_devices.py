"""Layers on several devices: a round reads and writes each layer where it lies.

Two rpc-servers on the loopback are two real devices whose memory nobody else can read: what is sent to the wrong one
ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from engine import random_stats
from tiny_models import write_tiny

HOME = Path(llama_cpp.__file__).parent
SERVER = HOME / "bin" / "ggml-rpc-server"
N_LAYER = 4

pytestmark = pytest.mark.skipif(not SERVER.exists(), reason="the library was built without GGML_RPC")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def servers() -> Iterator[list[int]]:
    ports = [_free_port(), _free_port()]
    running = [
        subprocess.Popen(
            [str(SERVER), "-H", "127.0.0.1", "-p", str(port), "-t", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in ports
    ]
    try:
        for port in ports:
            for _ in range(100):
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
        yield ports
        assert [process.poll() for process in running] == [None, None], "an rpc-server died"
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    path = write_tiny(tmp_path / "tiny.gguf")
    random_stats(path, range(N_LAYER), tmp_path / "stats.gguf")
    return path, tmp_path / "stats.gguf"


def _run(model: tuple[Path, Path], n_gpu_layers: int, ports: list[int], cold: str = "off") -> dict[str, Any]:
    script = Path(__file__).parent / "support" / "two_devices.py"
    command = [sys.executable, str(script), *map(str, (*model, HOME / "lib", cold, n_gpu_layers, *ports))]
    # the same operations on both sides
    same_way = os.environ | {"LLAMA_TRIATTN_AS_DEVICE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=same_way)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _common(a: list[list[int]], b: list[list[int]]) -> list[float]:
    """The share that each head has in both: sums in another order decide otherwise between tokens that score alike."""
    return [len(set(x) & set(y)) / len(x) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("n_gpu_layers", [99, 2], ids=["all layers away", "half of them here"])
def test_rounds_on_two_devices_are_those_of_one(
    n_gpu_layers: int, model: tuple[Path, Path], servers: list[int]
) -> None:
    here = _run(model, 0, [])
    there = _run(model, n_gpu_layers, servers)
    assert here["n_rounds"] >= 8
    assert there["goes_on"]
    assert {name: there[name] for name in ("text", "n_rounds")} == {name: here[name] for name in ("text", "n_rounds")}
    assert min(_common(here["kept"], there["kept"])) > 0.95


def test_the_cold_tier_of_two_devices_is_that_of_one(model: tuple[Path, Path], servers: list[int]) -> None:
    """Up to the first token: what comes back decides what is said next, and of tokens that score alike any may come."""
    here, there = _run(model, 0, [], "auto"), _run(model, 99, servers, "auto")
    assert here["n_tokens_stored"] > 256
    assert here["n_recalls"] >= 8
    assert there["goes_on"]
    assert {name: there[name] for name in ("n_rounds", "n_recalls", "n_tokens_stored")} == {
        name: here[name] for name in ("n_rounds", "n_recalls", "n_tokens_stored")
    }
    assert min(_common(here["read"]["kept"], there["read"]["kept"])) > 0.95
    np.testing.assert_allclose(there["read"]["logits"], here["read"]["logits"], rtol=0, atol=0.01)
