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

from triattn_local.geometry import GEOMETRIES
from triattn_local.model import architectures
from triattn_local.settings import table
from triattn_local.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "native/README.md")]
    + [*(ROOT / "docs").glob("*.md")]
)
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


def test_the_first_commands_are_an_install_of_each_kind_and_an_answer() -> None:
    first = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    ")][:8]
    install = "pip install ./native '.[calib]'"
    assert first == [
        "git clone REPOSITORY triattn-local && cd triattn-local",
        "python3 -m venv .venv && . .venv/bin/activate",
        *(f"CMAKE_ARGS=-DGGML_{backend}=on {install}" for backend in ("CUDA", "VULKAN", "METAL")),
        install,
        "triattn-local doctor",
        'triattn-local run --demo "Tell me about the sea"',
    ]
    assert "    pip install '.[test]' && pytest\n" in README


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_no_example_asks_a_model_for_more_than_it_was_trained_for() -> None:
    n_found = 0
    for page in PAGES:
        for words in our_commands(page.read_text(encoding="utf-8")):
            line = " ".join(words).lower()
            match = re.search(r"--ctx (\d+)", line)
            trained = [shape.n_ctx_train for name, shape in GEOMETRIES.items() if name in line]
            if match and trained and "--rope-scaling" not in words:
                n_found += 1
                assert int(match[1]) <= min(trained), f"{page.name}: {line}"
    assert n_found >= 2


@pytest.mark.parametrize("words", ["any GGUF with RoPE", "any architecture with RoPE", "no way back", "all cores"])
def test_what_was_false_is_not_said_again(words: str) -> None:
    for page in PAGES:
        if page.name != "LOG.md":
            assert words not in page.read_text(encoding="utf-8"), page.name


def test_the_models_that_it_calls_refused_are_refused() -> None:
    rows = README.split("## Which models")[1].split("\n## ")[0].lower()
    for arch in ("gpt2", "bloom", "mpt"):
        assert architectures.ROPE_TYPES[arch] is None
    assert {"mamba", "rwkv7"} <= architectures.RECURRENT
    assert "bert" in architectures.ENCODERS
    for said, arch in (
        ("llama", "llama"),
        ("qwen3", "qwen3"),
        ("gemma 2", "gemma2"),
        ("phi-3", "phi3"),
        ("gpt-oss", "gpt-oss"),
    ):
        assert said in rows
        assert architectures.ROPE_TYPES[arch] is not None


@pytest.mark.parametrize(
    ("said", "page", "there"),
    [
        ("5.75 times", "benchmarks.md", "**5.75**"),
        ("6 of 12 with a quarter", "evaluation.md", "a quarter 6"),
        ("+0.037 nats", "cold.md", "Python +0.037"),
        ("11 of 12 with a twelfth", "cold.md", "| 12 / 12 | 12 / 12 | 11 / 12 |"),
        ("nine tenths", "cold.md", "| cold tier, a recall every two tokens | 0.94 |"),
        ("12 times of 12 with an eighth", "cold.md", "| 12 / 12 | 12 / 12 | 11 / 12 |"),
        ("| 10.0 GiB | does not fit", "plan.md", "40,960 tokens        10.0 GiB  no"),
        ("| 8.0 GiB | does not fit", "plan.md", "32,768 tokens         8.0 GiB  no"),
        ("55 minutes", "gpu.md", "the whole took 55\nminutes"),
        ("22.5 KiB", "cold.md", "22.5 KiB"),
    ],
)
def test_the_figures_of_the_readme_stand_where_they_were_measured(said: str, page: str, there: str) -> None:
    assert said in README
    assert there in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_classifiers_are_those_that_the_build_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    systems = {name for name in project["classifiers"] if name.startswith("Operating System")}
    assert systems == {"Operating System :: MacOS", "Operating System :: POSIX :: Linux"}
    private = [
        path.name for path in (ROOT / "tui").rglob("*.py") if "from textual._" in path.read_text(encoding="utf-8")
    ]
    assert private
    [textual] = [need for need in project["dependencies"] if need.startswith("textual")]
    assert "<" in textual


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
    page = (ROOT / "docs/modes.md").read_text(encoding="utf-8")
    shown_table = page.split("## Flags")[1].split("\n## ")[0]
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


def test_the_changelog_is_by_version_and_begins_with_this_one() -> None:
    page = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (\S+) with \S+\+triattn\.(\d+), ", page, re.MULTILINE)
    native = tomllib.loads((ROOT / "native/pyproject.toml").read_text())["project"]["version"]
    assert headings[0] == (__version__, native.rpartition(".")[2])
    assert [int(n) for _, n in headings] == sorted({int(n) for _, n in headings}, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(README.count("```python")))
def test_the_python_examples_run(number: int, smollm2_triattn: Path, tmp_path: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[number]
    (tmp_path / "model.triattn.gguf").symlink_to(smollm2_triattn)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 20


def test_the_workflows_parse_and_use_the_steps_of_ci() -> None:
    yaml = pytest.importorskip("yaml")
    steps = re.search(r"^STEPS=\((.*)\)", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps
    jobs = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))["jobs"]
    assert {"linux", "macos"} <= jobs.keys()
    ran = [
        step["run"].split()[1:] for job in jobs.values() for step in job["steps"] if ".ci/run" in step.get("run", "")
    ]
    assert ran
    assert {name for names in ran for name in names} <= set(steps[1].split())


def test_ci_names_its_steps_and_ends_with_a_step_that_fails(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / ".ci/run", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "prepare environment install test check" in done.stderr
    # an environment that is not there: the step fails, and so does the run
    env = {"PATH": "/usr/bin:/bin", "TRIATTN_CI_VENV": str(tmp_path / "none")}
    done = subprocess.run([ROOT / ".ci/run", "check"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "done" not in done.stdout
