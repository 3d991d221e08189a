"""Imports run one way, and heavy libraries stay where they belong.

Walks the source of the installed package, imports inside functions included: a way back would be one there too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import triattn_local

PACKAGE = Path(triattn_local.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "ggml_types", "stop", "threads"),
    ("aio", "config", "architectures", "deep_stack", "gguf_file", "interrupts", "messages", "paths", "plotting"),
    ("text_stream", "turns"),
    ("atomic",),
    ("model_info",),
    ("stats",),
    ("metadata", "scoring"),
    ("evidence", "native"),
    (
        "cache_layout",
        "cache_rows",
        "context_options",
        "devices",
        "geometry",
        "sampling",
        "snapshot",
        "thinking",
        "tool_calls",
        "trial",
    ),
    ("vocabulary",),
    ("contexts",),
    ("runtime",),
    (
        "benchmark",
        "calib_tools",
        "console",
        "evaluation",
        "inspection",
        "oneshot",
        "selftest",
        "sessions",
        "settings",
        "store",
    ),
    ("conversation", "planning"),
    ("server",),
    ("doctor", "report", "tui"),
    ("cli",),
)
"""modules and packages of triattn_local, from the ground up: each imports from below only"""

ALLOWED = {
    "torch": {"calib_tools"},
    "sqlite_utils": {"sessions"},
    "textual": {"tui"},
    "typer": {"cli"},
    "rich": {"cli", "console", "tui"},
    "huggingface_hub": {"store"},
    "llama_cpp": {
        "calib_tools",
        "contexts",
        "doctor",
        "evaluation",
        "ggml_types",
        "native",
        "planning",
        "runtime",
        "sampling",
        "thinking",
        "trial",
        "vocabulary",
    },
    "matplotlib": {"benchmark", "evaluation", "plotting", "report"},
    "pylatexenc": {"tui"},
    "pynvml": {"devices"},
    "transformers": set(),
}
"""library -> where it may be imported"""

PRINTERS = {"cli", "console", "tui"}

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def home(path: Path) -> str:
    """The module or package of the first level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    package = ["triattn_local", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "triattn_local" else {module}
    return names


def test_the_installed_package_is_tested() -> None:
    assert (PACKAGE / "calib_tools" / "__init__.py").is_file(), "this is the checkout: pip install . first"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    here = home(path)
    assert here in FLOOR, f"give {here} a place in FLOORS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "triattn_local" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        assert FLOOR[parts[1]] < FLOOR[here], f"{here} must not import {parts[1]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for name in imported(path):
        library = name.split(".")[0]
        assert home(path) in ALLOWED.get(library, {home(path)}), f"{library} is imported in {home(path)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_command_line_prints(path: Path) -> None:
    if home(path) in PRINTERS:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        printed = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        stream = (
            isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys"
        )
        assert not printed, f"{path.name}:{getattr(node, 'lineno', 0)} prints"
        assert not stream, f"{path.name}:{getattr(node, 'lineno', 0)} uses {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_one_place_makes_models_and_contexts(path: Path) -> None:
    # what may end the process is tried in another one, which holds nothing
    if home(path) in ("contexts", "trial"):
        return
    makers = {"llama_model_load_from_file", "llama_init_from_model", "llama_context_default_params", "Llama"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        assert name not in makers, f"{path.name}:{getattr(node, 'lineno', 0)} uses {name}: contexts.Model makes it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"
