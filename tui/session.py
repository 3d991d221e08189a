"""The session that is open: its messages, the branch that is read, and what changes them.

Between the store, which keeps everything, and the screen, which shows one branch. Knows nothing of widgets.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from triattn_local.config import SamplingConfig, ThinkingConfig
from triattn_local.errors import UsageError
from triattn_local.sessions import Attachment, Message, Session, SessionStore
from triattn_local.sessions.model import newest_leaf, path_to, read_of, siblings, summarised

_TITLE_LENGTH = 60
THINKING_OPTIONS = {"think": "enabled", "effort": "effort", "think_budget": "budget_tokens"}
"""option -> field of ThinkingConfig"""
SAMPLING_OPTIONS = tuple(field.name for field in dataclasses.fields(SamplingConfig))


class OpenSession:
    """One session of the store, taken for this process. It gets its row with the first message."""

    def __init__(self, store: SessionStore, session: Session | None = None, *, system: str = "") -> None:
        self._store = store
        self.session = session
        self.system = session.system if session else system
        self.options: Mapping[str, Any] = session.options if session else {}
        self.messages: list[Message] = store.messages(session.id) if session else []

    @property
    def id(self) -> str | None:
        return self.session.id if self.session else None

    @property
    def title(self) -> str:
        return self.session.title if self.session else ""

    @property
    def path(self) -> list[Message]:
        """The branch that is read."""
        return path_to(self.messages, self.session.leaf if self.session else None)

    @property
    def read(self) -> list[Message]:
        """Of the branch, what the model reads."""
        return read_of(self.path)

    def turn_of(self, message: Message) -> list[Message]:
        """A message of the user on the branch that is read, and all up to the next one: given any of them."""
        path = self.path
        at = next((i for i, m in enumerate(path) if m.id == message.id), None)
        if at is None:
            return []
        begin = next((i for i in range(at, -1, -1) if path[i].role == "user"), 0)
        end = next((i for i in range(begin + 1, len(path)) if path[i].role == "user"), len(path))
        return path[begin:end]

    def leave_out(self, messages: Iterable[Message], out: bool = True) -> None:
        """Keep the model from reading messages, or let it read them again: all those that have one summary together."""
        ids = [message.id for message in messages if message.id > 0]
        if not out:
            for block in summarised(self.path):
                of = [message.id for message in block]
                ids += [id_ for id_ in of if id_ not in ids] if set(of) & set(ids) else []
        self._store.leave_out(ids, out)
        self.reload()

    def summarise(self, read: Sequence[Message], text: str) -> None:
        """Have a summary in the place of what the model reads up to the last of these messages."""
        path = self.path
        last = next(i for i, message in enumerate(path) if message.id == abs(read[-1].id))
        self._store.summarise([message.id for message in path[: last + 1]], text)
        self.reload()

    def withdraw(self, answer: Message) -> None:
        """Take away an answer of which nothing came."""
        self._store.withdraw(answer)
        self.reload()

    def siblings(self, message: Message) -> list[Message]:
        return siblings(self.messages, message)

    def ask(self, text: str, attachments: tuple[Attachment, ...], *, parent: int | None, model: str) -> Message:
        """A message of the user below another; the first one makes the session, and names it."""
        if self.session is None:
            first = next((line.strip(" #*`") for line in text.splitlines() if line.strip()), "")
            title = first or (attachments[0].name if attachments else "")
            if len(title) > _TITLE_LENGTH:
                title = title[: _TITLE_LENGTH - 1].rstrip() + "…"
            self.session = self._store.create(title=title, model=model, system=self.system, options=self.options)
        message = self._store.add(self.session.id, parent, "user", text, attachments=attachments)
        self._store.update(self.session.id, model=model)
        self.reload()
        return message

    def answer_to(self, message: Message) -> Message:
        """An empty answer below a message, for the engine to fill."""
        answer = self._store.add(message.session, message.id, "assistant", state="streaming")
        self.reload()
        return answer

    def go_on_with(self, answer: Message) -> Message:
        """An answer that begins as this one, for the engine to fill; this one stays as an alternative."""
        new = self._store.add(
            answer.session,
            answer.parent,
            "assistant",
            answer.content,
            thinking=answer.thinking,
            state="streaming",
        )
        self.reload()
        return new

    def rewrite(self, answer: Message, text: str) -> Message:
        """The same answer in the user's words; the model's own stays as an alternative."""
        new = self._store.add(
            answer.session, answer.parent, "assistant", text, thinking=answer.thinking, report={"edited": True}
        )
        self.reload()
        return new

    def result_of(self, answer: Message, call: Mapping[str, Any], text: str, **report: Any) -> Message:
        """What came of a call that an answer makes, below the last message of the branch that is read."""
        told = {"call": call["id"], "name": call["name"], "arguments": call["arguments"], **report}
        result = self._store.add(answer.session, self.path[-1].id, "tool", text, report=told)
        self.reload()
        return result

    def switch(self, message: Message, step: int) -> bool:
        """Go to a neighbouring alternative of a message; False at the last one."""
        assert self.session is not None
        others = self.siblings(message)
        place = [other.id for other in others].index(message.id) + step
        if not 0 <= place < len(others):
            return False
        self._store.update(self.session.id, leaf=newest_leaf(self.messages, others[place].id))
        self.reload()
        return True

    def select(self, leaf: int) -> None:
        """Read the branch that ends with this message."""
        assert self.session is not None
        self._store.update(self.session.id, leaf=leaf)
        self.reload()

    def change(self, *, title: str | None = None, system: str | None = None, options: Any = None) -> None:
        """Name it, or set how it is answered; a session that is not yet stored remembers."""
        if self.session is not None:
            self.session = self._store.update(self.session.id, title=title, system=system, options=options)
        self.system = self.system if system is None else system
        self.options = self.options if options is None else dict(options)

    def reload(self) -> None:
        assert self.session is not None
        self.session = self._store.get(self.session.id)
        self.messages = self._store.messages(self.session.id)

    def close(self) -> None:
        if self.session is not None:
            self._store.release(self.session.id)

    def sampling(self, base: SamplingConfig, n_siblings: int) -> SamplingConfig:
        """How the next answer is drawn; each alternative has a seed of its own, or it would be the same answer.

        Raises
        ------
        UsageError
            An option that cannot be taken.
        """
        options = {name: value for name, value in self.options.items() if name in SAMPLING_OPTIONS}
        config = dataclasses.replace(base, **options)
        return dataclasses.replace(config, seed=config.seed + n_siblings)

    def thinking(self, base: ThinkingConfig) -> ThinkingConfig:
        """How much the next answer is thought about. Raises UsageError: an option that cannot be taken."""
        given = {field: self.options[name] for name, field in THINKING_OPTIONS.items() if name in self.options}
        return dataclasses.replace(base, **given)

    def stop(self, base: Sequence[str]) -> tuple[str, ...]:
        """Texts that end the next answer."""
        return tuple(self.options.get("stop", base))

    def max_tokens(self, base: int | None) -> int | None:
        with contextlib.suppress(TypeError, ValueError):
            return int(self.options["max_tokens"]) if self.options.get("max_tokens") else base
        raise UsageError(f"{self.options['max_tokens']!r} is not a number of tokens", where="answer length")
