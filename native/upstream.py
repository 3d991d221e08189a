"""Gets the pinned source distribution of llama-cpp-python and lays down the tree that is compiled.

Why it exists: building takes minutes, rebuilding must take seconds, and both must survive being interrupted. So
everything lives in one persistent folder, and a file in it is written only when its content changes: whoever compiles
the tree afterwards sees by the times of the files what is new.

    <cache>/sdist/llama_cpp_python-<version>.tar.gz      as downloaded, hash checked
    <cache>/<version>-<hash>/pristine/                   unpacked, never changed
    <cache>/<version>-<hash>/<name>/src/                 a copy, patched and with our files laid over it
    <cache>/<version>-<hash>/<name>/build-<key>/         toolchain.py's

It does not know how the tree is compiled or packaged, and what the patches do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# of the distribution, what no build reads: two thirds of its size
_NOT_UNPACKED = (
    ".git",
    *(f"vendor/llama.cpp/{name}" for name in (".git", ".github", "benches", "docs", "media", "models", "tests")),
)


class BuildError(Exception):
    """Something that the user can mend; the message is one line: what, where, what to do."""


@dataclass(frozen=True)
class Pin:
    """patches/UPSTREAM: the one source distribution that the patches belong to."""

    name: str
    version: str
    sha256: str
    llama_cpp_commit: str

    @property
    def sdist_name(self) -> str:
        return f"{self.name}-{self.version}.tar.gz"


def read_pin(path: Path) -> Pin:
    """Read `key value` lines; `#` starts a comment line."""
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
    return Pin(**{line[0]: line[1].strip() for line in lines if len(line) == 2 and line[0] != "#"})


def cache_root() -> Path:
    """The persistent folder: $TRIATTN_NATIVE_CACHE, or triattn-local/native in the user's cache; free to be deleted."""
    if named := os.environ.get("TRIATTN_NATIVE_CACHE"):
        return Path(named).expanduser().absolute()
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default).absolute() / "triattn-local" / "native"


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache: one build at a time. The lock goes with its process, so a killed build leaves none behind."""
    import fcntl  # not on Windows, where build_backend.py refuses before it comes here

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another build holds {lock.name}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---- the source distribution


def sdist_path(pin: Pin, cache: Path) -> Path:
    return cache / "sdist" / pin.sdist_name


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_sdist(pin: Pin, cache: Path) -> Path:
    """Return the verified source distribution: the cached one, or through pip with its indexes and proxies."""
    target = sdist_path(pin, cache)
    if target.exists():
        if _sha256(target) == pin.sha256:
            return target
        print(f"{target} has the wrong hash; fetching it again", file=sys.stderr, flush=True)
        target.unlink()
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"no pip in {sys.executable} to get {pin.sdist_name} with; install it, or {_by_hand(target)}")

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as tmp:
        requirements = Path(tmp) / "requirements.txt"
        # the hash stands in the requirement so that pip checks it before it runs anything from the archive
        requirements.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", tmp, "--requirement", str(requirements)]
        if importlib.util.find_spec("scikit_build_core"):
            # pip asks the archive for its metadata; what that needs is here already
            command.append("--no-build-isolation")
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if "DO NOT MATCH THE HASHES" in result.stderr:
            found = re.search(r"Got\s+(\w+)", result.stderr)
            raise BuildError(
                f"wrong hash: the {pin.sdist_name} that pip found has sha256 {found.group(1) if found else '?'}, "
                f"patches/UPSTREAM says {pin.sha256}; nothing was kept: check the package index in use"
            )
        archive = Path(tmp) / pin.sdist_name
        if not archive.exists():
            causes = [line.strip() for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
            cause = (causes[0] if causes else f"pip ended with {result.returncode}").removeprefix("ERROR: ")
            raise BuildError(
                f"cannot download {pin.name} {pin.version}: {cause}; check the network and pip's index settings, "
                f"or {_by_hand(target)}"
            )
        archive.replace(target)
    return target


def _by_hand(target: Path) -> str:
    return f"put the file at {target} by hand"


def pristine_tree(pin: Pin, cache: Path) -> Path:
    """Return the unpacked source distribution, whole or not there."""
    pristine = cache / f"{pin.version}-{pin.sha256[:12]}" / "pristine"
    if pristine.is_dir():
        return pristine
    archive = fetch_sdist(pin, cache)
    pristine.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=pristine.parent) as tmp:
        root = archive.name.removesuffix(".tar.gz")
        left_out = tuple(f"{root}/{name}" for name in _NOT_UNPACKED)
        with tarfile.open(archive) as tar:
            members = [m for m in tar if not f"{m.name}/".startswith(tuple(f"{name}/" for name in left_out))]
            tar.extractall(tmp, members, filter="data")
        (Path(tmp) / root).replace(pristine)
    return pristine


# ---- the tree that is compiled


def lay_tree(pristine: Path, tree: Path, changed: Mapping[str, bytes]) -> None:
    """Make `tree` a copy of `pristine` where the files `changed` have (or, being new, get) the content given.

    Files whose content is right already keep their times; files that an earlier call changed and this one does not are
    put back or removed. An interrupted call is completed by the next.
    """
    if not tree.is_dir():
        tree.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="copy-", dir=tree.parent) as tmp:
            shutil.copytree(pristine, Path(tmp) / "src")
            (Path(tmp) / "src").replace(tree)

    # the list is written before the files, so that it never misses one
    list_path = tree.parent / f"{tree.name}-changed.json"
    before = set(json.loads(list_path.read_text(encoding="utf-8"))) if list_path.exists() else set()
    _write_if_different(list_path, json.dumps(sorted(before | set(changed)), indent=0).encode())
    for path, content in changed.items():
        _write_if_different(tree / path, content)
    for path in before - set(changed):
        if (pristine / path).exists():
            _write_if_different(tree / path, (pristine / path).read_bytes())
        else:
            (tree / path).unlink(missing_ok=True)
    _write_if_different(list_path, json.dumps(sorted(changed), indent=0).encode())


def _write_if_different(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    if path.exists():
        shutil.copymode(path, part)
    part.replace(path)
