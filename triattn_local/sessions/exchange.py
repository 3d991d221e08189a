"""Conversations as files: JSON holds everything, Markdown the branch that is read, for people.

Both can be read back. Markdown keeps its structure in HTML comments, which renderers do not show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..support.paths import decode
from .model import Attachment, Draft, Message, Session, path_to

_FORMAT = "triattn-local session"
_VERSION = 1

_MARK = re.compile(r"^<!-- (system|user|assistant|tool|thinking|content|file) ?(.*?) ?-->\n", re.MULTILINE)
_LOOKS_LIKE_A_MARK = re.compile(r"^<(\\*)(?=!-- (?:system|user|assistant|tool|thinking|content|file)\b)", re.MULTILINE)
_ESCAPED = re.compile(r"^<\\(\\*)(?=!-- (?:system|user|assistant|tool|thinking|content|file)\b)", re.MULTILINE)
_HEADINGS = {"system": "System", "user": "You", "assistant": "Answer", "tool": "Tool"}
_TOLD = ("calls", "call", "name", "server", "arguments", "failed")
"""of a report, what Markdown keeps: without it an answer that calls a tool is none"""


def to_json(session: Session, messages: Sequence[Message]) -> str:
    """The whole tree, with thinking and attachments."""
    places: dict[int | None, int | None] = {None: None, **{message.id: i for i, message in enumerate(messages)}}
    ours = ("id", "session")  # mean nothing elsewhere
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "title": session.title,
        "model": session.model,
        "system": session.system,
        "options": dict(session.options),
        "leaf": places[session.leaf],
        "messages": [
            {name: value for name, value in asdict(message).items() if name not in ours}
            | {"parent": places[message.parent]}
            for message in messages
        ],
    }
    return json.dumps(data, ensure_ascii=False, indent=1)


def from_json(text: str, where: str = "JSON") -> Draft:
    """Read what ``to_json`` wrote.

    Raises
    ------
    UsageError
        It is something else, of a newer version, or damaged.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise UsageError("is not a session that triattn-local wrote", where=where)
        if data["version"] > _VERSION:
            raise UsageError(f"has version {data['version']}, this program reads {_VERSION}", where=where)
        messages = []
        for i, entry in enumerate(data["messages"]):
            if entry["role"] not in ("user", "assistant", "tool"):
                raise ValueError(f"message {i} has the role {entry['role']!r}")
            if entry["parent"] is not None and not 0 <= entry["parent"] < i:
                raise ValueError(f"message {i} follows message {entry['parent']}")
            messages.append(
                Message(
                    id=i,
                    session="",
                    parent=entry["parent"],
                    role=entry["role"],
                    content=str(entry["content"]),
                    thinking=str(entry.get("thinking", "")),
                    attachments=tuple(Attachment(**file) for file in entry.get("attachments", ())),
                    state=entry.get("state", "complete"),
                    report=dict(entry.get("report", {})),
                    created=float(entry.get("created", 0.0)),
                )
            )
        leaf = data["leaf"]
        if leaf is not None and not 0 <= leaf < len(messages):
            raise ValueError(f"the last message is said to be {leaf}")
        return Draft(
            title=str(data["title"]),
            model=str(data.get("model", "")),
            system=str(data.get("system", "")),
            options=dict(data.get("options", {})),
            messages=messages,
            leaf=leaf,
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"is damaged: {error}", where=where, fix="export the session anew") from None


def to_markdown(session: Session, messages: Sequence[Message]) -> str:
    """The branch that is read, as a document."""
    parts = [f"# {' '.join(session.title.split()) or 'Conversation'}\n"]
    if session.system:
        parts.append(_section("system", session.system))
    for message in path_to(messages, session.leaf):
        told = {name: message.report[name] for name in _TOLD if name in message.report}
        name = f" {' '.join(str(told['name']).split())}" if message.role == "tool" and "name" in told else ""
        mark = f"{message.role} {_comment(told)}" if told else message.role
        parts.append(f"<!-- {mark} -->\n## {_HEADINGS[message.role]}{name}\n")
        for file in message.attachments:
            parts.append(f"<!-- file {_comment(file.name)} -->\n{_escape(file.text)}\n")
        if message.thinking:
            thinking = f"<!-- thinking -->\n{_escape(message.thinking)}"
            parts.append(f"<details><summary>Thinking</summary>\n\n{thinking}\n\n</details>\n")
        parts.append(f"<!-- content -->\n{_escape(message.content)}\n")
    return "\n".join(parts)


def _comment(value: object) -> str:
    """JSON that ends no comment."""
    return json.dumps(value, ensure_ascii=False).replace("--", "-\\u002d").replace("->", "-\\u003e")


def _section(role: str, text: str) -> str:
    return f"<!-- {role} -->\n## {_HEADINGS[role]}\n\n<!-- content -->\n{_escape(text)}\n"


def from_markdown(text: str, where: str = "Markdown") -> Draft:
    """Read what ``to_markdown`` wrote.

    Raises
    ------
    UsageError
        It has none of the marks.
    """
    pieces = _MARK.split(text.replace("\r\n", "\n"))
    title = pieces[0].strip().removeprefix("#").strip()
    messages: list[dict[str, Any]] = []
    system = role = ""
    for kind, value, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        inside = _unescape(body).removesuffix("\n").removesuffix("\n")
        if kind in _HEADINGS:
            role = kind
            if role != "system":
                parent = messages[-1]["id"] if messages else None
                messages.append({"id": len(messages), "parent": parent, "role": role, "content": "", "attachments": ()})
                messages[-1]["report"] = _read_report(value, where)
        elif role == "system":
            system = inside
        elif not messages:
            raise UsageError(f"a {kind} stands before the first message", where=where)
        elif kind == "file":
            try:
                messages[-1]["attachments"] += (Attachment(str(json.loads(value)), inside),)
            except ValueError:
                raise UsageError(f"{value} is not the name of a file", where=where) from None
        elif kind == "thinking":
            messages[-1]["thinking"] = inside.removesuffix("</details>\n").removesuffix("</details>").rstrip("\n")
        else:
            messages[-1]["content"] = inside
    if not messages:
        raise UsageError("is not a session that triattn-local wrote", where=where, fix="export it as Markdown or JSON")
    return Draft(
        title=title,
        model="",
        system=system,
        options={},
        messages=[Message(session="", **message) for message in messages],
        leaf=len(messages) - 1,
    )


def _read_report(value: str, where: str) -> dict[str, Any]:
    try:
        report = json.loads(value) if value else {}
        calls = report.get("calls", ())
        for call in calls:
            _ = str(call["id"]), str(call["name"]), dict(call["arguments"])
        return dict(report)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError(f"{value[:80]} says nothing of a message", where=where) from None


def _escape(text: str) -> str:
    """A line that looks like one of our marks gets one backslash more than it has."""
    return _LOOKS_LIKE_A_MARK.sub(r"<\1\\", text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"<\1", text)


def import_file(path: Path) -> Draft:
    """Read a session from a .json or .md file.

    Raises
    ------
    UsageError
        It cannot be read, or is not one.
    """
    try:
        text = decode(path.read_bytes()).replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"cannot be read: {what}", where=str(path)) from None
    read = from_json if path.suffix.lower() == ".json" or text.lstrip().startswith("{") else from_markdown
    return read(text, str(path))
