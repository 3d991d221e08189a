"""The build backend behind `pip install ./native` (PEP 517), and a developer's command line to the same build.

Why it exists: TriAttention is a patch to llama.cpp, and what everybody imports is llama-cpp-python. So this folder
builds a distribution of that name: upstream's pinned source, the patches of ../patches, the C++ files of include/,
src/ and server/, and the tools of the same llama.cpp, in one wheel. It puts the steps together (upstream.py lays down
the tree, toolchain.py compiles it, selfcheck.py tries it, scikit-build-core packs it) and turns every failure into one
line.

It does not know what the patches do.

    python native/build_backend.py unpatched [--out DIR]   build upstream's libllama; print a LLAMA_CPP_LIB_PATH for it
    python native/build_backend.py patched [--out DIR]     build ours, without the tools; print the same
    python native/build_backend.py patched --sanitize --out DIR   with ASan and UBSan: scripts/sanitize.sh tests with it
    python native/build_backend.py tree                    lay down the patched tree; print where
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import portable
import selfcheck
import toolchain
import upstream
from patching import PatchError, apply_patches, read_patches
from upstream import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NATIVE = Path(__file__).resolve().parent
PATCHES = NATIVE.parent / "patches"
TOOLS = ("llama-server", "llama-bench", "llama-perplexity", "llama-quantize", "ggml-rpc-server")

# without these upstream's own library does not run everywhere, compared or not
MENDINGS = ("0004-amx-tile-configuration.patch",)

P = ParamSpec("P")
R = TypeVar("R")


def _one_line_errors(hook: Callable[P, R]) -> Callable[P, R]:
    """End the process with the one line that tells the user what to do, instead of a traceback through pip."""

    @functools.wraps(hook)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if os.name == "nt":
                raise BuildError("Windows is not supported: build under WSL2")
            return hook(*args, **kwargs)
        except BuildError as error:
            line = str(error)
        except PatchError as error:
            line = f"{error}; patches/README.md tells how a patch is made again"
        except OSError as error:
            line = f"{error.strerror or error}: {error.filename or upstream.cache_root()}; "
            line += "make room or rights there, or name another folder in $TRIATTN_NATIVE_CACHE"
        raise SystemExit(f"triattn native build: {line}")

    return wrapped


# ---- the tree and its build


def _pin() -> upstream.Pin:
    if not (PATCHES / "UPSTREAM").is_file():
        raise BuildError(f"{PATCHES / 'UPSTREAM'} not found; build from a whole checkout, not from native/ alone")
    return upstream.read_pin(PATCHES / "UPSTREAM")


def _our_files() -> dict[str, bytes]:
    """The files that lie over upstream's, by their path in the tree."""
    files = {
        "CMakeLists.txt": NATIVE / "CMakeLists.txt",
        "llama_cpp/_cpu.py": NATIVE / "cpu.py",
        "llama_cpp/_tools.py": NATIVE / "tools.py",
    }
    for folder in ("check", "include", "server", "src"):
        for path in (NATIVE / folder).rglob("*"):
            if path.suffix in (".h", ".c", ".cpp"):
                files[f"triattn/{path.relative_to(NATIVE).as_posix()}"] = path
    return {name: path.read_bytes() for name, path in files.items()} | _page()


def _page() -> dict[str, bytes]:
    """llama-server's page, where upstream's build looks for one that is made already."""
    with tarfile.open(NATIVE / "page.tar.xz") as archive:
        opened = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
        return {f"vendor/llama.cpp/tools/ui/dist/{name}": file.read() for name, file in opened if file is not None}


def _lay_tree(cache: Path, name: str, changed: Callable[[Path], Mapping[str, bytes]]) -> Path:
    pin = _pin()
    pristine = upstream.pristine_tree(pin, cache)
    tree = pristine.parent / name / "src"
    upstream.lay_tree(pristine, tree, changed(pristine))
    return tree


def _lay_patched(cache: Path) -> Path:
    patches = read_patches(PATCHES)
    return _lay_tree(cache, "patched", lambda pristine: {**apply_patches(patches, pristine), **_our_files()})


def _lay_unpatched(cache: Path) -> Path:
    mendings = [patch for patch in read_patches(PATCHES) if patch.name in MENDINGS]
    ours = {"CMakeLists.txt": (NATIVE / "CMakeLists.txt").read_bytes()}
    return _lay_tree(cache, "unpatched", lambda pristine: {**apply_patches(mendings, pristine), **ours})


def _build(tree: Path, triattn: bool, more: Sequence[str] = ()) -> toolchain.Build:
    # told, not asked from git: the same sources give the same objects
    commit = f"LLAMA_BUILD_COMMIT={_pin().llama_cpp_commit[:9]}"
    return toolchain.Build(tree, [f"TRIATTN={'ON' if triattn else 'OFF'}", "LLAMA_BUILD_NUMBER=0", commit, *more])


# ---- PEP 517


@_one_line_errors
def get_requires_for_build_wheel(config_settings: Mapping[str, str] | None = None) -> list[str]:
    """CMake and Ninja unless the machine has them; pip while there is something to download."""
    minimum = ".".join(map(str, toolchain.CMAKE_MINIMUM))
    requires = [] if toolchain.find_cmake() else [f"cmake>={minimum}"]
    requires += [] if toolchain.find_ninja() else ["ninja"]
    requires += [] if upstream.sdist_path(_pin(), upstream.cache_root()).exists() else ["pip"]
    return requires


@_one_line_errors
def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Mapping[str, str] | None = None) -> str:
    """Metadata without building: pip settles all dependencies before it begins to compile."""
    from scikit_build_core.build import prepare_metadata_for_build_wheel as prepare

    name: str = prepare(metadata_directory, None)
    return name


@_one_line_errors
def build_wheel(
    wheel_directory: str, config_settings: Mapping[str, str] | None = None, metadata_directory: str | None = None
) -> str:
    """Build what is not built yet and pack it."""
    if config_settings:
        print("config settings are not read; CMake's options come from $CMAKE_ARGS", file=sys.stderr)
    toolchain.check_tools()
    wheel_directory = str(Path(wheel_directory).absolute())
    cache = upstream.cache_root()
    with upstream.locked(cache):
        tree = _lay_patched(cache)
        is_portable = portable.is_asked()
        build = _build(tree, triattn=True, more=portable.base() if is_portable else ())
        selfcheck.compile_and_check(build, ["llama", "mtmd", *TOOLS], portable.NAME if is_portable else None)
        with tempfile.TemporaryDirectory(prefix="wheel-", dir=cache) as tmp:
            stage = Path(tmp)
            shutil.copytree(tree / "llama_cpp", stage / "llama_cpp", ignore=shutil.ignore_patterns("__pycache__"))
            build.install("llama_cpp", stage)
            for name, instructions in portable.variants().items() if is_portable else ():
                variant = _build(tree, triattn=True, more=instructions)
                variant.compile(["ggml-cpu"])
                variant.install("ggml-cpu", stage / "llama_cpp" / "lib" / portable.FOLDER / name)
            shutil.copy2(build.folder / selfcheck.REPORT, stage / "llama_cpp" / "lib")
            for name in ("pyproject.toml", "README.md"):
                shutil.copy2(NATIVE / name, stage)
            shutil.copytree(NATIVE / "licenses", stage / "licenses")
            return _pack(stage, wheel_directory)


def _pack(stage: Path, wheel_directory: str) -> str:
    """Write the wheel of what `stage` holds; scikit-build-core reads it from the working directory."""
    from scikit_build_core.build import build_wheel as pack

    back = Path.cwd()
    os.chdir(stage)
    try:
        name: str = pack(wheel_directory, None)
    finally:
        os.chdir(back)
    return name


@_one_line_errors
def build_sdist(sdist_directory: str, config_settings: Mapping[str, str] | None = None) -> str:
    """Refused: the patches lie beside this folder, not in it."""
    raise BuildError("native/ has no source distribution; pip install it from a checkout, or build a wheel from there")


# ---- for developers


@_one_line_errors
def build_library(out: Path | None, *, patched: bool, sanitize: bool = False) -> Path:
    """Build libllama alone, with eviction or as upstream has it, and return the folder that holds it.

    With ``sanitize`` it runs only in a process that has the sanitizers' libraries loaded before all others.
    """
    toolchain.check_tools()
    cache = upstream.cache_root()
    with upstream.locked(cache):
        tree = _lay_patched(cache) if patched else _lay_unpatched(cache)
        build = _build(tree, patched, ["TRIATTN_SANITIZE=ON"] if sanitize else [])
        if sanitize:
            build.compile(["llama", "llama-triattn-cpu"])  # the self-test has no sanitizer, and would not start
        elif patched:
            selfcheck.compile_and_check(build, ["llama"])
        else:
            build.compile(["llama"])
        target = (out or tree.parent / ("lib-sanitized" if sanitize else "lib")).absolute()
        build.install("libllama", target)
    return target


@_one_line_errors
def lay_patched_tree() -> Path:
    """Lay down the patched tree without building it, and return its root."""
    cache = upstream.cache_root()
    with upstream.locked(cache):
        return _lay_patched(cache)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="build_backend.py", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("unpatched", "upstream's libllama"), ("patched", "ours, without the tools")):
        library = commands.add_parser(name, help=f"build {what}; print a LLAMA_CPP_LIB_PATH for it")
        library.add_argument("--out", type=Path, help="where to put the libraries (default: in the cache)")
        if name == "patched":
            library.add_argument("--sanitize", action="store_true", help="with ASan and UBSan; see scripts/sanitize.sh")
    commands.add_parser("tree", help="lay down the patched tree; print where")
    arguments = parser.parse_args()
    if arguments.command == "tree":
        print(lay_patched_tree())
    else:
        sanitize = getattr(arguments, "sanitize", False)
        print(build_library(arguments.out, patched=arguments.command == "patched", sanitize=sanitize))


if __name__ == "__main__":
    _main()
