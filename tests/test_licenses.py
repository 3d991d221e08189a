"""What the wheels carry of other people comes with its licence."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LICENSES = ROOT / "native" / "licenses"
sys.path[:0] = [str(ROOT / "native"), str(ROOT / "scripts")]

import collect_licenses  # noqa: E402
import upstream  # noqa: E402


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    cache = upstream.cache_root()
    with upstream.locked(cache):
        return upstream.pristine_tree(upstream.read_pin(ROOT / "patches" / "UPSTREAM"), cache) / "vendor" / "llama.cpp"


def test_the_notices_are_those_of_the_pinned_source(llama_cpp: Path) -> None:
    assert collect_licenses.TARGET.read_text(encoding="utf-8") == collect_licenses.collect(llama_cpp)


def test_every_folder_of_third_parties_has_a_notice(llama_cpp: Path) -> None:
    text = collect_licenses.TARGET.read_text(encoding="utf-8")
    folders = [path for path in (llama_cpp / "vendor").iterdir() if path.is_dir() and path.name != "hash"]
    folders += [path for path in (llama_cpp / "vendor" / "hash").iterdir() if path.is_dir()]
    assert len(folders) >= 8
    missing = [path.name for path in folders if f"{path.relative_to(llama_cpp).as_posix()})" not in text]
    assert missing == []


def test_the_upstreams_own_are_there(llama_cpp: Path) -> None:
    assert (LICENSES / "LICENSE.llama.cpp").read_text() == (llama_cpp / "LICENSE").read_text()
    assert (LICENSES / "LICENSE.llama-cpp-python").read_text() == (llama_cpp.parents[1] / "LICENSE.md").read_text()
    assert "svelte" in (LICENSES / "LICENSE.page").read_text(encoding="utf-8")


def test_the_wheel_that_is_installed_has_them() -> None:
    """The build copies the whole folder, and the metadata name each file."""
    packed = {Path(path).name for path in importlib.metadata.files("llama-cpp-python") or [] if "licenses" in str(path)}
    ours = {path.name for path in LICENSES.iterdir()}
    if packed != ours and packed == ours - {"LICENSE.vendored"}:
        pytest.skip("the library that is installed is older than LICENSE.vendored: pip install ./native")
    assert packed == ours
