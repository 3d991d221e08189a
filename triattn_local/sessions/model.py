"""What a conversation is: sessions, and messages that form a tree.

Editing or answering anew never changes a message: it adds a sibling, and the session remembers which leaf is being
read. Knows nothing of databases and models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["user", "assistant", "tool"]
"""tool: what came of a call that the assistant made"""
State = Literal["streaming", "complete", "stopped", "length", "context", "interrupted", "failed"]
"""of an answer: coming, whole, stopped by the user, at the token limit, at the end of the context, cut off by a crash,
ended by an error"""


@dataclass(frozen=True)
class Attachment:
    """A text file that goes with a message."""

    name: str
    text: str

    def as_prompt(self) -> str:
        """The file as the model reads it: fenced by more backticks than it has itself."""
        fence = "```"
        while fence in self.text:
            fence += "`"
        return f"{self.name}:\n{fence}\n{self.text.rstrip()}\n{fence}"


@dataclass(frozen=True)
class Message:
    """One turn of one side."""

    id: int
    session: str
    parent: int | None
    """the message it follows; None for the first"""
    role: Role
    content: str
    thinking: str = ""
    attachments: tuple[Attachment, ...] = ()
    state: State = "complete"
    report: Mapping[str, Any] = field(default_factory=dict)
    """of an answer: tokens, seconds, tokens/s, calls of tools, whether the user wrote it; of a result: which call it
    belongs to; of any message: whether it is left out"""
    created: float = 0.0
    """seconds since 1970"""

    @property
    def left_out(self) -> bool:
        """Whether it is kept and shown, and the model does not read it."""
        return bool(self.report.get("left_out"))

    @property
    def summary(self) -> tuple[str, int] | None:
        """What the model reads in the place of so many messages, of which this is the last; None: of none."""
        told = self.report.get("summary")
        return (str(told["text"]), int(told["n"])) if told and self.left_out else None

    @property
    def calls(self) -> Sequence[Mapping[str, Any]]:
        """The tools that an answer calls: `id`, `name` and `arguments` of each."""
        calls: Sequence[Mapping[str, Any]] = self.report.get("calls", ())
        return calls

    @property
    def can_go_on(self) -> bool:
        """Whether it is an answer that was cut, or that the user has changed: the model can write on behind it."""
        return self.role == "assistant" and not self.calls and (self.is_cut or bool(self.report.get("edited")))

    @property
    def is_cut(self) -> bool:
        return self.state in ("stopped", "length", "context", "interrupted", "failed")

    @property
    def prompt(self) -> str:
        """What the model is given for it."""
        return "\n\n".join([*(file.as_prompt() for file in self.attachments), self.content])

    def as_turn(self) -> dict[str, Any]:
        """As OpenAI's protocol has it, without thinking."""
        turn: dict[str, Any] = {"role": self.role, "content": self.prompt}
        if self.calls:
            turn["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in self.calls
            ]
        if self.role == "tool":
            turn["tool_call_id"], turn["name"] = self.report.get("call", ""), self.report.get("name", "")
        return turn


def turns_of(path: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates take them: a call that was never made, since the program ended before, has a result too."""
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(path):
        turns.append(message.as_turn())
        following = itertools.takewhile(lambda other: other.role == "tool", path[i + 1 :])
        made = {other.report.get("call") for other in following}
        for call in message.calls:
            if call["id"] not in made:
                turns.append({"role": "tool", "content": NOT_CALLED, "tool_call_id": call["id"], "name": call["name"]})
    return turns


NOT_CALLED = "It was not called."


@dataclass(frozen=True)
class Session:
    """One conversation, without its messages."""

    id: str
    title: str
    model: str
    """path of the model that was used last"""
    system: str
    options: Mapping[str, Any]
    """sampling settings that differ from the program's"""
    leaf: int | None
    """last message of the branch that is being read"""
    created: float
    updated: float
    n_messages: int = 0
    deleted: bool = False


@dataclass(frozen=True)
class Hit:
    """A session that a search found."""

    session: Session
    snippet: str
    """where it was found, matches between «»; empty for a title"""


@dataclass(frozen=True)
class Draft:
    """A conversation that is not in the store: what an import read. Parents are indices into `messages`."""

    title: str
    model: str
    system: str
    options: Mapping[str, Any]
    messages: Sequence[Message]
    """ids are their places in this list"""
    leaf: int | None


def path_to(messages: Iterable[Message], leaf: int | None) -> list[Message]:
    """The branch that ends at `leaf`, first message first."""
    known = {message.id: message for message in messages}
    path: list[Message] = []
    while leaf is not None:
        message = known[leaf]
        path.append(message)
        leaf = message.parent
    return path[::-1]


SUMMARY = (
    "Summarise our conversation so far for somebody who has nothing but your summary and goes on with it: what was "
    "asked and answered, names, numbers, decisions, and what is still open. Write the summary alone."
)
"""what the model is asked for, and what stands before a summary in what it reads later"""


def read_of(path: Iterable[Message]) -> list[Message]:
    """Of a branch, what the model reads: nothing of what is left out, and a summary where there is one of that."""
    read: list[Message] = []
    for message in path:
        if not message.left_out:
            read.append(message)
        elif message.summary is not None:
            plain = replace(
                message, id=-message.id, role="user", content=SUMMARY, thinking="", attachments=(), report={}
            )
            read += [plain, replace(plain, role="assistant", content=message.summary[0])]
    return read


def summarised(path: Sequence[Message]) -> list[list[Message]]:
    """The messages of a branch that have a summary in their place, summary by summary."""
    return [
        list(path[max(0, i + 1 - message.summary[1]) : i + 1])
        for i, message in enumerate(path)
        if message.summary is not None
    ]


def siblings(messages: Iterable[Message], message: Message) -> list[Message]:
    """The message and its alternatives, oldest first."""
    return [m for m in messages if m.parent == message.parent and m.role == message.role]


def newest_leaf(messages: Iterable[Message], top: int) -> int:
    """Down from a message along the newest children."""
    children: dict[int | None, int] = {}
    for message in messages:
        children[message.parent] = max(message.id, children.get(message.parent, message.id))
    while top in children:
        top = children[top]
    return top
