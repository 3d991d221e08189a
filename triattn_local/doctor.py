"""Is this installation able to do its work, and if not, what is missing: what ``doctor`` tells.

Every check ends in one line with a way out; none of them raises. Knows nothing of how it is shown.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from . import __version__
from .errors import TriattnError
from .settings import Settings, default_config_path, unknown_variables

Status = Literal["ok", "warn", "fail"]

_TOOLS = ("llama-server", "llama-bench", "llama-perplexity", "llama-quantize")


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    found: str
    fix: str | None = None
    exit_code: int = 0
    """of ``doctor`` when this check fails"""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def check_all(settings: Settings, model: Path | None = None) -> Iterator[Check]:
    """Check the program, the library and the models folder, and a model if one is given."""
    yield Check("triattn-local", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield _variables()
    yield _models(settings.models)
    library = _guarded("library", _library)
    yield library
    if library.status == "ok":
        yield _guarded("devices", _devices)
        yield _guarded("tools", _tools)
    yield _torch()
    if model is not None:
        yield from _model(model, settings)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TriattnError as error:
        return Check(name, "fail", error.what, error.fix, error.exit_code)
    except Exception as error:  # whatever is wrong with an installation is what this program is asked about
        return Check(name, "fail", f"{type(error).__name__}: {error}", "pip install ./native", 5)


def _variables() -> Check:
    unknown = unknown_variables()
    path = os.environ.get("TRIATTN_CONFIG") or default_config_path()
    there = "is there" if Path(path).is_file() else "is not there"
    if unknown:
        return Check("settings", "warn", f"no setting is called {', '.join(unknown)}", "see docs/configuration.md")
    return Check("settings", "ok", f"{path} {there}")


def _models(models: Path) -> Check:
    from . import store

    folder = models
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("models", "fail", f"{models} cannot be written", "set TRIATTN_MODELS to a folder of yours", 1)
    n = len(store.entries(models))
    return Check("models", "ok", f"{n} in {models}", None if n else "triattn-local pull demo")


def _library() -> Check:
    from . import native

    native.library()
    import llama_cpp

    features = llama_cpp.llama_print_system_info().decode()
    return Check("library", "ok", f"llama-cpp-python {llama_cpp.__version__} with TriAttention, {features.strip(' |')}")


def _devices() -> Check:
    from .devices import Device, devices

    def memory(device: Device) -> str:
        return f", {device.free_bytes / 2**30:.1f} of {device.total_bytes / 2**30:.1f} GiB free"

    found = devices()
    told = "; ".join(f"{d.name} ({d.description}{memory(d) if d.total_bytes else ''})" for d in found)
    build = "for a GPU, build with it: CMAKE_ARGS=-DGGML_CUDA=on pip install ./native"
    fix = None if any(d.is_gpu for d in found) else build
    return Check("devices", "ok", told, fix)


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
    from .inspection import inspect_model

    try:
        report = inspect_model(path, sidecar=settings.stats)
    except TriattnError as error:
        yield Check("model", "fail", str(error), error.fix, error.exit_code)
        return
    yield Check("model", "ok", f"{report.name}, {report.architecture}, {report.kv_bytes_per_token:,} KV bytes a token")
    stats = report.statistics
    if stats is None:
        yield Check("statistics", "fail", "the model has none", f"triattn-local convert {path}", 6)
    elif stats.problem:
        yield Check("statistics", "fail", stats.problem, stats.fix, 6)
    else:
        yield Check("statistics", "ok", f"of this model, {stats.n_tokens} tokens, by {stats.tool}")
