"""Which part of an answer is thinking: told by the marks that models put around it.

A model marks its thinking with texts of its own, which its chat template knows; some templates open it already in
the prompt. There are two ways: marks before and after the thinking, and a message for each of thinking and answer,
whose head says which it is. llama.cpp's server has parsers for both, but no C function to call them by: what they know
of marks is in the tables here, and what no table has is found out by rendering the template.

Works on text as it streams. One splitter for the chat, for ``Runtime.chat`` and for whoever has an answer as text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from .text_stream import overlap

TextKind = Literal["thinking", "content"]
Part = tuple[TextKind, str]


class Marks(NamedTuple):
    """What stands before and after thinking."""

    open: str
    close: str
    answer: tuple[str, str] = ("", "")
    """what may stand around the answer"""
    known_by: tuple[str, ...] = ()
    """what a chat template has that uses them; ``open`` if nothing else is said"""

    @property
    def ending(self) -> str:
        """What is put to end thinking. Around a tag models write new lines, and none around tokens of their own."""
        return f"\n{self.close}\n\n" if self.close.startswith("</") else self.close


class Messages(NamedTuple):
    """Thinking and answer are messages, ``START assistant HEAD BODY text END``, and their heads tell them apart."""

    start: str
    head: str
    """with what a head may begin, behind ``start`` and the role"""
    body: str
    ends: tuple[str, ...]
    thinking: str
    """regular expression that is found in the head of thinking"""
    known_by: tuple[str, ...]
    """as of ``Marks``"""
    answer: str = ""
    """what begins a message that is the answer"""

    @property
    def ending(self) -> str:
        """Ends the message; what the next one is, the model says itself: a call of a tool, or the answer."""
        return f"{self.ends[0]}{self.start}assistant"


THINK = Marks("<think>", "</think>")
HARMONY = Messages(
    start="<|start|>",
    head="<|channel|>",
    body="<|message|>",
    ends=("<|end|>", "<|return|>", "<|call|>"),
    # what is for a tool that nobody offered is no answer either
    thinking=r"analysis| to=(?!assistant)",
    known_by=("<|channel|>",),
    answer="<|channel|>final<|message|>",
)
MUSE = Messages(
    "<|start|>",
    " to=",
    "<|message|>",
    ("<|eom|>", "<|eot|>"),
    r" to=self",
    ("<|eom|>", "<|message|>"),
    " to=user<|message|>",
)

KNOWN: tuple[Marks | Messages, ...] = (
    HARMONY,  # gpt-oss
    MUSE,
    Marks("<|channel>thought", "<channel|>", known_by=("<|channel>",)),  # Gemma 4
    Marks("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi VL
    Marks(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
        ("<|open|>", "<|close|>"),
    ),  # Kimi K3
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Marks("<seed:think>", "</seed:think>"),
    Marks("<mm:think>", "</mm:think>"),  # MiniMax M3
    Marks("<longcat_think>", "</longcat_think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_TEXT|>", "<|END_TEXT|>"), ("<|START_TEXT|>",)),  # North
    Marks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),  # Command A
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<|think|>", "<|end|>", ("<|begin|>assistant<|content|>", ""), ("<|think|>", "<|content|>")),  # Solar Open
    Marks(
        "<|begin_of_thought|>", "<|end_of_thought|>", ("<|begin_of_solution|>", "<|end_of_solution|>")
    ),  # Sky-T1, OpenThinker
    Marks("[unused16]", "[unused17]", known_by=("[unused9]",)),  # Pangu
    Marks("<thought>", "</thought>"),  # EXAONE Deep
    Marks("<reasoning>", "</reasoning>"),
    Marks("<thinking>", "</thinking>", ("<output>", "</output>")),
    Marks("<Thought>", "</Thought>", ("<Output>", "</Output>")),  # Marco
    Marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ("", "[END FINAL RESPONSE]")),  # Apriel
    Marks("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    Marks("<think>", "</think>", ("<response>", "</response>"), ("<think>", "<response>")),  # Granite 3.3, ERNIE
    Marks("<think>", "</think>", ("<answer>", "</answer>"), ("<think>", "<answer>")),  # Hunyuan
)


@functools.lru_cache(maxsize=16)
def marks_of(template: str | None) -> tuple[Marks | Messages, ...]:
    """The marks to look for: those that the chat template names or writes, and ``<think>`` in any case."""
    if not template:
        return (THINK,)
    named = [marks for marks in KNOWN if all(text in template for text in _known_by(marks))]
    found = _written(template)
    if found is not None and not any(found.open in text for text in texts_of(named)):
        named.append(found)
    return tuple(dict.fromkeys([*named, THINK]))


def _known_by(marks: Marks | Messages) -> tuple[str, ...]:
    return marks.known_by or ((marks.open,) if isinstance(marks, Marks) else ())


_MARK = r"(?:<[^<>\s][^<>]*>|\[[^\[\]\s][^\[\]]*\])"
_THOUGHT, _ANSWER = "Thought 5741", "Answer 8263"


def _written(template: str) -> Marks | None:
    """The marks that the template itself writes around an earlier answer's thinking; None if it writes none."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    asked = {"role": "user", "content": "Question"}
    plain = {"role": "assistant", "content": _ANSWER}
    thought = {**plain, "reasoning_content": _THOUGHT, "reasoning": _THOUGHT, "thinking": _THOUGHT}
    try:
        formatter = Jinja2ChatFormatter(template, "", "", add_generation_prompt=False)
        without, text = (str(formatter(messages=[asked, answer]).prompt) for answer in (plain, thought))
    except Exception:  # a program of the model's maker: it may raise anything
        return None
    before, has_thought, rest = text.partition(_THOUGHT)
    between, has_answer, _ = rest.partition(_ANSWER)
    opened, closed = re.search(rf"({_MARK})\s*$", before), re.match(rf"\s*({_MARK})", between)
    if not (has_thought and has_answer and opened and closed):
        return None
    if without.partition(_ANSWER)[0].rstrip().endswith(opened[1]):  # stands before an answer without thinking too
        return None
    return Marks(opened[1], closed[1])


def takes_effort(template: str | None) -> bool:
    """Whether a chat template asks how hard the model is to think."""
    return template is not None and any(name in template for name in ("reasoning_effort", "reasoning_strength"))


def texts_of(marks: Sequence[Marks | Messages]) -> tuple[str, ...]:
    """All texts that are looked for, to tell control tokens that are part of them."""
    texts: list[str] = []
    for one in marks:
        if isinstance(one, Marks):
            texts += [one.open, one.close, *one.answer]
        else:
            texts += [one.start, one.head, one.body, *one.ends, "<|constrain|>"]
    return tuple(text for text in dict.fromkeys(texts) if text)


class ThinkingSplitter:
    """Splits an answer into thinking and content, piece by piece.

    Between marks, only what stands at the beginning of an answer is thinking: later on, a mark is text that is talked
    about. Of messages, each is told by its head. One for a function is content, as a call between ``<tool_call>``.

    Parameters
    ----------
    prompt : str
        What the answer continues: thinking, or the head of a message, may have been opened in it.
    """

    def __init__(self, marks: Sequence[Marks | Messages] = (THINK,), prompt: str = "") -> None:
        messages = next((m for m in marks if isinstance(m, Messages)), None)
        self._way: _Tagged | _InMessages = _Tagged([m for m in marks if isinstance(m, Marks)], prompt)
        if messages is not None and self._way.inside is None:
            self._way = _InMessages(messages, self._way, prompt)

    @property
    def kind(self) -> TextKind:
        """What is coming now."""
        return self._way.kind

    @property
    def ending(self) -> str:
        """The text that ends the thinking which is coming now; "" if none is."""
        return self._way.ending

    @property
    def answer(self) -> str:
        """The text that begins an answer behind ``ending``, where there must be one."""
        return self._way.answer

    @property
    def is_amid_mark(self) -> bool:
        """Whether what came last may be the beginning of a mark."""
        return self._way.is_amid_mark

    def push(self, text: str) -> list[Part]:
        """Parts that are certain now; white space around the marks is theirs."""
        return [part for part in self._way.push(text) if part[1]]

    def flush(self) -> list[Part]:
        """The rest, at the end of the answer."""
        return [part for part in self._way.flush() if part[1]]


class TokenSplitter(ThinkingSplitter):
    """The same of tokens: control tokens are not part of an answer's text, but of the marks.

    Parameters
    ----------
    token_bytes : callable
        As ``Runtime.token_bytes``.
    more : sequence of str
        Other texts in which control tokens are to be seen.
    """

    def __init__(
        self,
        marks: Sequence[Marks | Messages],
        prompt: str,
        token_bytes: Callable[..., bytes],
        more: Sequence[str] = (),
    ) -> None:
        super().__init__(marks, prompt)
        self.token_bytes = token_bytes
        self._texts = (*texts_of(marks), *more)
        self._marked: dict[int, str] = {}
        self.n_tokens: dict[TextKind, int] = {"thinking": 0, "content": 0}
        """tokens that came, by what was coming after each"""

    def push_token(self, token: int, text: str) -> list[Part]:
        """Parts that are certain after this token, whose text may be empty while a character is incomplete."""
        parts = self.push(text or self._mark(token))
        self.n_tokens[self.kind] += 1
        return parts

    def _mark(self, token: int) -> str:
        if token not in self._marked:
            text = self.token_bytes(token, special=True).decode("utf-8", "replace")
            hidden = text and not self.token_bytes(token)
            self._marked[token] = text if hidden and any(text in mark for mark in self._texts) else ""
        return self._marked[token]


class ThinkingLimit:
    """Ends thinking that is too long: called before each token, it says which ones come in the place of drawn ones.

    Parameters
    ----------
    splitter : TokenSplitter
        Is given every token, before the next one is asked for.
    n_tokens : int
        Tokens of thinking that may come.
    tokenize : callable
        As ``Runtime.tokenize``.
    """

    def __init__(self, splitter: TokenSplitter, n_tokens: int, tokenize: Callable[..., list[int]]) -> None:
        self._splitter, self._n_tokens, self._tokenize = splitter, n_tokens, tokenize
        self._n_ended = 0

    def __call__(self) -> Sequence[int]:
        splitter = self._splitter
        is_over = splitter.kind == "thinking" and splitter.n_tokens["thinking"] >= self._n_tokens
        # a model that begins to think once more is told what to begin; whatever it then does, it is let
        if not is_over or splitter.is_amid_mark or self._n_ended > 1:
            return ()
        self._n_ended += 1
        text = splitter.ending + (splitter.answer if self._n_ended > 1 else "")
        tokens = self._tokenize(text, add_special=False, parse_special=True)
        # some tokenizers put a space before whatever they are given
        return tokens[1:] if tokens and splitter.token_bytes(tokens[0]) == b" " else tokens


class _Trimmed:
    """Text without the white space around it, which is known only when more comes."""

    def __init__(self, ends: bool) -> None:
        self._fresh, self._ends, self._held = True, ends, ""

    def push(self, text: str) -> str:
        text = self._held + text
        if self._fresh:
            text = text.lstrip()
        self._fresh = self._fresh and not text
        n = len(text.rstrip()) if self._ends else len(text)
        self._held = text[n:]
        return text[:n]


class _Tagged:
    """Marks before and after."""

    def __init__(self, marks: Sequence[Marks], prompt: str = "") -> None:
        self._marks = marks
        self._held = ""  # may be the beginning of a mark
        self.inside = next((m for m in marks if prompt.rstrip().endswith(m.open)), None)
        self._began = self.inside is not None
        self._done = False  # the answer has begun
        self._answer_close = ""
        self._wrapped: list[tuple[str, str]] = [m.answer for m in marks if m.answer[0]]
        self._thinking, self._content = _Trimmed(True), _Trimmed(False)

    @property
    def kind(self) -> TextKind:
        return "thinking" if self.inside else "content"

    @property
    def ending(self) -> str:
        return self.inside.ending if self.inside else ""

    @property
    def answer(self) -> str:
        return ""

    @property
    def is_amid_mark(self) -> bool:
        return bool(self._held)

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if self.inside is None and not self._done:
            self._begin()
        if self.inside is not None:
            body, close, rest = self._held.partition(self.inside.close)
            if close:
                parts.append(("thinking", self._thinking.push(body)))
                opened, closed = self.inside.answer
                self._wrapped = [self.inside.answer] if opened else []
                self._answer_close = "" if opened else closed
                self.inside, self._held = None, rest
                self._begin()
            else:
                n_sure = len(body) - overlap(body, self.inside.close)
                parts.append(("thinking", self._thinking.push(body[:n_sure])))
                self._held = body[n_sure:]
        if self._done:
            text, self._held = self._held, ""
            if self._answer_close:
                body, close, rest = text.partition(self._answer_close)
                self._held = "" if close else body[len(body) - overlap(body, self._answer_close) :]
                text = body + rest if close else body[: len(body) - len(self._held)]
                self._answer_close = "" if close else self._answer_close
            parts.append(("content", self._content.push(text)))
        return parts

    def _begin(self) -> None:
        """Tell what the held text begins with, if it can be told yet."""
        start = self._held.lstrip()
        opened = next((m for m in self._marks if start.startswith(m.open)), None) if not self._began else None
        if opened is not None:
            self._began, self.inside, self._held = True, opened, start[len(opened.open) :]
            return
        wrapped = next((pair for pair in self._wrapped if start.startswith(pair[0])), None)
        if wrapped is not None:
            self._answer_close, self._held, self._done = wrapped[1], start[len(wrapped[0]) :], True
            return
        opens = [] if self._began else [m.open for m in self._marks]
        opens += [pair[0] for pair in self._wrapped]
        if not opens or (start and not any(text.startswith(start) for text in opens)):
            self._done = True

    def flush(self) -> list[Part]:
        rest, self._held = self._held, ""
        return [("thinking", self._thinking.push(rest))] if self.inside else [("content", self._content.push(rest))]


class _InMessages:
    """A message for each of thinking and answer; what does not begin as one is left to the marks."""

    def __init__(self, marks: Messages, otherwise: _Tagged, prompt: str = "") -> None:
        self._marks, self._otherwise = marks, otherwise
        self._stops = (*marks.ends, marks.start, *((marks.head,) if marks.head.startswith("<") else ()))
        self._plain = False  # this answer is no messages
        self._held = ""  # a head, or what may be the beginning of a mark
        self._in_body = False
        self._kind: TextKind = "content"
        self._call: str | None = None  # name of the function that the message is for
        self._arguments = ""
        self._trimmed = _Trimmed(False)
        _, _, last = prompt.rpartition(marks.start)
        head, has_body, body = last.partition(marks.body)
        self._begun = last != prompt and not has_body  # the prompt ends inside a head
        self._head = head if self._begun else ""
        if last != prompt and has_body and not any(end in body for end in marks.ends):
            self._open(head)

    @property
    def kind(self) -> TextKind:
        return self._otherwise.kind if self._plain else self._kind

    @property
    def ending(self) -> str:
        return self._otherwise.ending if self._plain else self._marks.ending if self._kind == "thinking" else ""

    @property
    def answer(self) -> str:
        return self._otherwise.answer if self._plain else self._marks.answer

    @property
    def is_amid_mark(self) -> bool:
        return self._otherwise.is_amid_mark if self._plain else bool(self._held) or not self._in_body

    def push(self, text: str) -> list[Part]:
        if self._plain:
            return self._otherwise.push(text)
        self._held += text
        parts: list[Part] = []
        while True:
            if not self._in_body:
                if not self._may_be_head():
                    return parts + self._as_plain()
                head, has_body, rest = self._held.partition(self._marks.body)
                if not has_body:
                    return parts
                self._open(self._head + head)
                self._held = rest
            found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
            if not found:
                n_sure = len(self._held) - max(overlap(self._held, stop) for stop in self._stops)
                parts += self._text(self._held[:n_sure])
                self._held = self._held[n_sure:]
                return parts
            at, stop = min(found)
            parts += self._text(self._held[:at]) + self._close()
            self._held = self._held[at + len(stop) if stop in self._marks.ends else at :]

    def flush(self) -> list[Part]:
        if self._plain:
            return self._otherwise.flush()
        if not self._in_body:
            begun = self._begun or any(mark in self._held for mark in (self._marks.start, self._marks.head))
            return [] if begun and self._held.strip() != "<" else self._as_plain() + self._otherwise.flush()
        rest, self._held = self._held, ""
        return self._text(rest) + self._close()

    def _as_plain(self) -> list[Part]:
        self._plain = True
        text, self._held = self._held, ""
        return self._otherwise.push(text)

    def _may_be_head(self) -> bool:
        """Whether the held text is a head, or may become one."""
        begins = [self._marks.start, self._marks.head]
        begins += [self._marks.body, " to="] if self._begun else []
        texts = (self._held, self._held.lstrip())
        return not texts[1] or any(
            text.startswith(begin) or begin.startswith(text) for text in texts for begin in begins
        )

    def _open(self, head: str) -> None:
        """Begin a message. Of heads that were begun one after the other, the last one holds."""
        head = head.rpartition(self._marks.start)[2].strip().removeprefix("assistant")
        last = head[max(head.rfind(self._marks.head), 0) :]
        function = re.search(r" to=functions\.([^\s<]+)", head)
        self._call, self._arguments = (function[1] if function else None), ""
        thinks = self._call is None and re.search(self._marks.thinking, last) is not None
        self._kind = "thinking" if thinks else "content"
        self._trimmed = _Trimmed(thinks)
        self._in_body, self._begun, self._head = True, False, ""

    def _text(self, text: str) -> list[Part]:
        if self._call is not None:
            self._arguments += text
            return []
        return [(self._kind, self._trimmed.push(text))]

    def _close(self) -> list[Part]:
        name, self._call, self._in_body = self._call, None, False
        if name is None:
            return []
        call = f'{{"name": {json.dumps(name)}, "arguments": {self._arguments.strip() or "{}"}}}'
        return [("content", f"<tool_call>\n{call}\n</tool_call>")]
