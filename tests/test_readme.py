"""What the documentation says is true: its commands exist, its files are there, its examples run."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import write_docs

from triattn_local.settings import table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_lines(page: str) -> list[str]:
    """Lines of code blocks, and what stands in backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.+)$", page, re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", page)]
    return [line for block in fenced for line in block.splitlines()] + indented + inline


def our_commands(page: str) -> list[list[str]]:
    found = []
    for line in code_lines(page):
        if match := re.search(r"(?:^|\s)triattn-local (?=[a-z])(.*)", line):
            found.append(shlex.split(match[1], comments=True))
    return found


def test_the_first_commands_are_the_two_of_the_readme() -> None:
    first = [line for line in README.splitlines() if line.startswith("    ")][:3]
    assert [line.split("#")[0].strip() for line in first] == [
        "pip install ./native '.[calib]'",
        'triattn-local run --demo "Tell me about the sea"',
        "pip install '.[test]' && pytest",
    ]


def test_its_install_brings_what_its_pictures_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "--html" in README
    assert any(requirement.startswith("matplotlib") for requirement in extras["calib"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_exists(page: Path) -> None:
    commands = write_docs.commands()
    for words in our_commands(page.read_text(encoding="utf-8")):
        assert words[0] in commands, f"triattn-local {words[0]}"
        for word in itertools.takewhile(lambda word: word != "--", words[1:]):  # the rest is another program's
            if re.match(r"--?[a-z]", word):
                assert word in write_docs.flags(commands[words[0]]), f"{word} of triattn-local {words[0]}"


def test_the_table_of_flags_is_true() -> None:
    known = write_docs.flags(write_docs.commands()["run"])
    shown_table = README.split("## Flags")[1].split("\n## ")[0]
    rows = [line.split("|") for line in shown_table.splitlines() if line.startswith("| `-")]
    shown = [flag for row in rows for flag in re.findall(r"`(-[\w-]+)`", row[1])]
    assert shown
    assert set(shown) <= known
    by_flag = {entry.flag: entry for entry in table().values()}
    for row in rows:
        [*names] = re.findall(r"`(-[\w-]+)`", row[1])
        if len(names) == 1 and names[0] in by_flag and row[2].strip():
            assert row[2].strip() == str(by_flag[names[0]].default), names[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_every_path_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"`((?:native|patches|triattn_local|calib_tools|tests|docs)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_the_pages_that_the_program_writes_are_up_to_date() -> None:
    assert write_docs.CLI_PAGE.read_text(encoding="utf-8") == write_docs.cli_page(), "run tests/support/write_docs.py"
    page = write_docs.SETTINGS_PAGE.read_text(encoding="utf-8")
    assert page == write_docs.settings_page(), "run tests/support/write_docs.py"
    page = write_docs.MODELS_PAGE.read_text(encoding="utf-8")
    assert page == write_docs.models_page(), "run tests/support/write_docs.py"


def test_the_settings_of_the_library_are_those_of_its_header() -> None:
    header = (ROOT / "native/include/llama-triattn.h").read_text(encoding="utf-8")
    page = write_docs.SETTINGS_PAGE.read_text(encoding="utf-8").split("## Settings of the library")[1]
    rows = re.findall(r"^//\s+(triattention\.\w+)\s+(TRIATTN_\w+)\s+\w+\s+(.*)", header, re.MULTILINE)
    assert len(rows) >= 12
    told = re.findall(r"^\| `(triattention\.\w+)` \| `(TRIATTN_\w+)` \|", page, re.MULTILINE)
    assert told == [row[:2] for row in rows]
    for key, _, text in rows:
        [line] = [line for line in page.splitlines() if line.startswith(f"| `{key}`")]
        for word in re.findall(r"[\w-]+(?= \(default\))|^\d+$|^true$", text):
            assert word in line, f"{key} has default {word}"


def test_the_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    native = tomllib.loads((ROOT / "native/pyproject.toml").read_text())["project"]
    assert f"{native['name']}=={native['version']}" in project["dependencies"]
    torch = {need for extra in project["optional-dependencies"].values() for need in extra if need.startswith("torch")}
    assert torch == {"torch==2.13.0"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(README.count("```python")))
def test_the_python_examples_run(number: int, smollm2_triattn: Path, tmp_path: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[number]
    (tmp_path / "model.triattn.gguf").symlink_to(smollm2_triattn)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 20
