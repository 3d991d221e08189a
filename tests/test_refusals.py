"""What the machine refuses, one by one: names, folders, texts and databases, and the words in which it is told."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from triattn_local import store
from triattn_local.calib_tools.corpus import read_corpus
from triattn_local.cli import run_app
from triattn_local.engine import devices
from triattn_local.errors import DoesNotFitError, StateError, TriattnError, UsageError, from_system
from triattn_local.evaluation.tasks.reasoning import read_problems
from triattn_local.evaluation.texts import read_text
from triattn_local.sessions import SessionStore, import_file, refusals
from triattn_local.settings import Settings
from triattn_local.support import console, paths
from triattn_local.support.atomic import atomic_write, check_writable, write_whole

BOM = b"\xef\xbb\xbf"
LONG = "n" * 300

# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.EACCES, "Permission denied", "x.gguf"), 1, "x.gguf: Permission denied; this user needs"),
        (OSError(errno.ENOSPC, "No space left on device", b"x"), 4, "x: No space left on device; make room"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 1, "a -> b: Invalid link"),
        (OSError(errno.EMFILE, "Too many open files"), 4, "ulimit -n"),
        (OSError("no number"), 1, "no number"),
        (MemoryError(), 4, "out of memory"),
        (UnicodeEncodeError("utf-8", "a\udcfc", 1, 2, "surrogates"), 2, "U+DCFC"),
        (UnicodeDecodeError("utf-8", b"a\xfc", 1, 2, "start"), 2, "byte 1 is 0xfc"),
        (RuntimeError("can't start new thread"), 4, "ulimit -u"),
        (UsageError("wrong"), 2, "wrong"),
    ],
)
def test_what_the_system_refuses_is_told(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = from_system(error)
    assert told is not None
    assert told.exit_code == code
    assert said in str(told)

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["triattn_local.cli.app"], "app", fail)
    assert run_app(["ls"]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_fault_of_the_program_is_no_refusal() -> None:
    assert from_system(KeyError("x")) is None
    assert from_system(RuntimeError("x")) is None


# -------------------------------------------------------------------------------------------------------------- names


def test_a_name_that_cannot_be_looked_at_is_nothings(tmp_path: Path) -> None:
    for name in (LONG, "~nobody-of-that-name/m.gguf", "a\0b", str(tmp_path / "loop")):
        if name.endswith("loop"):
            Path(name).symlink_to(name)
        path = paths.expanded(name)
        assert not paths.is_file(path)
        assert not paths.is_dir(path)
        assert not paths.exists(path)
    assert paths.refusal(Path(LONG)) is None
    assert paths.refusal(tmp_path / "none") is None
    assert "symbolic links" in str(paths.refusal(tmp_path / "loop"))


def test_a_long_name_has_room_for_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_whole(path, b"data")
    assert path.read_bytes() == b"data"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="File name too long; give a shorter name"):
        check_writable(tmp_path / LONG, 0)


def test_what_is_read_while_a_file_is_written_is_not_called_unwritable(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "to" / "x", 1) as out:
        out.write((tmp_path / "none").read_bytes())
    assert list((tmp_path / "to").iterdir()) == []


def test_a_user_without_a_home_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(app: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(platformdirs, "user_data_path", homeless)
    monkeypatch.setattr(platformdirs, "user_config_path", homeless)
    settings = Settings.load({"ctx": 512}, environ={"TRIATTN_MODELS": str(tmp_path)})
    assert settings.models == tmp_path
    assert settings.changed("plan", budget=300).models == tmp_path
    with pytest.raises(UsageError, match="no home folder; set HOME, or TRIATTN_SESSIONS"):
        _ = settings.sessions


def test_a_path_of_older_platformdirs_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_data_path", lambda app: Path("~/.local/share") / app)
    with pytest.raises(UsageError, match="no home folder"):
        _ = Settings.load(environ={}).models


# ------------------------------------------------------------------------------------------------------------- memory


def test_a_containers_limit_is_what_is_free(tmp_path: Path) -> None:
    for folder, most in (("", "max"), ("outer", "1000000"), ("outer/inner", "5000000")):
        group = tmp_path / "groups" / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text("400000\n")
        (group / "memory.stat").write_text("anon 300000\ninactive_file 100000\n")
    (tmp_path / "own").write_text("0::/outer/inner\n")
    assert sorted(devices._left_by_groups(tmp_path / "groups", tmp_path / "own")) == [700_000, 4_700_000]
    assert list(devices._left_by_groups(tmp_path / "none", tmp_path / "own")) == []
    assert list(devices._left_by_groups(tmp_path / "groups", tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much a process has")
def test_a_limit_of_the_process_is_what_is_free(tmp_path: Path) -> None:
    script = (
        "import resource\n"
        "from triattn_local.engine.devices import free_memory\n"
        "before = free_memory()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
        "assert free_memory() < min(before, 1 << 31)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})


# -------------------------------------------------------------------------------------------------------------- texts


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(BOM + text.encode())
        return tmp_path / name

    assert Settings.load(environ={}, config_path=write("c.toml", "budget = 300\n")).budget == 300
    prose = "".join(f"Sentence number {i} says something of its own, about {i * i}. " for i in range(99))
    assert read_corpus([write("t.txt", prose)]).documents[0].text == prose
    assert read_text(str(write("e.txt", "Text"))) == "Text"
    assert read_problems(write("p.jsonl", '{"problem": "1+1", "answer": 2}\n'))[0].answer == "2"
    session = {"format": "triattn-local session", "version": 1, "title": "T", "leaf": None, "messages": []}
    assert import_file(write("s.json", json.dumps(session))).title == "T"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_loses_nothing_where_it_cannot_be_shown(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    console.prepare()
    value = {"text": "Grüße \N{GRINNING FACE}", "path": os.fsdecode(b"gr\xfc")}
    console.write_json(value)
    assert json.loads(out.getvalue().decode(encoding)) == value


def test_a_file_name_that_is_no_text_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8"))
    console.prepare()
    print(os.fsdecode(b"gr\xfc\xdfe.gguf"), "\ud800", flush=True)
    assert out.getvalue() == b"gr\xfc\xdfe.gguf ?\n"


# ---------------------------------------------------------------------------------------------------------- databases


def test_only_what_is_no_database_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    path.write_bytes(b"something else\n" * 99)
    before = path.read_bytes()
    with pytest.raises(StateError, match="not a database of sessions; move it away"):
        SessionStore(tmp_path)
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    with pytest.raises(StateError, match="not a database of sessions; move it away"):
        SessionStore(tmp_path)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    other.close()


def test_a_database_that_is_held_is_not_a_foreign_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triattn_local.sessions.store._WAIT_S", 0.2)
    SessionStore(tmp_path).close()
    other = sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TriattnError, match="another program holds it; close that program") as caught:
            SessionStore(tmp_path)
    finally:
        other.close()
    assert caught.value.exit_code == 1
    SessionStore(tmp_path).close()


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    sessions = SessionStore(tmp_path)
    session = sessions.create(title="kept")
    sessions.add(session.id, None, "user", "words that stay")
    (n_pages,) = sessions._db.execute("PRAGMA page_count").fetchone()
    sessions._db.execute(f"PRAGMA max_page_count={n_pages}")  # SQLite's own way to be full
    with pytest.raises(DoesNotFitError, match="the disk is full; make room"):
        sessions.add(session.id, None, "user", "x" * 100_000)
    sessions.close()
    again = SessionStore(tmp_path)
    assert [message.content for message in again.messages(session.id)] == ["words that stay"]
    again.close()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("database or disk is full", 4, "the disk is full"),
        ("disk I/O error", 4, "its disk is full, or fails"),
        ("database is locked", 1, "another program holds it"),
        ("file is not a database", 1, "move it away"),
        ("database disk image is malformed", 1, "it is damaged"),
        ("attempt to write a readonly database", 2, "TRIATTN_SESSIONS"),
        ("unable to open database file", 2, "TRIATTN_SESSIONS"),
        ("no such table: x", 1, "no such table"),
    ],
)
def test_errors_of_older_pythons_have_text_alone(text: str, code: int, said: str) -> None:
    told = refusals.told(sqlite3.OperationalError(text), Path("s.db"))
    assert told.exit_code == code
    assert said in str(told)
    assert ("move it away" in str(told)) == ("not a database" in text)


# ------------------------------------------------------------------------------------------------------------- models


def test_a_models_folder_that_is_a_file_holds_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert store.entries(tmp_path / "file") == []
