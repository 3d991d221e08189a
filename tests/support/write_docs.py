"""The parts of the documentation that the program itself knows: its commands, and its settings.

    python tests/support/write_docs.py      writes them anew

test_readme.py fails when they are not what the program says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.main
from families import FAMILIES

from triattn_local.cli import app
from triattn_local.settings import OTHER_VARIABLES, table

ROOT = Path(__file__).parents[2]
CLI_PAGE = ROOT / "docs" / "cli.md"
SETTINGS_PAGE = ROOT / "docs" / "configuration.md"
MODELS_PAGE = ROOT / "docs" / "models.md"

_BEGIN = "<!-- written by tests/support/write_docs.py: {} -->"
_END = "<!-- end -->"


def commands() -> dict[str, Any]:
    """Command -> what Typer made of it."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def flags(command: Any) -> set[str]:
    """Every spelling of every flag of a command."""
    named = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return {name for name in named if name.startswith("-")} | {"--help", "-h"}


def cli_page() -> str:
    lines = [
        "# Commands",
        "",
        _BEGIN.format("python tests/support/write_docs.py"),
        "",
        "stdout is data; progress, reports and errors go to stderr. `--json` gives one JSON value on stdout.",
        "",
        "Exit codes: 0 ok, 1 failure, 2 usage, 3 model missing, 4 does not fit, 5 backend missing, 6 statistics",
        "missing or not this model's, 130 interrupted.",
    ]
    for name, command in commands().items():
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option"]
        usage = " ".join(param.metavar if param.required else f"[{param.metavar}]" for param in arguments)
        lines += ["", f"## {name}", "", f"    triattn-local {name} [OPTIONS] {usage}".rstrip(), ""]
        lines += [" ".join(paragraph.split()) + "\n" for paragraph in (command.help or "").split("\n\n")]
        lines += ["| | |", "|---|---|"]
        lines += [f"| `{param.metavar}` | {_cell(param.help)} |" for param in arguments]
        for param in options:
            spelled = ", ".join(f"`{opt}`" for opt in (*param.opts, *param.secondary_opts))
            value = f" `{param.metavar}`" if param.metavar else ""
            lines.append(f"| {spelled}{value} | {_cell(param.help)} |")
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    rows = ["| flag | environment | config.toml | default | |", "|---|---|---|---|---|"]
    for name, entry in table().items():
        flag = f"`{entry.flag}`" if entry.flag else ""
        default = f"`{_toml(entry.default)}`" if isinstance(entry.default, (bool, int, float, str)) else ""
        rows.append(f"| {flag} | `TRIATTN_{name.upper()}` | `{name}` | {default} | {_cell(entry.help)} |")
    rows += ["", "Not settings, and only read from the environment:", "", "| environment | |", "|---|---|"]
    rows += [f"| `{name}` | {text} |" for name, text in OTHER_VARIABLES.items()]
    return "\n".join(rows)


def settings_page() -> str:
    return _with_table(SETTINGS_PAGE, settings_table())


def models_table() -> str:
    """What tests/test_matrix.py tries."""
    rows = ["| family | of its kind | layers that evict, of 4 | without RoPE | rewind |", "|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        layers, unrotated = (", ".join(map(str, part)) for part in (family.layers, family.unrotated))
        rewind = "no: a recurrent state cannot go back" if family.is_hybrid else "to T and later"
        rows.append(f"| `{name}` | {family.others} | {layers} | {unrotated} | {rewind} |")
    return "\n".join(rows)


def models_page() -> str:
    return _with_table(MODELS_PAGE, models_table())


def _with_table(path: Path, table: str) -> str:
    """The page, with its table written anew."""
    begin = _BEGIN.format("python tests/support/write_docs.py")
    page = path.read_text(encoding="utf-8")
    pattern = re.escape(begin) + r".*?" + re.escape(_END)
    assert re.search(pattern, page, re.DOTALL), f"{path} lost its marks"
    return re.sub(pattern, lambda _: f"{begin}\n\n{table}\n\n{_END}", page, flags=re.DOTALL)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
    MODELS_PAGE.write_text(models_page(), encoding="utf-8")
