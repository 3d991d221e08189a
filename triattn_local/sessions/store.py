"""Sessions in SQLite: every piece of an answer is committed as it comes.

Write-ahead log, full-text search over titles and contents. While an answer streams, its pieces are rows of their own,
so that a commit costs the same at the end of a long answer as at its start; they are folded into the message when it
ends, or, after a crash, when the session is next opened. A session is open in one process at a time, which is how a
message that streams is told from one whose writer has died.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlite_utils import Database

from ..answers.thinking import TextKind
from ..errors import DISK_FULL, DoesNotFitError, StateError, TriattnError, UsageError
from .model import Attachment, Draft, Hit, Message, Role, Session, State
from .refusals import told

_VERSION = 1
_SYNC_S = 0.5
"""what a power failure may cost; the death of the process costs nothing"""

_WAIT_S = 10.0
"""for another program that starts at the same time, or writes"""


_SCHEMA = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, system TEXT NOT NULL, options TEXT NOT NULL,
    leaf INTEGER, created REAL NOT NULL, updated REAL NOT NULL, deleted REAL
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages(id), role TEXT NOT NULL, content TEXT NOT NULL, thinking TEXT NOT NULL,
    attachments TEXT NOT NULL, state TEXT NOT NULL, report TEXT NOT NULL, created REAL NOT NULL
);
CREATE INDEX messages_session ON messages(session);
CREATE TABLE deltas (
    id INTEGER PRIMARY KEY, message INTEGER NOT NULL REFERENCES messages(id) ON DELETE CASCADE, kind TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX deltas_message ON deltas(message);
CREATE TABLE preferences (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class SessionStore:
    """The sessions of this user. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open the database in a folder, or make it.

        Raises
        ------
        UsageError
            The folder cannot be written.
        StateError
            The file is no database of ours, is damaged, or of a newer program. It is left as it is.
        DoesNotFitError
            The disk is full.
        TriattnError
            Another program holds the database.
        """
        self.folder = folder
        self.path = folder / "sessions.db"
        self._lock = threading.RLock()
        self._open: dict[str, FileLock] = {}
        self._owed: dict[int, tuple[State, Mapping[str, Any]]] = {}
        """message -> how it ended, where the disk was too full to say so; written as soon as something can be"""
        self._synced = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_WAIT_S, check_same_thread=False)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise DoesNotFitError("the disk is full", where=str(folder), fix="make room on it") from None
            raise UsageError(
                f"cannot be written: {error.strerror}",
                where=str(folder),
                fix="set TRIATTN_SESSIONS to a folder that you can",
            ) from None
        except sqlite3.Error as error:
            raise told(error, self.path) from None
        try:
            self._db = Database(connection)
            self._db.enable_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._make()
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise told(error, self.path) from None
            raise

    def _make(self) -> None:
        with self._alone():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (n_tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version > _VERSION:
                raise StateError(
                    f"has version {version}, this program reads {_VERSION}",
                    where=str(self.path),
                    fix="use the newer triattn-local, or move the file away",
                )
            if version == 0 and n_tables:
                raise StateError(
                    "is not a database of sessions", where=str(self.path), fix="move it away; a new one is made"
                )
            if version == 0:
                with self._db.atomic():
                    for statement in _SCHEMA.split(";\n"):
                        if statement.strip():
                            self._db.execute(statement)
                    self._db.table("sessions").enable_fts(["title"], create_triggers=True)
                    self._db.table("messages").enable_fts(["content"], create_triggers=True)
                    self._db.execute(f"PRAGMA user_version={_VERSION}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two programs may start at once."""
        path = self.folder / "sessions.lock"
        try:
            with FileLock(path, timeout=_WAIT_S):
                yield
        except Timeout:
            raise TriattnError(
                "another program holds it", where=str(path), fix="close that program, and try again"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise UsageError(
                f"cannot be locked: {getattr(error, 'strerror', None) or error}",
                where=str(path),
                fix="set TRIATTN_SESSIONS to a folder that you can write",
            ) from None

    def close(self) -> None:
        with self._lock:
            with suppress(TriattnError):  # then it is known as interrupted, with all its words
                self._pay()
            self._owed.clear()
            for lock in self._open.values():
                lock.release()
            self._open.clear()
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        """One transaction, on the disk when the outermost block ends."""
        with self._lock:
            self._pay()
            outermost = not self._db.conn.in_transaction
            try:
                if outermost:  # the level cannot be changed inside a transaction
                    self._db.execute("PRAGMA synchronous=FULL")
                with self._db.atomic():
                    yield self._db
            except sqlite3.Error as error:
                raise told(error, self.path, "cannot be written") from error
            finally:
                if outermost:
                    with suppress(sqlite3.Error):  # the first error tells more
                        self._db.execute("PRAGMA synchronous=NORMAL")

    def _pay(self) -> None:
        """End the messages that could not be ended when they came to their end."""
        while self._owed:
            message, ending = self._owed.popitem()
            try:
                self._fold(message, *ending)
            except TriattnError:
                self._owed[message] = ending
                raise

    def _rows(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        with self._lock:
            try:
                return list(self._db.query(sql, parameters))
            except sqlite3.Error as error:
                raise told(error, self.path, "cannot be read") from error

    # ---------------------------------------------------------------- sessions

    def create(
        self,
        *,
        title: str = "",
        model: str = "",
        system: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new session, open in this process."""
        now = time.time()
        row = {
            "id": secrets.token_hex(4),
            "title": title,
            "model": model,
            "system": system,
            "options": json.dumps(dict(options or {})),
            "leaf": None,
            "created": now,
            "updated": now,
            "deleted": None,
        }
        with self._writing() as db:
            db.table("sessions").insert(row)
        return self.open(str(row["id"]))

    def open(self, session: str) -> Session:
        """Take a session for this process, and fold in what a dead one had written.

        Parameters
        ----------
        session : str
            Its id, or the beginning of it.

        Raises
        ------
        UsageError
            There is no such session, several, or another process has it open.
        """
        found = self._find(session)
        with self._lock:
            if found.id not in self._open:
                lock = self._take(found.id)
                try:
                    self._find(found.id)  # nobody deleted it meanwhile
                except UsageError:
                    lock.release()
                    raise
                self._open[found.id] = lock
                for row in self._rows("SELECT id FROM messages WHERE session=? AND state='streaming'", found.id):
                    self.finish(row["id"], "interrupted", {})
        return self.get(found.id)

    def _take(self, session: str) -> FileLock:
        """The lock of a session that is not open here."""
        path = self.folder / "locks" / f"{session}.lock"
        lock = FileLock(path)
        try:
            path.parent.mkdir(exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                "is open in another triattn-local", where=f"session {session}", fix="close it there first"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise UsageError(
                f"cannot be locked: {getattr(error, 'strerror', None) or error}",
                where=str(path),
                fix="make room on this disk, or set TRIATTN_SESSIONS to a folder that you can write",
            ) from None
        return lock

    @contextmanager
    def _to_ourselves(self, session: str) -> Iterator[None]:
        """No other process has the session meanwhile. Raises UsageError if one does."""
        with self._lock:
            lock = None if session in self._open else self._take(session)
            try:
                yield
            finally:
                if lock is not None:
                    lock.release()

    def release(self, session: str) -> None:
        """Let other processes have it."""
        with self._lock:
            lock = self._open.pop(session, None)
            if lock is not None:
                lock.release()

    def _find(self, session: str) -> Session:
        rows = self._rows(_SELECT + "WHERE s.deleted IS NULL AND substr(s.id, 1, ?) = ?", len(session), session.lower())
        if len(rows) != 1 or not session:
            raise UsageError(
                f"{len(rows)} sessions begin with {session!r}" if rows else f"there is no session {session!r}",
                where="--resume",
                fix="F2 in the chat lists them",
            )
        return _session(rows[0])

    def get(self, session: str) -> Session:
        """By its whole id, deleted ones too."""
        rows = self._rows(_SELECT + "WHERE s.id=?", session)
        if not rows:
            raise UsageError("is gone", where=f"session {session}")
        return _session(rows[0])

    def sessions(self, limit: int = 1000) -> list[Session]:
        """The sessions, last used first; none that is deleted, none that is empty."""
        return [
            _session(row)
            for row in self._rows(
                _SELECT + "WHERE s.deleted IS NULL AND s.leaf IS NOT NULL ORDER BY s.updated DESC LIMIT ?", limit
            )
        ]

    def search(self, text: str, limit: int = 100) -> list[Hit]:
        """Sessions whose title or messages hold all words (or beginnings of words), last used first."""
        words = [word.replace('"', "") for word in text.split()]
        query = " ".join(f'"{word}"*' for word in words if word)
        if not query:
            return [Hit(session, "") for session in self.sessions(limit)]
        hits: dict[str, str] = {}
        for row in self._rows(
            "SELECT m.session, snippet(messages_fts, 0, '«', '»', '…', 12) AS snippet FROM messages_fts "
            "JOIN messages m ON m.id = messages_fts.rowid WHERE messages_fts MATCH ? ORDER BY rank LIMIT 1000",
            query,
        ):
            hits.setdefault(row["session"], " ".join(row["snippet"].split()))
        for row in self._rows(
            "SELECT s.id FROM sessions_fts JOIN sessions s ON s.rowid = sessions_fts.rowid WHERE sessions_fts MATCH ?",
            query,
        ):
            hits.setdefault(row["id"], "")
        return [Hit(session, hits[session.id]) for session in self.sessions() if session.id in hits][:limit]

    def update(
        self,
        session: str,
        *,
        title: str | None = None,
        model: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        leaf: int | None = None,
    ) -> Session:
        """Change what is given."""
        changes: dict[str, Any] = {"title": title, "model": model, "system": system, "leaf": leaf}
        if options is not None:
            changes["options"] = json.dumps(dict(options))
        changes = {name: value for name, value in changes.items() if value is not None}
        if changes:
            with self._writing() as db:
                db.table("sessions").update(session, {**changes, "updated": time.time()})
        return self.get(session)

    def delete(self, session: str) -> None:
        """Put it out of sight; ``undelete`` brings it back until ``purge``.

        Raises
        ------
        UsageError
            Another process has it open, and would go on writing into it.
        """
        with self._to_ourselves(session), self._writing() as db:
            db.execute("UPDATE sessions SET deleted=? WHERE id=?", (time.time(), session))

    def undelete(self, session: str) -> None:
        with self._writing() as db:
            db.execute("UPDATE sessions SET deleted=NULL WHERE id=?", (session,))

    def purge(self, older_than_s: float) -> list[str]:
        """Really remove what was deleted that long ago, and sessions of that age that never got a message."""
        before = time.time() - older_than_s
        gone: list[str] = []
        with self._writing() as db:
            for row in self._rows(
                "SELECT id FROM sessions WHERE deleted < ? OR (leaf IS NULL AND updated < ?)", before, before
            ):
                session = row["id"]
                if session in self._open:
                    continue
                with suppress(UsageError), self._to_ourselves(session):  # open elsewhere: next time
                    db.execute("UPDATE messages SET parent=NULL WHERE session=?", (session,))
                    db.execute("DELETE FROM messages WHERE session=?", (session,))
                    db.execute("DELETE FROM sessions WHERE id=?", (session,))
                    gone.append(session)
        return gone

    # ---------------------------------------------------------------- messages

    def messages(self, session: str) -> list[Message]:
        """All messages of all branches, in the order they were made; what streams is as far as it has come."""
        with self._lock:
            rows = self._rows("SELECT * FROM messages WHERE session=? ORDER BY id", session)
            return [self._message(row) for row in rows]

    def message(self, message: int) -> Message:
        with self._lock:
            return self._message(self._rows("SELECT * FROM messages WHERE id=?", message)[0])

    def _message(self, row: Mapping[str, Any]) -> Message:
        parts = {"content": row["content"], "thinking": row["thinking"]}
        state, report = self._owed.get(row["id"], (row["state"], json.loads(row["report"])))
        if row["state"] == "streaming":
            for kind in parts:
                parts[kind] += self._streamed(row["id"], kind)
        files = tuple(Attachment(**file) for file in json.loads(row["attachments"]))
        return Message(**{**row, **parts, "attachments": files, "state": state, "report": report})

    def _streamed(self, message: int, kind: str) -> str:
        rows = self._rows("SELECT text FROM deltas WHERE message=? AND kind=? ORDER BY id", message, kind)
        return "".join(row["text"] for row in rows)

    def add(
        self,
        session: str,
        parent: int | None,
        role: Role,
        content: str = "",
        *,
        thinking: str = "",
        attachments: tuple[Attachment, ...] = (),
        state: State = "complete",
        report: Mapping[str, Any] | None = None,
    ) -> Message:
        """A message below another; the session's leaf from now on."""
        with self._writing() as db:
            now = time.time()
            new = db.table("messages").insert(
                {
                    "session": session,
                    "parent": parent,
                    "role": role,
                    "content": content,
                    "thinking": thinking,
                    "attachments": json.dumps([{"name": file.name, "text": file.text} for file in attachments]),
                    "state": state,
                    "report": json.dumps(dict(report or {})),
                    "created": now,
                }
            )
            id_ = int(new.last_pk)  # type: ignore[arg-type]  # one integer key
            # what is written into is wanted, whoever deleted it
            db.execute("UPDATE sessions SET leaf=?, updated=?, deleted=NULL WHERE id=?", (id_, now, session))
        return self.message(id_)

    def leave_out(self, messages: Iterable[int], out: bool) -> None:
        """Keep the model from reading messages, or let it read them again; they stay where they are."""
        with self._writing() as db:
            for id_ in messages:
                known = self.message(id_).report.items()
                report = {name: value for name, value in known if name not in ("left_out", "summary")}
                text = json.dumps({**report, "left_out": True} if out else report)
                db.execute("UPDATE messages SET report=? WHERE id=?", (text, id_))

    def summarise(self, messages: Sequence[int], text: str) -> None:
        """Leave out messages of a branch, one after the other, and have a summary in their place."""
        with self._writing() as db:
            self.leave_out(messages, True)
            report = {**self.message(messages[-1]).report, "summary": {"text": text, "n": len(messages)}}
            db.execute("UPDATE messages SET report=? WHERE id=?", (json.dumps(report), messages[-1]))

    def withdraw(self, answer: Message) -> None:
        """Take away an answer of which nothing came; the message that it follows is the leaf again."""
        with self._writing() as db:
            db.execute("UPDATE sessions SET leaf=? WHERE id=?", (answer.parent, answer.session))
            db.execute("DELETE FROM messages WHERE id=?", (answer.id,))

    def append(self, message: int, kind: TextKind, text: str) -> None:
        """One more piece of a streaming message: committed at once, and on the disk within half a second."""
        with self._lock:
            now = time.monotonic()
            sync = now - self._synced >= _SYNC_S
            try:
                if sync:
                    self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("INSERT INTO deltas (message, kind, text) VALUES (?, ?, ?)", (message, kind, text))
                if sync:
                    self._synced = now
                    self._db.execute("PRAGMA synchronous=NORMAL")
            except sqlite3.Error as error:
                raise told(error, self.path, "the answer cannot be stored") from error

    def finish(self, message: int, state: State, report: Mapping[str, Any]) -> Message:
        """Fold the pieces into the message.

        Raises
        ------
        TriattnError
            The disk is full. The message has ended all the same: it is written with what is written next.
        """
        try:
            self._fold(message, state, report)
        except TriattnError:
            self._owed[message] = (state, report)
            raise
        return self.message(message)

    def _fold(self, message: int, state: State, report: Mapping[str, Any]) -> None:
        with self._writing() as db:
            db.execute(
                "UPDATE messages SET content = content || ?, thinking = thinking || ?, state=?, report=? WHERE id=?",
                (
                    self._streamed(message, "content"),
                    self._streamed(message, "thinking"),
                    state,
                    json.dumps(dict(report)),
                    message,
                ),
            )
            db.execute("DELETE FROM deltas WHERE message=?", (message,))
            db.execute(
                "UPDATE sessions SET updated=? WHERE id=(SELECT session FROM messages WHERE id=?)",
                (time.time(), message),
            )

    def add_draft(self, draft: Draft) -> Session:
        """Store an imported conversation as a new session."""
        ids: dict[int | None, int | None] = {None: None}
        with self._writing():
            session = self.create(title=draft.title, model=draft.model, system=draft.system, options=draft.options)
            for message in draft.messages:
                added = self.add(
                    session.id,
                    ids[message.parent],
                    message.role,
                    message.content,
                    thinking=message.thinking,
                    attachments=message.attachments,
                    state="interrupted" if message.state == "streaming" else message.state,
                    report=message.report,
                )
                ids[message.id] = added.id
            return self.update(session.id, leaf=ids[draft.leaf])

    # -------------------------------------------------------------- preferences

    def preference(self, name: str, default: Any = None) -> Any:
        """What the chat remembers beside the sessions: theme, panels, the last model."""
        rows = self._rows("SELECT value FROM preferences WHERE name=?", name)
        return json.loads(rows[0]["value"]) if rows else default

    def remember(self, name: str, value: Any) -> None:
        with self._writing() as db:
            db.table("preferences").upsert({"name": name, "value": json.dumps(value)}, pk="name")


_SELECT = "SELECT s.*, (SELECT count(*) FROM messages m WHERE m.session = s.id) AS n_messages FROM sessions s "


def _session(row: Mapping[str, Any]) -> Session:
    return Session(**{**row, "options": json.loads(row["options"]), "deleted": row["deleted"] is not None})
