"""The packaging of the patched llama-cpp-python: what a patch may be, how the tree is laid, and how failures look.

Nothing is compiled here. The patches are tried on the source distribution that the build left in its cache (or that is
fetched, if the cache is gone); failures are provoked in folders of their own.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
PATCHES = ROOT / "patches"
sys.path.insert(0, str(NATIVE))

import patching  # noqa: E402
import upstream  # noqa: E402

PIN = upstream.read_pin(PATCHES / "UPSTREAM")


@pytest.fixture(scope="session")
def pristine() -> Path:
    cache = upstream.cache_root()
    with upstream.locked(cache):
        return upstream.pristine_tree(PIN, cache)


# ---- the patches of this repository


@pytest.mark.parametrize("path", sorted(PATCHES.glob("*.patch")), ids=lambda path: path.name)
def test_patch_says_why_and_only_adds(path: Path, record_property: pytest.RecordProperty) -> None:
    patch = patching.read_patch(path)
    assert len(patch.header.split()) > 10, "a patch begins with words that say why it is there"
    removed = [line for line in path.read_text().splitlines() if line.startswith("-") and not line.startswith("--- a/")]
    assert not removed
    record_property("hook_lines", patch.n_added)
    for name, hunks in patch.hunks.items():
        print(f"{patch.name}: {sum(hunk.n_added for hunk in hunks)} lines in {len(hunks)} places of {name}")
    print(f"{patch.name}: {patch.n_added} hook lines")


def test_patches_apply_to_the_pristine_source(pristine: Path) -> None:
    patches = patching.read_patches(PATCHES)
    changed = patching.apply_patches(patches, pristine)
    assert changed.keys() == {name for patch in patches for name in patch.hunks}
    for name, content in changed.items():
        # additions only: what is there is still there, in order
        patched = iter(content.splitlines())
        assert all(line in patched for line in (pristine / name).read_bytes().splitlines())


def test_patch_tool_agrees(pristine: Path, tmp_path: Path) -> None:
    """What our own applier makes is what `patch` makes, without fuzz and without an offset."""
    patches = patching.read_patches(PATCHES)
    for patch in patches:
        for name in patch.hunks:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((pristine / name).read_bytes())
    for patch in patches:
        command = ["patch", "-p1", "--fuzz=0", "--input", str(PATCHES / patch.name)]
        try:
            result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no `patch` on this machine")
        assert result.returncode == 0, result.stdout
        assert "fuzz" not in result.stdout
        assert "offset" not in result.stdout
    for name, content in patching.apply_patches(patches, pristine).items():
        assert (tmp_path / name).read_bytes() == content


def test_versions_agree() -> None:
    version = tomllib.loads((NATIVE / "pyproject.toml").read_text())["project"]["version"]
    assert version.startswith(f"{PIN.version}+triattn.")
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"llama-cpp-python=={version}" in requirements
    assert importlib.metadata.version("llama-cpp-python") == version
    import llama_cpp

    assert llama_cpp.__version__ == version


# ---- reading and applying


_SOURCE = "one\ntwo\nthree\nfour\nfive\n"
_DIFF = "Why: a test.\n\n--- a/f.txt\n+++ b/f.txt\n@@ -1,3 +1,4 @@\n one\n two\n+added\n three\n"


def _apply(tmp_path: Path, diff: str, source: str = _SOURCE) -> str:
    (tmp_path / "0001-x.patch").write_text(diff)
    (tmp_path / "f.txt").write_text(source)
    return patching.apply_patches([patching.read_patch(tmp_path / "0001-x.patch")], tmp_path)["f.txt"].decode()


def test_hunk_is_inserted(tmp_path: Path) -> None:
    assert _apply(tmp_path, _DIFF) == "one\ntwo\nadded\nthree\nfour\nfive\n"


def test_two_hunks_and_one_without_context(tmp_path: Path) -> None:
    diff = _DIFF + "@@ -4,0 +6,1 @@\n+more\n"
    assert _apply(tmp_path, diff) == "one\ntwo\nadded\nthree\nfour\nmore\nfive\n"


@pytest.mark.parametrize(
    ("diff", "source", "said"),
    [
        (
            _DIFF,
            "zero\n" + _SOURCE,
            "0001-x.patch: hunk 1 does not apply to f.txt at line 1: expected 'one', found 'zero'",
        ),
        (_DIFF, "one\n", "f.txt at line 2: expected 'two', found '(end of file)'"),
        (_DIFF.replace("f.txt", "g.txt"), _SOURCE, "g.txt does not exist in the source"),
        (_DIFF.replace("+added\n three", "-three"), _SOURCE, "line 8: it removes or replaces a line"),
        (_DIFF.replace("a/f.txt", "/dev/null"), _SOURCE, "new files belong in native/src"),
        (_DIFF.replace("1,4", "1,5"), _SOURCE, "hunk ends early"),
        ("Why: nothing.\n", _SOURCE, "holds no hunk"),
    ],
)
def test_bad_patch_is_refused(tmp_path: Path, diff: str, source: str, said: str) -> None:
    with pytest.raises(patching.PatchError) as caught:
        _apply(tmp_path, diff, source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- laying the tree


def test_only_changed_files_get_new_times(tmp_path: Path) -> None:
    source, tree = tmp_path / "pristine", tmp_path / "patched" / "src"
    source.mkdir()
    for name in ("hooked.cpp", "untouched.cpp"):
        (source / name).write_text("upstream\n")

    def lay(**changed: bytes) -> set[str]:
        for path in tree.rglob("*") if tree.exists() else ():
            os.utime(path, (1, 1))
        upstream.lay_tree(source, tree, {f"{name}.cpp": content for name, content in changed.items()})
        return {path.name for path in tree.rglob("*") if path.stat().st_mtime != 1}

    assert lay(hooked=b"hook\n", ours=b"a\n") == {"hooked.cpp", "untouched.cpp", "ours.cpp"}
    assert lay(hooked=b"hook\n", ours=b"a\n") == set()
    assert lay(hooked=b"hook\n", ours=b"b\n") == {"ours.cpp"}
    assert lay(ours=b"b\n") == {"hooked.cpp"}
    assert (tree / "hooked.cpp").read_text() == "upstream\n"
    lay()
    assert not (tree / "ours.cpp").exists()
    assert (source / "hooked.cpp").read_text() == "upstream\n"


def test_interrupted_laying_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tree = tmp_path / "pristine", tmp_path / "patched" / "src"
    source.mkdir()
    (source / "hooked.cpp").write_text("upstream\n")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(upstream.shutil, "copytree", full_disk)
        with pytest.raises(OSError, match="no space"):
            upstream.lay_tree(source, tree, {})
    assert not tree.exists()
    upstream.lay_tree(source, tree, {"hooked.cpp": b"hook\n"})
    with monkeypatch.context() as patched:
        patched.setattr(upstream.shutil, "copymode", full_disk)
        with pytest.raises(OSError, match="no space"):
            upstream.lay_tree(source, tree, {"hooked.cpp": b"other\n", "ours.cpp": b""})
    upstream.lay_tree(source, tree, {})
    assert (tree / "hooked.cpp").read_text() == "upstream\n"
    assert not (tree / "ours.cpp").exists()


# ---- failures, as a user meets them


@pytest.fixture
def build_env(tmp_path: Path) -> dict[str, str]:
    """An environment with a cache of its own and no package index."""
    own = {"TRIATTN_NATIVE_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name != "CMAKE_ARGS"}
    return kept | own


def _failing_build(env: dict[str, str], native: Path = NATIVE) -> str:
    """Lay the tree, expect failure, and return the one line that it ends with."""
    command = [sys.executable, str(native / "build_backend.py"), "tree"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("triattn native build: ")
    return last


def _left_in(cache: Path) -> list[str]:
    return [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file() and path.name != "lock"]


def _fake_sdist(path: Path) -> None:
    """An archive of the right name with something else inside."""
    root = path.name.removesuffix(".tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        content = f"Metadata-Version: 2.1\nName: {PIN.name}\nVersion: {PIN.version}\n".encode()
        member = tarfile.TarInfo(f"{root}/PKG-INFO")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def test_failed_download(build_env: dict[str, str], tmp_path: Path) -> None:
    line = _failing_build(build_env | {"PIP_FIND_LINKS": str(tmp_path / "nowhere")})
    assert f"cannot download {PIN.name} {PIN.version}" in line
    assert str(tmp_path / "cache" / "sdist" / PIN.sdist_name) in line
    assert _left_in(tmp_path / "cache") == []


def test_wrong_hash(build_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    _fake_sdist(tmp_path / "index" / PIN.sdist_name)
    line = _failing_build(build_env | {"PIP_FIND_LINKS": str(tmp_path / "index")})
    assert "wrong hash" in line
    assert PIN.sha256 in line
    assert _left_in(tmp_path / "cache") == []


def test_damaged_file_in_the_cache_is_fetched_again(build_env: dict[str, str], tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "sdist" / PIN.sdist_name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    assert "cannot download" in _failing_build(build_env)
    assert _left_in(tmp_path / "cache") == []


def test_patch_that_no_longer_applies(build_env: dict[str, str], tmp_path: Path, pristine: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "native").mkdir(parents=True)
    (repository / "patches").mkdir()
    for path in [*NATIVE.glob("*.py"), NATIVE / "CMakeLists.txt", *PATCHES.glob("*")]:
        (repository / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    spoiled = repository / "patches" / "0002-version.patch"
    spoiled.write_text(spoiled.read_text().replace(' __version__ = "', ' __version__ = "9'))
    archive = upstream.sdist_path(PIN, upstream.cache_root())
    if not archive.exists():
        pytest.skip("the source distribution is no longer in the cache")
    (tmp_path / "cache" / "sdist").mkdir(parents=True)
    (tmp_path / "cache" / "sdist" / PIN.sdist_name).symlink_to(archive)

    line = _failing_build(build_env, repository / "native")
    assert "0002-version.patch: hunk 1 does not apply to llama_cpp/__init__.py at line 4" in line
    assert "patches/README.md" in line
    assert not list((tmp_path / "cache").rglob("patched"))


@pytest.mark.parametrize("hook", ["build_wheel", "unpatched"])
def test_missing_compiler(build_env: dict[str, str], tmp_path: Path, hook: str) -> None:
    code = {
        "build_wheel": "import build_backend; build_backend.build_wheel('out')",
        "unpatched": "import build_backend; build_backend.build_library(None, patched=False)",
    }[hook]
    (tmp_path / "bin").mkdir()
    env = build_env | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(NATIVE)}
    for name in ("CC", "CXX"):
        env.pop(name, None)
    # scikit-build-core is there when pip builds, and is not reached
    stub = tmp_path / "bin" / "scikit_build_core"
    stub.mkdir()
    (stub / "__init__.py").write_text("")
    (stub / "build.py").write_text("build_wheel = None")
    env["PYTHONPATH"] += f"{os.pathsep}{tmp_path / 'bin'}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith(
        "triattn native build: no C compiler: cc or gcc or clang not found on PATH; install"
    )
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_source_distribution_is_refused(build_env: dict[str, str], tmp_path: Path) -> None:
    code = "import build_backend; build_backend.build_sdist('out')"
    env = build_env | {"PYTHONPATH": str(NATIVE)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "native/ has no source distribution" in result.stderr


# ---- what is installed


@pytest.mark.parametrize("tool", ["llama-server", "llama-bench", "llama-perplexity", "llama-quantize"])
def test_tool_answers(tool: str) -> None:
    command = [str(Path(sys.executable).parent / tool), "--help" if tool == "llama-quantize" else "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = result.stdout + result.stderr
    if tool == "llama-quantize":
        assert "--allow-requantize" in said
    else:
        assert result.returncode == 0
        assert re.search(rf"commit {PIN.llama_cpp_commit[:9]}", said)


def test_wheel_keeps_to_its_package() -> None:
    """Nothing of llama.cpp lands beside the package (site-packages/bin, /lib, /include), and no library twice."""
    files = importlib.metadata.files("llama-cpp-python") or []
    tops = {path.parts[0] for path in files}
    assert {top for top in tops if not top.endswith(".dist-info")} <= {"llama_cpp", ".."}
    libraries = [path.name for path in files if path.match("llama_cpp/lib/*") and path.name != "triattn-build.json"]
    assert any(name.startswith("libllama.") for name in libraries)
    assert all(re.fullmatch(r"lib[\w-]+\.(so|dylib)", name) for name in libraries)
    assert any(path.match("llama_cpp/include/llama-triattn.h") for path in files)
