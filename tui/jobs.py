"""Fetching and converting models from inside the app: long work in a thread, told as it goes, stopped when asked.

torch is imported by the conversion alone, when it starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from textual.message import Message as TextualMessage

from triattn_local import store
from triattn_local.calib_tools import torch_wanted
from triattn_local.calib_tools.shards import default_output
from triattn_local.errors import TriattnError, from_system
from triattn_local.model.model_info import read_model_info
from triattn_local.support.progress import Unit


class JobProgress(TextualMessage):
    """How far it is; a total of 0 cannot be counted."""

    def __init__(self, stage: str, done: int, total: int) -> None:
        super().__init__()
        self.stage, self.done, self.total = stage, done, total


class JobDone(TextualMessage):
    """A model that can be loaded, or the error; neither if the job was stopped."""

    def __init__(self, path: Path | None, error: TriattnError | None) -> None:
        super().__init__()
        self.path, self.error = path, error


class _Stopped(BaseException):
    """Raised out of a progress report."""


class Job:
    """One piece of work at a time; ``post`` takes its messages from any thread."""

    def __init__(self, post: Callable[[TextualMessage], object], models: Path) -> None:
        self._post = post
        self._models = models
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def pull(self, spec: str) -> None:
        """Fetch a model; the demo model is converted too."""

        def work() -> Path:
            path = store.pull(spec, self._models, progress=self._progress)
            return self._convert(path, store.DEMO_TOKENS) if spec == "demo" else path

        self._start(work)

    def convert(self, path: Path) -> None:
        """Put the statistics into a copy of the model."""
        self._start(lambda: self._convert(path, None))

    def stop(self) -> None:
        self._stop.set()

    def wait(self, timeout_s: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self, work: Callable[[], Path]) -> None:
        if self.running:
            raise TriattnError("another model is being fetched or converted", fix="wait for it, or stop it first")
        self._stop.clear()

        def run() -> None:
            path: Path | None = None
            error: TriattnError | None = None
            try:
                path = work()
            except _Stopped:
                pass
            except Exception as found:
                error = from_system(found) or TriattnError(f"{type(found).__name__}: {found}", fix="this is a bug")
            self._post(JobDone(path, error))

        self._thread = threading.Thread(target=run, name="job", daemon=True)
        self._thread.start()

    def _progress(self, stage: str, done: int, total: int | None, unit: Unit | None = None) -> None:
        del unit
        if self._stop.is_set():
            raise _Stopped
        self._post(JobProgress(stage, done, total or 0))

    def _convert(self, path: Path, n_tokens: int | None) -> Path:
        target = default_output(read_model_info(path), sidecar=False)
        if target.is_file():
            return target
        with torch_wanted():
            from triattn_local.calib_tools.convert import DEFAULT_TOKENS, convert
        return convert(path, None, n_tokens=n_tokens or DEFAULT_TOKENS, resume=True, progress=self._progress).path
