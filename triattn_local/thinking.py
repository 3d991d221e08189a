"""Which part of an answer is thinking: told by the marks that models put around it.

A model marks its thinking with texts of its own, which its chat template knows; some templates open it already in the
prompt. Works on text as it streams. Knows nothing of models and templates but the marks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .text_stream import overlap

Kind = Literal["thinking", "content"]


class Marks(NamedTuple):
    """What stands before and after thinking."""

    open: str
    close: str


THINK = Marks("<think>", "</think>")

KNOWN: tuple[Marks, ...] = (
    THINK,
    Marks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<thought>", "</thought>"),
    Marks("<reasoning>", "</reasoning>"),
)


def marks_of(template: str | None) -> tuple[Marks, ...]:
    """The marks to look for: those that the chat template names, and ``<think>`` in any case."""
    named = [marks for marks in KNOWN if template and marks.open.split(">")[0] in template]
    return tuple(dict.fromkeys([*named, THINK]))


class ThinkingSplitter:
    """Splits an answer into thinking and content, piece by piece.

    Only what stands at the beginning of an answer is thinking: later on, a mark is text that is talked about.

    Parameters
    ----------
    prompt : str
        What the answer continues: thinking may have been opened in it.
    """

    def __init__(self, marks: tuple[Marks, ...] = (THINK,), prompt: str = "") -> None:
        self._marks = marks
        self._held = ""  # may be the beginning of a mark
        self._inside = next((m for m in marks if prompt.rstrip().endswith(m.open)), None)
        self._done = False
        self._fresh = True  # nothing but white space has come in this part

    @property
    def kind(self) -> Kind:
        """What is coming now."""
        return "thinking" if self._inside else "content"

    def push(self, text: str) -> list[tuple[Kind, str]]:
        """Parts that are certain now; white space around the marks is theirs."""
        self._held += text
        parts: list[tuple[Kind, str]] = []
        if self._inside is None and not self._done:
            start = self._held.lstrip()
            opened = next((m for m in self._marks if start.startswith(m.open)), None)
            if opened is not None:
                self._inside, self._held = opened, start[len(opened.open) :]
            elif start and not any(m.open.startswith(start) for m in self._marks):
                self._done = True
        if self._inside is not None:
            body, close, rest = self._held.partition(self._inside.close)
            if close:
                parts += self._part("thinking", body.rstrip())
                self._inside, self._held, self._done, self._fresh = None, rest, True, True
            else:
                # white space is held too: at the end of the thinking it belongs to the mark
                n_sure = len(body) - overlap(body, self._inside.close)
                n_sure = len(body[:n_sure].rstrip())
                parts += self._part("thinking", body[:n_sure])
                self._held = body[n_sure:]
        if self._done:
            parts += self._part("content", self._held)
            self._held = ""
        return parts

    def flush(self) -> list[tuple[Kind, str]]:
        """The rest, at the end of the answer."""
        rest, self._held = self._held, ""
        return self._part(self.kind, rest)

    def _part(self, kind: Kind, text: str) -> list[tuple[Kind, str]]:
        if self._fresh:
            text = text.lstrip()
        if not text:
            return []
        self._fresh = False
        return [(kind, text)]
