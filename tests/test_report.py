"""The page and the pictures: complete, self-contained, the same twice, and really drawn."""

from __future__ import annotations

import errno
import importlib
import re
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from centres import observed
from packed import Packed, stats_for

import triattn_local.inspection
from triattn_local.calib_tools import measure as calib_measure
from triattn_local.cli import run_app
from triattn_local.inspection.describe import inspect_model
from triattn_local.inspection.evidence import Evidence
from triattn_local.inspection.figures import pictures
from triattn_local.inspection.page import page
from triattn_local.model.metadata import write_with_stats
from triattn_local.model.model_info import ModelInfo, read_model_info

# the package of commands has a command of the same name
cli_inspect = importlib.import_module("triattn_local.cli.inspect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = Packed(arch="qwen2").set("general.name", 8, "A <b>model</b> & more").write(folder / "m.gguf")
    write_with_stats(path, folder / "with.gguf", stats_for(path))
    return folder / "with.gguf"


EVIDENCE = Evidence("held-out sha256:00", "torch", 600, ("a.txt", "b.txt"), (0, 1), (observed(0.4), observed(0.8)))
NAMES = ["concentration", "spread", "stability", "curves", "pearson", "overlap", "overlap-by-head", "heavy"]


def test_all_pictures_are_drawn(model: Path) -> None:
    drawn = list(pictures(read_model_info(model), stats_for(model), EVIDENCE))
    assert [picture.name for picture in drawn] == NAMES
    for picture in drawn:
        raw = picture.png()
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", raw[16:24])
        assert width >= 1200
        assert height >= 400
        assert len(raw) > 10_000  # not a blank sheet
        assert picture.reading.endswith(".")


class Checker(HTMLParser):
    """Finds what is fetched from elsewhere, ids that are there twice, and tags that are not closed."""

    VOID = frozenset(("meta", "br", "img", "link", "input", "hr"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.links.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_the_page_needs_nothing_else(model: Path) -> None:
    info, stats = read_model_info(model), stats_for(model)
    texts = [page(inspect_model(model), EVIDENCE, list(pictures(info, stats, EVIDENCE))) for _ in range(2)]
    assert texts[0] == texts[1]
    checker = Checker()
    checker.feed(texts[0])
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", texts[0])) <= set(checker.ids)
    assert len(checker.titles) == 2 + len(NAMES)
    assert "A &lt;b&gt;model&lt;/b&gt; &amp; more" in texts[0]


def test_inspect_writes_page_and_pictures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, png = tmp_path / "r.html", tmp_path / "new" / "png"
    assert run_app(["inspect", str(model), "--html", str(html), "--png", str(png)]) == 0
    assert "Not measured" in html.read_text(encoding="utf-8")
    assert [path.name for path in png.iterdir()] == ["concentration.png"]
    assert "budget 2,048" in capsys.readouterr().out
    assert run_app(["inspect", str(model), "--png", str(html)]) == 2
    assert run_app(["inspect", str(model), "--html", str(tmp_path / "none" / "r.html")]) == 2


def test_inspect_of_a_model_without_statistics(model: Path, tmp_path: Path) -> None:
    assert run_app(["inspect", str(model.with_name("m.gguf")), "--html", str(tmp_path / "r.html")]) == 6
    assert not (tmp_path / "r.html").exists()


def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were measured; each time at once."""
    calls: list[Path] = []

    def measure(info: ModelInfo, *args: object, **options: object) -> Evidence:
        calls.append(info.path)
        return EVIDENCE

    monkeypatch.setattr(calib_measure, "measure", measure)
    return calls


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("triattn_local.inspection.figures", "triattn_local.inspection.page", "triattn_local.support.plotting"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(triattn_local.inspection, "figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it fails


@pytest.mark.parametrize("flag", ["--html", "--png"])
def test_what_pictures_lack_is_said_before_anything_is_measured(
    flag: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measured(monkeypatch)
    command = ["inspect", str(model), "--measure", flag]
    (tmp_path / "file").touch()
    assert run_app([*command, str(tmp_path / "file" / "x")]) == 2
    without_matplotlib(monkeypatch)
    assert run_app([*command, str(tmp_path / "x")]) == 5
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert calls == []
    assert not (tmp_path / "x").exists()


def test_what_was_measured_is_told_whatever_comes_of_the_pictures(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measured(monkeypatch)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.html")

    monkeypatch.setattr(cli_inspect, "write_whole", full)
    assert run_app(["inspect", str(model), "--measure", "--html", str(tmp_path / "x.html")]) == 4
    out, err = capsys.readouterr()
    assert calls == [model]
    assert all(value in out for _, value in EVIDENCE.lines())
    assert err.splitlines()[-1].startswith("error: x.html: No space left on device")
