"""The runtimes without a model are called as the real one is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fake_runtime import FakeRuntime
from scripted_runtime import ScriptedRuntime

from triattn_local.engine.runtime import Runtime


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("fake", [ScriptedRuntime, FakeRuntime])
def test_signatures_are_those_of_the_runtime(fake: type[ScriptedRuntime]) -> None:
    names = [
        name for name, _ in inspect.getmembers(fake, callable) if not name.startswith("_") and name in dir(Runtime)
    ]
    assert len(names) >= 12
    for name in names:
        assert parameters(getattr(fake, name)) == parameters(getattr(Runtime, name)), name
