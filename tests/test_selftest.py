"""The self-test of devices passes on every device of this build, and notices what it is there to notice."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from triattn_local import doctor, selftest
from triattn_local.engine import native
from triattn_local.engine.devices import Device, devices
from triattn_local.model import scoring

TESTABLE = [device for device in devices() if device.is_gpu or device.kind == "cpu"]


@pytest.fixture
def cpu() -> Device:
    return next(device for device in devices() if device.kind == "cpu")


@pytest.mark.parametrize("device", TESTABLE, ids=lambda device: device.name)
def test_scores_and_moves_are_right_on(device: Device) -> None:
    result = selftest.run_selftest(device)
    assert result.problem is None
    assert 0 < result.score_error < result.tolerance, "compared with itself?"
    # 3 caches, 2 layers of 8 query heads, two rounds: 256 and 192 tokens but 20
    assert result.n_scores == 3 * 2 * 8 * ((256 - 20) + (192 - 20))
    # K and V of 2 layers with 2 KV heads, 160 tokens after each of two rounds
    assert result.n_rows == 3 * 2 * 2 * 2 * 2 * 160
    assert result.n_moved > 100
    assert result.elapsed_s < 60


def test_other_statistics_are_noticed(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has the file's, the reference one head's a hundredth longer: the fault that is hardest to see."""
    read = selftest.read_stats

    def disturbed(path: Any) -> Any:
        stats = read(path)
        assert stats is not None
        q_mean = [q.copy() for q in stats.q_mean]
        q_mean[1][5] *= 1.01
        return dataclasses.replace(stats, q_mean=tuple(q_mean))

    monkeypatch.setattr(selftest, "read_stats", disturbed)
    result = selftest.run_selftest(cpu)
    assert result.problem is not None
    assert "scores are off" in result.problem


def test_values_that_count_otherwise_are_noticed(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.scoring, "value_scores", lambda v: scoring.zscore(np.linalg.norm(v, axis=-1).T))
    result = selftest.run_selftest(cpu)
    assert result.problem is not None
    assert "scores are off" in result.problem


def test_scores_that_are_no_numbers_are_noticed(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    get = native.get_scores

    def broken(ctx: int, il: int, head: int) -> Any:
        scores, cells = get(ctx, il, head)
        scores[0] = np.nan
        return scores, cells

    monkeypatch.setattr(native, "get_scores", broken)
    result = selftest.run_selftest(cpu)
    assert result.problem is not None
    assert "scores are off" in result.problem


def test_a_row_that_changed_is_noticed(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    evict, get, rounds = native.evict, native.get_rows, [0]

    def evicted(*args: Any) -> int:
        rounds[0] += 1
        return evict(*args)

    def flipped(ctx: int, il: int, head_kv: int, cells: Any, **more: Any) -> Any:
        rows = get(ctx, il, head_kv, cells, **more)
        is_last = rounds[0] == 2 * len(selftest._CACHES)
        if is_last and il == 1 and head_kv == 0 and more.get("is_v"):
            rows[17, 3] ^= 1
        return rows

    monkeypatch.setattr(native, "evict", evicted)
    monkeypatch.setattr(native, "get_rows", flipped)
    result = selftest.run_selftest(cpu)
    assert result.n_wrong >= 1
    assert result.problem is not None
    assert "changed when a round moved them" in result.problem


def test_doctor_fails_when_a_self_test_does(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "evict", lambda *_: 0)  # a round that moves nothing
    [check] = [check for check in doctor._devices() if check.name == f"{cpu.name} self-test"]
    assert (check.status, check.exit_code) == ("fail", 5)
    assert "moved nothing" in check.found


def test_doctor_tells_a_backend_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from triattn_local.engine import devices as module

    built = module.backends()
    monkeypatch.setattr(module, "backends", lambda: [*built, "CUDA"])
    check = doctor._backends()
    assert check.status == "warn"
    assert "CUDA (no device)" in check.found
    assert check.fix is not None
    assert "driver" in check.fix
