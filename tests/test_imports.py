"""Imports run one way, and heavy libraries stay where they belong.

Walks the source of the package, imports inside functions included: a way back would be one there too.

A room is a module or a package of the first level below triattn_local, calib_tools and tui among them; the package's
own ``__init__``, which hands on what programs need, is none. An arrow is a room that imports another one, once or more
often. What is imported for types alone, below ``if TYPE_CHECKING``, closes no circle among modules.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import triattn_local

PACKAGE = Path(triattn_local.__file__).parent
ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("support",),
    ("config",),
    ("answers", "model", "settings", "tools"),
    ("engine",),
    ("geometry", "inspection", "sessions", "store"),
    ("benchmark", "calib_tools", "evaluation", "planning", "selftest"),
    ("server",),
    ("doctor", "tui"),
    ("cli",),
)
"""the rooms, from the ground up: each imports from below only"""
MOST_ROOMS, MOST_ARROWS = 28, 130

ALLOWED = {
    "torch": {"calib_tools"},
    "sqlite_utils": {"sessions"},
    "textual": {"tui"},
    "typer": {"cli"},
    "rich": {"cli", "support.console", "tui"},
    "huggingface_hub": {"store"},
    "llama_cpp": {"answers", "calib_tools", "doctor", "engine", "model.ggml_types", "planning"},
    "mcp": {"tools"},
    "matplotlib": {"benchmark", "evaluation", "inspection", "support.plotting"},
    "pylatexenc": {"tui"},
    "pynvml": {"engine.devices"},
    "transformers": set(),
}
"""library -> the rooms, or modules of them, where it may be imported"""

PRINTERS = {"cli", "support.console", "tui"}

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def sources() -> Iterator[Path]:
    """All modules, those behind the links of a checkout too, which rglob passes by."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


SOURCES = sorted(path for path in sources() if path.name != "__init__.py" or path.parent != PACKAGE)


def name_of(path: Path) -> str:
    """triattn_local.store.hub"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["triattn_local", *parts]).removesuffix(".__init__")


def home(path: Path) -> str:
    """The room that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_one_of(path: Path, names: set[str]) -> bool:
    """Whether a file is in one of the rooms, or is one of the modules."""
    return home(path) in names or name_of(path).removeprefix("triattn_local.") in names


def nodes(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """All nodes below one; with those of ``if TYPE_CHECKING`` or without."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        yield node
        yield from nodes(node, for_types=for_types)


MODULES = {name_of(path) for path in SOURCES} | {"triattn_local"}


def imported(path: Path, *, for_types: bool = True) -> set[str]:
    """Full names of the modules that a file imports: of a name that a package has, the package's."""
    package = ["triattn_local", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), for_types=for_types):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            whole = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else module for name in whole}
    return names


def arrows() -> set[tuple[str, str]]:
    found = set()
    for path in SOURCES:
        here = home(path)
        there = {name.split(".")[1] for name in imported(path) if name.startswith("triattn_local.")}
        found |= {(here, room) for room in there - {here}}
    return found


def test_the_package_has_the_folders_beside_it() -> None:
    for name in ("calib_tools", "tui"):
        assert (PACKAGE / name / "__init__.py").is_file(), f"{name}: git config core.symlinks true, and check out anew"


def test_imports_run_one_way() -> None:
    rooms = {home(path) for path in SOURCES}
    assert rooms == set(FLOOR), "each room has a place in FLOORS"
    assert not [f"{a} must not import {b}" for a, b in sorted(arrows()) if FLOOR[b] >= FLOOR[a]]


def test_the_map_shows_the_rooms() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("| floor |")[2].partition("\n\n")[0]
    floors: list[set[str]] = []
    for line in table.splitlines()[2:]:
        _, number, rooms, *_ = (cell.strip() for cell in line.split("|"))
        if number:
            floors.append(set())
            assert number == str(len(floors))
        floors[-1] |= set(re.findall(r"`(\w+)/?`", rooms))
    assert floors == [set(names) for names in FLOORS]


def test_nobody_goes_through_the_front_door() -> None:
    assert not [path for path in SOURCES if "triattn_local" in imported(path)], "import from the module that has it"


def test_no_circle_among_modules() -> None:
    graph = {name_of(path): imported(path, for_types=False) & MODULES - {name_of(path)} for path in SOURCES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_house_is_small() -> None:
    assert len({home(path) for path in SOURCES}) <= MOST_ROOMS
    assert len(arrows()) <= MOST_ARROWS


def test_what_programs_need_is_at_the_top() -> None:
    for name in triattn_local.__all__:
        assert getattr(triattn_local, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = triattn_local.Nothing


def test_libraries_stay_where_they_belong() -> None:
    wrong = [
        f"{library} is imported in {path}"
        for path in SOURCES
        for library in {name.split(".")[0] for name in imported(path)} & set(ALLOWED)
        if not is_one_of(path, ALLOWED[library])
    ]
    assert not wrong


def test_only_the_command_line_prints() -> None:
    wrong = []
    for path in SOURCES:
        if is_one_of(path, PRINTERS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            stream = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            if printed or stream:
                wrong.append(f"{path}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    assert not wrong


def test_one_place_makes_models_and_contexts() -> None:
    makers = {"llama_model_load_from_file", "llama_init_from_model", "llama_context_default_params", "Llama"}
    wrong = []
    for path in SOURCES:
        # what may end the process is tried in another one, which holds nothing
        if is_one_of(path, {"engine.contexts", "engine.trial"}):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in makers:
                wrong.append(f"{path}:{getattr(node, 'lineno', 0)} uses {name}: contexts.Model makes it")
    assert not wrong


def test_every_module_says_why_it_exists() -> None:
    assert not [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]


def test_an_editable_install_finds_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install -e .`` calls, and what an editor then finds: a path, and no hook that it cannot read."""
    backend = importlib.import_module("hatchling.build")  # of the extra "test"
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / backend.build_editable(str(tmp_path))
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (link,) = site.glob("*.pth")
    assert link.read_text().splitlines() == [str(ROOT)]
    code = (
        f"import site; site.addsitedir({str(site)!r}); import triattn_local.tui as t, triattn_local.calib_tools as c; "
    )
    code += "print(t.__file__, c.__file__, sep='\\n')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert [Path(line).resolve().parent for line in done.stdout.splitlines()] == [ROOT / "tui", ROOT / "calib_tools"]


def test_modules_are_found_where_they_lay_before_there_were_rooms() -> None:
    """Scripts of that time go on, and there is one module, not two."""
    code = (
        "import triattn_local; from triattn_local import native, stats; from triattn_local.gguf_file import read_gguf;"
        "from triattn_local.engine import native as there; from triattn_local.model import gguf_file;"
        "print(native is there, read_gguf is gguf_file.read_gguf, gguf_file.__spec__.name);"
        "import importlib; [importlib.import_module(name) for name in triattn_local._ROOM]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "triattn_local.model.gguf_file"]
