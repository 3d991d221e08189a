"""A setting is one line of the table: everything else that has its name is made of it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.support import write_docs
from triattn_local import settings
from triattn_local.cli.flags import CACHE, Given, with_settings
from triattn_local.config import EvictionConfig, kv_overrides
from triattn_local.engine import native
from triattn_local.errors import UsageError
from triattn_local.settings import Settings, table
from triattn_local.support.setting import BYTES, NUMBER, WHOLE, lines, setting

HEADER = (Path(__file__).parents[1] / "native/include/llama-triattn.h").read_text("utf-8")


@dataclass(frozen=True)
class Longer(EvictionConfig):
    made_up: int = setting(7, WHOLE, "A made-up number.", CACHE, "TOKENS", low=1)


@pytest.fixture
def longer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table with one line more."""
    monkeypatch.setattr(settings, "CONFIGS", tuple(Longer if c is EvictionConfig else c for c in settings.CONFIGS))
    table.cache_clear()
    yield
    table.cache_clear()


@pytest.mark.usefixtures("longer")
def test_a_new_setting_is_one_line(tmp_path: Path) -> None:
    app = typer.Typer(rich_markup_mode="markdown")

    @app.command()
    @with_settings(CACHE)
    def show(given: Given) -> None:
        print(Settings.load(given, environ={}).made_up)

    assert CliRunner().invoke(app, ["--made-up", "9"]).output == "9\n"
    told = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert re.search(r"--made-up .*TOKENS.*A made-up number\. \[default: 7\]", told)
    assert Settings.load(environ={"TRIATTN_MADE_UP": "10"}).made_up == 10
    (tmp_path / "config.toml").write_text("made_up = 11")
    assert Settings.load(environ={}, config_path=tmp_path / "config.toml").made_up == 11
    assert "| `--made-up` | `TRIATTN_MADE_UP` | `made_up` | `7` | A made-up number. |" in write_docs.settings_table()
    assert kv_overrides(Longer(made_up=12))["triattention.made_up"] == 12
    with pytest.raises(UsageError, match="environment TRIATTN_MADE_UP: must be at least 1, not 0"):
        Settings.load(environ={"TRIATTN_MADE_UP": "0"})._made(Longer)


def test_every_flag_of_the_table_is_one_of_a_command() -> None:
    known = set().union(*(write_docs.flags(command) for command in write_docs.commands().values()))
    for line in table().values():
        spelled = {name for flag in line.flags for name in flag.split("/")}
        assert spelled <= known, line.name


def test_the_table_is_the_struct_of_the_library() -> None:
    struct = HEADER.partition("struct llama_triattn_params {")[2].partition("};")[0]
    declared = re.findall(r"^\s+(\w+)\s+(\w+);", struct, re.MULTILINE)
    c_types = {"uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "float": ctypes.c_float}
    assert native.Params._fields_ == [(name, c_types[kind]) for kind, name in declared]


def test_the_library_reads_the_table_by_the_same_names() -> None:
    rows = re.findall(r"^//\s+triattention\.(\w+)\s+TRIATTN_(\w+)\s+\w+\s+", HEADER, re.MULTILINE)
    assert rows == [(line.c_name, (line.name or line.c_name).upper()) for line in lines(EvictionConfig)] + [
        ("stats", "STATS")
    ]


def test_every_value_comes_back_from_the_struct() -> None:
    for line in lines(EvictionConfig):
        other = line.choices[1:] or {NUMBER: (0.25,), BYTES: ("off", 2**20)}.get(line.kind, ())
        if line.kind is WHOLE:
            other = (line.default + 1,)
        for value in (line.default, *other):
            config = EvictionConfig(**{line.field: value})
            assert native.Params.from_config(config).to_config() == config
