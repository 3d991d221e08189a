"""Sessions in the database: nothing lost, found again, branched, deleted and brought back, moved as files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from triattn_local.engine.snapshot import Snapshot
from triattn_local.errors import StateError, TriattnError, UsageError
from triattn_local.sessions import (
    Attachment,
    Message,
    SessionStore,
    SnapshotCache,
    from_json,
    from_markdown,
    import_file,
    to_json,
    to_markdown,
)
from triattn_local.sessions.model import newest_leaf, path_to, siblings


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    store = SessionStore(tmp_path / "sessions")
    yield store
    store.close()


def talk(store: SessionStore, *texts: str, title: str = "A talk") -> tuple[str, list[Message]]:
    session = store.create(title=title, model="/m/tiny.gguf", system="Be brief.", options={"temperature": 0.3})
    messages: list[Message] = []
    for i, text in enumerate(texts):
        parent = messages[-1].id if messages else None
        messages.append(store.add(session.id, parent, "assistant" if i % 2 else "user", text))
    return session.id, messages


def test_an_answer_is_stored_as_it_comes(store: SessionStore, tmp_path: Path) -> None:
    session, (question,) = talk(store, "Why?")
    answer = store.add(session, question.id, "assistant", state="streaming")
    store.append(answer.id, "thinking", "Let me ")
    store.append(answer.id, "thinking", "see.")
    store.append(answer.id, "content", "Because")
    with_other_eyes = SessionStore(tmp_path / "sessions")
    seen = with_other_eyes.messages(session)[-1]
    assert (seen.thinking, seen.content, seen.state) == ("Let me see.", "Because", "streaming")
    with_other_eyes.close()
    done = store.finish(answer.id, "complete", {"tokens": 3})
    assert (done.thinking, done.content, done.state, done.report) == (
        "Let me see.",
        "Because",
        "complete",
        {"tokens": 3},
    )
    assert store.messages(session) == [question, done]


_WRITER = """
import sys, time
from pathlib import Path
from triattn_local.sessions import SessionStore
store = SessionStore(Path(sys.argv[1]))
session = store.create(title="doomed")
question = store.add(session.id, None, "user", "Count!")
answer = store.add(session.id, question.id, "assistant", state="streaming")
for i in range(100000):
    store.append(answer.id, "content", f"{i} ")
    print(i, flush=True)
    time.sleep(0.002)
"""


def test_kill_9_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    last = 0
    while last < 150:
        last = int(writer.stdout.readline())
    store = SessionStore(tmp_path / "s")
    (session,) = store.sessions()
    with pytest.raises(UsageError, match="open in another"):
        store.open(session.id)
    os.kill(writer.pid, signal.SIGKILL)
    last = int((writer.stdout.read().splitlines() or [str(last)])[-1])
    writer.wait()
    store.open(session.id)
    answer = store.messages(session.id)[-1]
    assert answer.state == "interrupted"
    assert len(answer.content.split()) >= last + 1
    assert answer.content.split() == [str(i) for i in range(len(answer.content.split()))]
    store.close()


def test_appending_costs_the_same_at_the_end_of_a_long_answer(store: SessionStore) -> None:
    session, (question,) = talk(store, "Write a book")
    answer = store.add(session, question.id, "assistant", state="streaming")

    def seconds(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            store.append(answer.id, "content", "word ")
        return time.perf_counter() - start

    first = min(seconds(500) for _ in range(3))
    for _ in range(20):
        seconds(1000)
    assert min(seconds(500) for _ in range(3)) < 4 * first
    assert len(store.finish(answer.id, "complete", {}).content) == 5 * 23_000


def test_editing_and_answering_anew_keep_the_branches(store: SessionStore) -> None:
    session, (q1, a1, q2, a2) = talk(store, "one", "two", "three", "four")
    again = store.add(session, q2.id, "assistant", "other four")
    edited = store.add(session, a1.id, "user", "other three")
    messages = store.messages(session)
    assert store.get(session).leaf == edited.id
    assert [m.content for m in path_to(messages, edited.id)] == ["one", "two", "other three"]
    assert [m.id for m in siblings(messages, a2)] == [a2.id, again.id]
    assert [m.id for m in siblings(messages, edited)] == [q2.id, edited.id]
    assert newest_leaf(messages, q2.id) == again.id
    assert newest_leaf(messages, edited.id) == edited.id
    assert path_to(messages, None) == []
    del q1


def test_search_finds_titles_contents_and_beginnings_of_words(store: SessionStore) -> None:
    sea, _ = talk(store, "Tell me about lighthouses", "They stand on rocks.", title="At the sea")
    hill, _ = talk(store, "Tell me about goats", "They stand on hills.", title="Uphill")

    def found(text: str) -> list[str]:
        return [hit.session.id for hit in store.search(text)]

    assert found("lightho") == [sea]
    assert found("uphill") == [hill]
    assert found("stand they") == [hill, sea], "last used first"
    assert found("stand rocks") == [sea]
    assert found("") == [hill, sea]
    assert found("nothing like it") == []
    for text in ('"', "a AND", "NEAR(", "* ^", "-x", "'; DROP TABLE sessions"):
        found(text)
    (hit,) = store.search("rocks")
    assert "«rocks.»" in hit.snippet or "«rocks»" in hit.snippet


def test_what_streamed_is_found_once_it_is_whole(store: SessionStore) -> None:
    session, (question,) = talk(store, "Hello")
    answer = store.add(session, question.id, "assistant", state="streaming")
    store.append(answer.id, "content", "ornithology")
    store.finish(answer.id, "stopped", {})
    assert [hit.session.id for hit in store.search("ornith")] == [session]


def test_rename_delete_undo_purge(store: SessionStore) -> None:
    session, messages = talk(store, "one", "two")
    assert store.update(session, title="Named").title == "Named"
    store.delete(session)
    assert store.sessions() == []
    assert store.search("one") == []
    with pytest.raises(UsageError, match="no session"):
        store.open(session)
    store.undelete(session)
    assert [s.id for s in store.sessions()] == [session]
    assert store.messages(session) == messages
    store.release(session)
    store.delete(session)
    assert store.purge(3600) == []
    assert store.purge(-1) == [session]
    assert store.messages(session) == []
    with pytest.raises(UsageError, match="is gone"):
        store.get(session)


def test_sessions_are_opened_by_the_beginning_of_their_id(store: SessionStore) -> None:
    session, _ = talk(store, "one")
    assert store.open(session[:6]).id == session
    for bad in ("", "zzzz"):
        with pytest.raises(UsageError, match="session"):
            store.open(bad)


AWKWARD = "line\n\n<!-- user -->\n## You\n<\\!-- content -->\n<!-- thinking -->\n```\ncode\n```\n"


def awkward(store: SessionStore) -> str:
    session = store.create(title="On *marks*", system="<!-- user -->\nbe exact")
    question = store.add(
        session.id, None, "user", AWKWARD, attachments=(Attachment('a "b" --> c.txt', "x\n```\ny\n<!-- file -->\n"),)
    )
    store.add(session.id, question.id, "assistant", "no")
    store.add(session.id, question.id, "assistant", "yes " + AWKWARD.strip(), thinking="hm\n</details>\nwell")
    return session.id


def test_json_holds_everything_and_comes_back(store: SessionStore, tmp_path: Path) -> None:
    id_ = awkward(store)
    path = tmp_path / "out.json"
    path.write_text(to_json(store.get(id_), store.messages(id_)), encoding="utf-8")
    copy = store.add_draft(import_file(path))
    assert copy.id != id_
    assert to_json(copy, store.messages(copy.id)).replace(" ", "").count('"content"') == 3
    old, new = store.messages(id_), store.messages(copy.id)
    assert [(m.role, m.content, m.thinking, m.attachments) for m in old] == [
        (m.role, m.content, m.thinking, m.attachments) for m in new
    ]
    assert [m.content for m in path_to(new, copy.leaf)] == [m.content for m in path_to(old, store.get(id_).leaf)]


def test_markdown_holds_the_branch_and_comes_back(store: SessionStore, tmp_path: Path) -> None:
    id_ = awkward(store)
    session = store.get(id_)
    path = tmp_path / "out.md"
    path.write_text(to_markdown(session, store.messages(id_)), encoding="utf-8")
    draft = import_file(path)
    branch = path_to(store.messages(id_), session.leaf)
    assert draft.title == session.title
    assert draft.system == session.system
    assert [(m.role, m.content, m.thinking, m.attachments) for m in draft.messages] == [
        (m.role, m.content, m.thinking, m.attachments) for m in branch
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# A title\n\nand no messages",
        "{}",
        '{"format": "triattn-local session", "version": 1}',
        '{"format": "triattn-local session", "version": 99}',
        '{"format": "triattn-local session", "version": 1, "title": "", "leaf": 5, "messages": []}',
        '{"format": "triattn-local session", "version": 1, "title": "", "leaf": 0, '
        '"messages": [{"role": "user", "content": "", "parent": 0}]}',
        '{"format": "triattn-local session", "version": 1, "title": "", "leaf": 0, '
        '"messages": [{"role": "king", "content": "", "parent": null}]}',
        "<!-- content -->\nx\n",
    ],
)
def test_files_that_are_no_sessions_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"in\.json"):
        import_file(path)
    with pytest.raises(UsageError):
        (from_json if text.startswith("{") else from_markdown)(text)


def test_import_of_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        import_file(tmp_path / "none.md")
    (tmp_path / "bytes.md").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="UTF-8"):
        import_file(tmp_path / "bytes.md")


def test_a_database_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sessions.db").write_bytes(b"not a database at all, by any means" * 100)
    with pytest.raises(StateError, match="not a database"):
        SessionStore(tmp_path)
    (tmp_path / "sessions.db").unlink()
    SessionStore(tmp_path).close()
    import sqlite3

    with sqlite3.connect(tmp_path / "sessions.db") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StateError, match="version 99"):
        SessionStore(tmp_path)


def test_preferences(store: SessionStore) -> None:
    assert store.preference("theme", "x") == "x"
    store.remember("theme", "nord")
    store.remember("theme", "dracula")
    assert store.preference("theme") == "dracula"


# snapshots


def snapshot(n_bytes: int, tokens: tuple[int, ...] = (1, 2)) -> Snapshot:
    return Snapshot("m", {}, list(tokens), None, b"x" * (n_bytes - 4 * len(tokens)), 0)


def test_memory_keeps_what_was_used_last_within_its_limit() -> None:
    snapshots = SnapshotCache(None, memory_bytes=250, disk_bytes=0)
    snapshots.put("s", 1, snapshot(100))
    snapshots.put("s", 2, snapshot(100))
    assert snapshots.find("s", 1) is not None
    snapshots.put("s", 3, snapshot(100))
    assert snapshots.find("s", 2) is None, "1 was used since"
    assert snapshots.find("s", 1) is not None
    assert snapshots.memory_bytes == 200
    snapshots.put("s", 4, snapshot(300))
    assert snapshots.find("s", 4) is None
    assert snapshots.memory_bytes == 200
    snapshots.forget("s")
    assert snapshots.memory_bytes == 0
    snapshots.close()


def test_disk_outlives_the_shelf_and_keeps_its_limit(tmp_path: Path) -> None:
    snapshots = SnapshotCache(tmp_path, memory_bytes=0, disk_bytes=2000)
    for i in range(5):
        snapshots.put("s", i, snapshot(400, (i,)))
    snapshots.put("s", 9, snapshot(100), on_disk=False)
    snapshots.wait()
    assert snapshots.disk_bytes <= 2000
    snapshots.close()
    snapshots = SnapshotCache(tmp_path, memory_bytes=0, disk_bytes=2000)
    found = snapshots.find("s", 4)
    assert found is not None
    assert (found.origin, found.snapshot.tokens) == ("disk", [4])
    assert snapshots.find("s", 0) is None
    assert snapshots.find("s", 9) is None
    (tmp_path / "s" / "4.tri").write_bytes(b"damaged")
    assert snapshots.find("s", 4) is None
    snapshots.forget("s")
    snapshots.close()
    assert list(tmp_path.glob("*/*")) == []


def test_a_disk_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    snapshots = SnapshotCache(
        tmp_path / "file", memory_bytes=0, disk_bytes=1000, on_error=lambda error: said.append(str(error))
    )
    snapshots.put("s", 1, snapshot(100))
    snapshots.close()
    assert len(said) == 1


def fill_disk(store: SessionStore) -> None:
    """SQLite's own limit: from here on it says that the disk is full."""
    store._db.execute("PRAGMA max_page_count=1")  # it takes the number of pages that there are


def make_room(store: SessionStore) -> None:
    store._db.execute("PRAGMA max_page_count=1000000")


def test_an_answer_that_ended_on_a_full_disk_is_ended_when_there_is_room(store: SessionStore, tmp_path: Path) -> None:
    session, (question,) = talk(store, "Why?")
    answer = store.add(session, question.id, "assistant", state="streaming")
    store.append(answer.id, "content", "Because")
    fill_disk(store)
    append = partial(store.append, answer.id, "content", " so" * 100)
    with pytest.raises(TriattnError, match="disk is full"):
        deque((append() for _ in range(10_000)), maxlen=0)
    with pytest.raises(TriattnError, match=r"disk is full.*make room"):
        store.finish(answer.id, "stopped", {"why": "x" * 100_000})
    seen = store.messages(session)[-1]
    assert seen.state == "stopped", "it has ended"
    assert seen.content.startswith("Because so so")
    make_room(store)
    store.add(session, answer.id, "user", "And?")
    with_other_eyes = SessionStore(tmp_path / "sessions")
    stored = with_other_eyes.messages(session)[1]
    with_other_eyes.close()
    assert (stored.content, stored.state, stored.report) == (seen.content, "stopped", {"why": "x" * 100_000})


def test_what_cannot_be_ended_before_the_program_ends_keeps_its_words(store: SessionStore, tmp_path: Path) -> None:
    session, (question,) = talk(store, "Why?")
    answer = store.add(session, question.id, "assistant", state="streaming")
    store.append(answer.id, "content", "Because")
    fill_disk(store)
    with pytest.raises(TriattnError):
        store.finish(answer.id, "failed", {"why": "x" * 100_000})
    store.close()
    later = SessionStore(tmp_path / "sessions")
    later.open(session)
    seen = later.messages(session)[-1]
    later.close()
    assert (seen.content, seen.state) == ("Because", "interrupted")


def test_a_session_that_is_open_elsewhere_is_not_deleted(store: SessionStore, tmp_path: Path) -> None:
    session, _ = talk(store, "Why?")
    other = SessionStore(tmp_path / "sessions")
    with pytest.raises(UsageError, match="is open in another"):
        other.delete(session)
    assert [s.id for s in other.sessions()] == [session]
    store.release(session)
    other.delete(session)
    assert other.sessions() == []
    with pytest.raises(UsageError, match="no session"):
        store.open(session)
    other.undelete(session)
    store.open(session)  # the deletion holds nothing
    other.close()


def test_what_is_written_into_is_not_deleted_whoever_deleted_it(store: SessionStore) -> None:
    session, (question,) = talk(store, "Why?")
    store._db.execute("UPDATE sessions SET deleted=1 WHERE id=?", (session,))  # as an older program did
    store._db.conn.commit()
    store.add(session, question.id, "assistant", "Because.")
    assert [s.id for s in store.sessions()] == [session]


def test_purge_leaves_what_is_open_elsewhere(store: SessionStore, tmp_path: Path) -> None:
    empty = store.create(title="no message yet")
    deleted, _ = talk(store, "Why?")
    store.delete(deleted)
    time.sleep(0.01)
    other = SessionStore(tmp_path / "sessions")
    assert other.purge(0) == []
    store.release(empty.id)
    store.release(deleted)
    assert sorted(other.purge(0)) == sorted([empty.id, deleted])
    other.close()
