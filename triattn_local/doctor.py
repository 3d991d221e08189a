"""Is this installation able to do its work, and if not, what is missing: what ``doctor`` tells.

Every check ends in one line with a way out; none of them raises. Knows nothing of how it is shown.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import TriattnError, UsageError, from_system
from .settings import Settings, default_config_path, unknown_variables
from .support.formats import size
from .support.paths import exists, is_dir, is_file
from .version import __version__

if TYPE_CHECKING:
    from .engine.devices import Device

Status = Literal["ok", "warn", "fail"]

_GPU_BUILD = "CMAKE_ARGS=-DGGML_CUDA=on pip install ./native (docs/gpu.md has the others)"

_TOOLS = ("llama-server", "llama-bench", "llama-perplexity", "llama-quantize", "ggml-rpc-server")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    fix: str | None = None
    exit_code: int = 0
    """of ``doctor`` when this check fails"""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check_all(settings: Settings, model: Path | None = None, server: str | None = None) -> Iterator[Check]:
    """Check the program, the library and the models folder, and a model and a running server if they are given."""
    yield Check("triattn-local", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield _variables()
    yield _guarded("models", functools.partial(_models, settings))
    library = _guarded("library", _library)
    yield library
    if library.status == "ok":
        yield _guarded("build", _build)
        yield _guarded("backends", _backends)
        yield from _devices()
        yield _guarded("tools", _tools)
    yield _torch()
    if model is not None:
        yield from _model(model, settings)
    if server is not None:
        yield from _server(server, settings)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TriattnError as error:
        return Check(name, "fail", error.what, error.fix, error.exit_code)
    except OSError as error:
        told = from_system(error)
        assert told is not None
        return Check(name, "fail", f"{told.where}: {told.what}" if told.where else told.what, told.fix, told.exit_code)
    except Exception as error:  # whatever is wrong with an installation is what this program is asked about
        return Check(name, "fail", f"{type(error).__name__}: {error}", "pip install ./native", 5)


def _variables() -> Check:
    unknown = unknown_variables()
    try:
        path = os.environ.get("TRIATTN_CONFIG") or default_config_path()
    except UsageError as error:
        return Check("settings", "warn", error.what, error.fix)
    there = "is there" if is_file(Path(path)) else "is not there"
    if unknown:
        return Check("settings", "warn", f"no setting is called {', '.join(unknown)}", "see docs/configuration.md")
    return Check("settings", "ok", f"{path} {there}")


def _models(settings: Settings) -> Check:
    from . import store

    models = settings.models
    folder = models
    while not exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not is_dir(folder) or not os.access(folder, os.W_OK):
        return Check("models", "fail", f"{models} cannot be written", "set TRIATTN_MODELS to a folder of yours", 1)
    n = len(store.entries(models))
    return Check("models", "ok", f"{n} in {models}", None if n else "triattn-local pull demo")


def _library() -> Check:
    from .engine import native

    native.library()
    import llama_cpp

    features = llama_cpp.llama_print_system_info().decode()
    return Check("library", "ok", f"llama-cpp-python {llama_cpp.__version__} with TriAttention, {features.strip(' |')}")


def _build() -> Check:
    """What the self-test said when the library was compiled, and what had to be left out for it."""
    import llama_cpp

    path = Path(llama_cpp.__file__).parent / "lib" / "triattn-build.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        told, dropped = f"{report['instructions']}: {report['self_test']}", report["dropped"]
    except (OSError, ValueError, KeyError, TypeError):
        return Check("build", "warn", f"{path} does not tell how it was compiled", "pip install ./native")
    if dropped:
        fix = f"{'; '.join(dropped)}: another compiler may do better (CC, CXX), then pip install ./native"
        return Check("build", "warn", told, fix)
    return Check("build", "ok", told)


def _backends() -> Check:
    from .engine.devices import backends, devices

    built = backends()
    used = {device.backend for device in devices()}
    told = ", ".join(name if name in used else f"{name} (no device)" for name in built)
    idle = [name for name in built if name not in used and name != "RPC"]  # its devices are named on a command line
    if idle:
        fix = f"{idle[0]} finds no device: is its driver installed, and may this user use it?"
        return Check("backends", "warn", told, fix)
    if set(built) <= {"CPU", "RPC"}:
        return Check("backends", "ok", told, f"for a GPU, build with it: {_GPU_BUILD}")
    return Check("backends", "ok", told)


def _devices() -> Iterator[Check]:
    """Each device, and whether it scores and moves as it should."""
    from .engine.devices import devices, nvidia_driver

    driver = nvidia_driver()
    for device in devices():
        told = device.description
        if device.total_bytes:
            told += f", {size(device.free_bytes)} of {size(device.total_bytes)} free"
        if driver and device.backend == "CUDA":
            told += f", driver {driver}"
        yield Check(device.name, "ok", told)
        if device.is_gpu or device.kind == "cpu":
            yield _guarded(f"{device.name} self-test", functools.partial(_selftest, device))


def _selftest(device: Device) -> Check:
    from .selftest import run_selftest

    result = run_selftest(device)
    name = f"{device.name} self-test"
    if result.problem:
        fix = (
            f"the {device.backend} backend of this build computes wrongly: report it, and use --gpu-layers 0 meanwhile"
        )
        return Check(name, "fail", result.problem, fix if device.is_gpu else "report it", 5)
    return Check(
        name,
        "ok",
        f"{result.n_scores:,} scores within {result.score_error:.1e} of NumPy's, {result.n_rows:,} rows the same bytes "
        f"after {result.n_moved:,} moves, {result.elapsed_s:.1f} s",
    )


def _tools() -> Check:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "bin"
    missing = [name for name in _TOOLS if not os.access(folder / name, os.X_OK)]
    if missing:
        return Check("tools", "warn", f"{', '.join(missing)} not in {folder}", "pip install ./native")
    return Check("tools", "ok", f"{', '.join(_TOOLS)} of the same build")


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("calibration", "warn", "torch is not installed: convert does not work", "pip install '.[calib]'")
    return Check("calibration", "ok", f"torch {importlib.metadata.version('torch')}")


def _model(path: Path, settings: Settings) -> Iterator[Check]:
    from .inspection.describe import inspect_model

    try:
        report = inspect_model(path, sidecar=settings.stats)
    except (TriattnError, OSError) as error:
        told = from_system(error)
        assert told is not None
        yield Check("model", "fail", str(told), told.fix, told.exit_code)
        return
    yield Check("model", "ok", f"{report.name}, {report.architecture}, {report.kv_bytes_per_token:,} KV bytes a token")
    stats = report.statistics
    if stats is None:
        yield Check("statistics", "fail", "the model has none", f"triattn-local convert {path}", 6)
    elif stats.problem:
        yield Check("statistics", "fail", stats.problem, stats.fix, 6)
    else:
        yield Check("statistics", "ok", f"of this model, {stats.n_tokens} tokens, by {stats.tool}")


def _server(url: str, settings: Settings) -> Iterator[Check]:
    from .server.api import Api
    from .server.round_trip import call_a_tool

    name = "server"
    try:
        api = Api(url, settings.api_key)
        model = api.model()
        yield Check(name, "ok", f"{model.name}, context {model.n_ctx:,}, at {api.root}")
        name = "tool call"
        took = call_a_tool(api, model.name)
        yield Check(name, "ok", f"called, answered and taken up in a stream, {took:.1f} s")
    except TriattnError as error:
        yield Check(name, "fail", str(error), error.fix, error.exit_code)
