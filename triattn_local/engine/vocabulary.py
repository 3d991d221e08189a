"""Text to token ids and back, with the model's own tokenizer and chat template. Knows no context and no cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ..answers.messages import mappings
from ..answers.thinking import ThinkingSplitter, marks_of
from ..answers.tool_calls import for_template
from ..config import ThinkingConfig
from ..errors import ModelNotFoundError, StateError, TriattnError, UsageError
from ..support.deep_stack import with_stack

SHORT_RUN = 256
"""bytes of a line, or of white space, that every thread's stack has room for"""
STACK_PER_BYTE = 1024
"""libstdc++'s regular expressions, by which some tokenizers cut, were seen to take 330 for each character of a match"""
STACK_FLOOR = 8 << 20
LONGEST_RUN = 3 << 20
_RUN = re.compile(rb"\s*[^\n]*")

TEMPLATE_FIX = "use `run --raw` or another file of this model"

_ASKED = "Question 3917"


def template_syntax_fault(template: str) -> str | None:
    """What is wrong with a chat template as a Jinja program; None: it is one."""
    try:
        Jinja2ChatFormatter(template, "", "")
    except Exception as error:  # no Jinja, or whatever else a compiler trips over
        line = getattr(error, "lineno", None)
        return f"the model's chat template is broken{f' in its line {line}' if line else ''}: {error}"
    return None


class Vocabulary:
    """The tokenizer of a loaded model. Any thread may ask it, until it is closed: then StateError.

    Parameters
    ----------
    model : pointer
        The `llama_model` of the binding.
    owner : object, optional
        Frees the model when it goes: kept as long as this.
    """

    def __init__(self, model: Any, owner: object = None) -> None:
        self._owner = owner
        self._pointer, self._vocab_pointer = model, llama_cpp.llama_model_get_vocab(model)
        self._users: list[int] = []  # threads that are inside
        self._is_closed = False
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab_pointer)

    def close(self) -> None:
        """Before the model is freed: waits for the other threads that are inside, and refuses all later ones."""
        self._is_closed = True
        me = threading.get_ident()
        while any(thread != me for thread in list(self._users)):
            time.sleep(0.001)
        self._owner = None

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        me = threading.get_ident()
        self._users.append(me)  # first: who closes sees either this, or is seen
        try:
            self._check()
            yield
        finally:
            self._users.remove(me)

    def _check(self) -> None:
        if self._is_closed:
            raise StateError("the model is closed", fix="load it again")

    @property
    def _model(self) -> Any:
        self._check()
        return self._pointer

    @property
    def _vocab(self) -> Any:
        self._check()
        return self._vocab_pointer

    def check_tokens(self, tokens: Sequence[int]) -> list[int]:
        """The same as a list of int, each of them a token of this model.

        Raises
        ------
        UsageError
            Text, something else that is no list of whole numbers, or an id that the model has not.
        """
        if isinstance(tokens, (str, bytes)):
            raise UsageError("is text, and token ids are wanted", where="prompt", fix="tokenize() makes them")
        try:
            ids = [operator.index(token) for token in tokens]
        except TypeError:
            raise UsageError(f"{_short(tokens)} is no list of token ids", where="prompt") from None
        for at, token in enumerate(ids):
            if not 0 <= token < self.n_vocab:
                raise UsageError(f"token {token} at {at} is not one of the model's {self.n_vocab:,}", where="prompt")
        return ids

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids. add_special puts the model's BOS in front; parse_special reads `<|im_start|>` as one token.

        Raises
        ------
        UsageError
            No text, one with half a character, which UTF-8 cannot hold, or a line that is longer than any tokenizer can
            be given.
        """
        data = _utf8(text)
        longest = max((len(run) for run in _RUN.findall(data)), default=0)
        if longest > LONGEST_RUN:
            raise UsageError(
                f"the text has {longest:,} bytes in one line, or of white space; {LONGEST_RUN:,} can be read",
                fix="break it into lines",
            )
        with self._inside():
            if longest <= SHORT_RUN:
                return self._tokenize(data, add_special, parse_special)
            n_stack = STACK_FLOOR + longest * STACK_PER_BYTE
            return with_stack(n_stack, lambda: self._tokenize(data, add_special, parse_special))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        n_max = len(data) + 16
        # byte tokens can outnumber the bytes, since a space may become a character of three; then -n are needed
        for _ in range(2):
            tokens = (llama_cpp.llama_token * n_max)()
            n = int(llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, n_max, add_special, parse_special))
            if n >= 0:
                return list(tokens[:n])
            n_max = -n
        raise TriattnError(f"the tokenizer fails on a text of {len(data)} bytes")

    @property
    def bos(self) -> int | None:
        """Token that begins every text of this model; None if it has none."""
        with self._inside():
            has_one = llama_cpp.llama_vocab_get_add_bos(self._vocab)
            return int(llama_cpp.llama_vocab_bos(self._vocab)) if has_one else None

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The token's bytes, which need not be whole characters; those of a control token only if `special`."""
        (token,) = self.check_tokens([token])
        with self._inside():
            return self._piece(token, special)

    def _piece(self, token: int, special: bool) -> bytes:
        size = 256
        buffer = ctypes.create_string_buffer(size)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; what is no UTF-8 becomes U+FFFD."""
        ids = self.check_tokens(tokens)
        with self._inside():
            return b"".join(self._piece(token, special) for token in ids).decode("utf-8", "replace")

    def ends_turn(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        (token,) = self.check_tokens([token])
        with self._inside():
            return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @property
    def chat_template(self) -> str | None:
        """Jinja source, None if the model has none: a blank one is none."""
        with self._inside():
            text = llama_cpp.llama_model_chat_template(self._model, None)
            return None if text is None or not bytes(text).strip() else bytes(text).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation in the model's own template; plain texts in a row if it has none.

        A template that knows no tools gets them, and calls of them, as text. Where thinking is off, and the template
        opens it all the same, it is closed again. The result starts with what the template starts with: tokenize it
        with parse_special.

        Raises
        ------
        UsageError
            No messages as OpenAI's protocol has them, such with pictures, or the template refuses them.
        ModelNotFoundError
            The template is broken.
        """
        template = self.chat_template
        tools = mappings(tools, "tools")
        turns = for_template(template, messages, tools)
        if template is None:
            return "\n\n".join(str(turn["content"]) for turn in turns)
        if self._template_fault is not None:
            raise ModelNotFoundError(self._template_fault, fix=TEMPLATE_FIX)
        try:
            prompt = self._render(turns, tools, add_generation_prompt, thinking)
        except StateError:
            raise
        except Exception as err:  # the template is a program of the model's maker: it may raise anything
            raise UsageError(f"the model's chat template refuses the conversation: {err}") from err
        # tokenize() puts BOS in front where the model wants one: not twice
        bos = self._special_text(llama_cpp.llama_vocab_bos(self._vocab))
        adds_bos = bool(bos) and llama_cpp.llama_vocab_get_add_bos(self._vocab)
        prompt = prompt.removeprefix(bos) if adds_bos else prompt
        if thinking is None or not thinking.is_off or not add_generation_prompt:
            return prompt
        ending = ThinkingSplitter(marks_of(template), prompt).ending
        # an empty thought has two new lines in all templates that write one
        gap = "\n" if ending.startswith("\n") and not prompt.endswith("\n") else ""
        return prompt + gap + ending

    def _render(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        thinking: ThinkingConfig | None = None,
    ) -> str:
        bos, eos = (self._special_text(f(self._vocab)) for f in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos))
        formatter = Jinja2ChatFormatter(self.chat_template or "", eos, bos, add_generation_prompt=add_generation_prompt)
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        return str(formatter(messages=list(turns), **more, **(thinking or ThinkingConfig()).arguments()).prompt)

    @functools.cached_property
    def _template_fault(self) -> str | None:
        """Why no conversation can go through the template: it is no Jinja, or leaves out what is asked."""
        template = self.chat_template or ""
        if (fault := template_syntax_fault(template)) is not None:
            return fault
        try:
            prompt = self._render([{"role": "user", "content": _ASKED}], (), True)
        except Exception:  # it may want other messages, and says so when it gets the real ones
            return None
        return None if _ASKED in prompt else "the model's chat template leaves out what the user says"

    def _special_text(self, token: int) -> str:
        return self.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def _utf8(text: object) -> bytes:
    if not isinstance(text, str):
        raise UsageError(f"{_short(text)} is no text")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UsageError(f"half a character (U+{half:04X}) at {error.start}, which UTF-8 cannot hold") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
