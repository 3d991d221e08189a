"""One turn after another through a cache that forgets: what is read, what is restored, what is said about it.

A prompt is always the whole conversation in the model's template; what of it is read again depends on what the cache
holds. What was evicted cannot be rewound, nor can a sliding window or a recurrent state that has gone on, so that going
back (to drop the thinking of an answer, to answer anew, to edit, to resume) restores a snapshot of the cache: the last
point of the branch that has one. What no snapshot covers is read again, and counted.

Knows nothing of terminals and databases: messages in, events out.
"""

from __future__ import annotations

import dataclasses
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..answers.thinking import THINK, Marks, Messages, TextKind, ThinkingLimit, TokenSplitter, marks_of
from ..answers.tool_calls import MARKS, ToolCall, ToolCallSplitter
from ..config import SamplingConfig, ThinkingConfig
from ..engine.pinning import PromptParts
from ..engine.runtime import Cancel, Done, Prefill, Runtime, Token, n_shared
from ..errors import StateError, TriattnError, UsageError
from .model import SUMMARY, Message, turns_of
from .snapshot_cache import SnapshotCache

WORTH_A_FILE = 512
"""tokens: a prompt of fewer is read again as soon as its snapshot is read from the disk"""

Origin = Literal["cache", "memory", "disk", "nothing"]


@dataclass(frozen=True)
class Ready:
    """Where the turn starts from. Comes first."""

    origin: Origin
    """the sequence as it was, a snapshot from memory or disk, or an empty cache"""
    n_prompt: int
    n_cached: int
    """tokens of the prompt that are there"""
    n_again: int
    """tokens of earlier turns that have to be read again"""
    why: str | None
    """what kept a snapshot from being used, if n_again is not 0"""


@dataclass(frozen=True)
class Piece:
    """One more token of the answer; `text` may be empty."""

    kind: TextKind
    text: str
    n_tokens: int
    """tokens of this kind so far"""


@dataclass(frozen=True)
class Called:
    """The answer wants a tool to be called; of the text it is no part."""

    call: ToolCall


@dataclass(frozen=True)
class Answered:
    """The answer is at its end."""

    reason: Literal["stop", "length", "context", "cancelled"]
    n_prompt: int
    n_cached: int
    n_thinking: int
    n_content: int
    """tokens"""
    thinking_s: float
    prefill_s: float
    decode_s: float
    snapshot_bytes: int
    """of the cache at the end of the prompt; 0 if none was taken"""


@dataclass(frozen=True)
class Settled:
    """The cache holds the conversation without the thinking of its last answer."""

    n_read: int
    """tokens of the answer that were read again, clean"""
    n_dropped: int
    """tokens of the sequence that went"""
    snapshot_bytes: int


@dataclass(frozen=True)
class Retained:
    """What the heads still hold of a conversation, and where its messages lie in the sequence."""

    share: NDArray[np.float32]
    """share of the KV heads of a layer that hold a position: float32 [n_layer, n_past], 0 to 1"""
    spans: Mapping[int, Span]
    """message -> where its content lies; a message that the sequence does not hold in its own words has none"""
    text: bytes
    """the sequence, with the template's own words"""
    ends: NDArray[np.int64]
    """byte of the text at which each token ends: int64 [n_past]"""

    def words(self, first: int, last: int) -> str:
        """The text of the positions [first, last)."""
        begin = int(self.ends[first - 1]) if first > 0 else 0
        return self.text[begin : int(self.ends[last - 1])].decode("utf-8", "replace") if last > first else ""

    def is_forgotten(self, message: int, begin: int, end: int) -> bool:
        """Whether no head of any layer holds a token of the content's UTF-8 bytes [begin, end)."""
        span = self.spans.get(message)
        if span is None or begin >= end:
            return False
        first = span.first + int(np.searchsorted(span.ends, begin, side="right"))
        last = span.first + int(np.searchsorted(span.ends, end - 1, side="right"))
        part = self.share[:, first : last + 1]
        return part.shape[1] > 0 and not part.any()


@dataclass(frozen=True)
class Span:
    """Where the content of a message lies in the sequence."""

    first: int
    """position of its first token"""
    ends: NDArray[np.int64]
    """byte of the content at which each of its tokens ends: int64 [n_tokens], rising"""


Event = Ready | Prefill | Piece | Called | Answered | Settled


class TooLongError(UsageError):
    """What is to be read leaves no room for an answer. Nothing was read, and nothing in the cache has changed."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        self.n_tokens, self.n_ctx = n_tokens, n_ctx
        what = f"a conversation of {n_tokens:,} tokens exceeds the context of {n_ctx:,}"
        if n_tokens <= n_ctx:
            what = f"a conversation of {n_tokens:,} tokens leaves no room for an answer in the context of {n_ctx:,}"
        super().__init__(what, fix=f"a context of {context_for(n_tokens):,} has room for it")


def context_for(n_tokens: int) -> int:
    """A context for a prompt of so many tokens, an answer, and some more turns: a multiple of 256."""
    return -(-n_tokens * 5 // 4 // 256) * 256


def room_for_answer(n_ctx: int) -> int:
    """Tokens of a context that a prompt has to leave: an answer of a few words helps nobody."""
    return min(256, n_ctx // 16)


class Conversation:
    """The turns of one session after another, in one Runtime. Not for several threads at once.

    Parameters
    ----------
    snapshots : SnapshotCache
        Keeps the snapshots, under a session's id and the id of the message that they end with.
    """

    def __init__(self, rt: Runtime, snapshots: SnapshotCache) -> None:
        self.rt = rt
        self.snapshots = snapshots
        self.marks = marks_of(rt.vocabulary.chat_template)
        self.thinking = ThinkingConfig()
        """how the session at hand has the model think: its template may say so at the beginning of every prompt"""
        self.tools: Sequence[Mapping[str, Any]] = ()
        """what it may call, as OpenAI's protocol has them: they too stand at the beginning of every prompt"""
        self._pieces_of: dict[int, bytes] = {}

    # ------------------------------------------------------------------ text

    def prompt_text(self, system: str, path: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation in the model's template, without any thinking."""
        turns = turns_of(path)

        def render(turns: Sequence[Mapping[str, Any]]) -> str:
            tools: Any = {"tools": self.tools} if self.tools else {}
            return self.rt.apply_chat_template(
                turns, thinking=self.thinking, add_generation_prompt=add_generation_prompt, **tools
            )

        if not system:
            return render(turns)
        try:
            return render([{"role": "system", "content": system}, *turns])
        except UsageError:
            # some templates know no system role: then it goes before the first message
            if not turns:
                raise
            first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
            return render([first, *turns[1:]])

    def prompt(self, system: str, path: Sequence[Message]) -> list[int]:
        """Tokens of the conversation, up to where the answer to its last message begins."""
        return self._tokens(self.prompt_text(system, path))

    def _tokens(self, text: str) -> list[int]:
        return self.rt.tokenize(text, add_special=True, parse_special=True)

    def oldest_to_leave_out(self, system: str, path: Sequence[Message]) -> tuple[list[Message], int]:
        """The oldest turns of a branch without which a quarter of the context is free, if that is possible.

        Returns
        -------
        list of Message, int
            The messages to leave out, and the tokens of the rest. Of the last turn nothing is left out: the rest may
            still be too long.
        """
        starts = [i for i, message in enumerate(path) if message.role == "user"]
        wanted = self.rt.stats().n_ctx * 3 // 4

        def n_tokens(start: int) -> int:
            return len(self.prompt(system, path[start:]))

        start = starts[min(bisect_left(starts, True, key=lambda i: n_tokens(i) <= wanted), len(starts) - 1)]
        return list(path[:start]), n_tokens(start)

    def lasting(self, system: str, path: Sequence[Message]) -> list[int]:
        """Tokens that every continuation of the conversation begins with, whatever is said next."""
        nothing = Message(id=-1, session="", parent=None, role="user", content="")
        if path and path[-1].role != "assistant":
            if path[-1].role == "tool":  # what follows a call is its result
                nothing = path[-1]
            path = path[:-1]
        one, other = (
            self.prompt(system, [*path, dataclasses.replace(nothing, content=content)]) for content in ("0", "Z")
        )
        return one[: n_shared(one, other)]

    def parts(self, system: str, path: Sequence[Message], tokens: Sequence[int]) -> PromptParts:
        """Where in the tokens of a branch the system prompt ends, and the last thing that the user said begins."""
        asked = max((i for i, message in enumerate(path) if message.role == "user"), default=0)
        return PromptParts(
            n_shared(tokens, self.lasting(system, [])), n_shared(tokens, self.lasting(system, path[:asked]))
        )

    # ------------------------------------------------------------------ turn

    def respond(
        self,
        session: str,
        system: str,
        path: Sequence[Message],
        *,
        sampling: SamplingConfig | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        cancel: Cancel | None = None,
        keep: bool = True,
        begun: Message | None = None,
    ) -> Iterator[Event]:
        """Answer the last message of a branch; without `keep` no snapshot of it is taken.

        Parameters
        ----------
        begun : Message, optional
            An answer to it that was cut: what comes goes on behind its last letter.

        Yields
        ------
        Ready, Prefill after every batch, Piece after every token, Called where tools are offered and one is called,
        Answered. With `cancel` set, Answered comes after the batch or token at hand.

        Raises
        ------
        TooLongError
            The conversation does not fit the context, with an answer.
        UsageError
            The template refuses it.
        """
        text, said = (self.prompt_text(system, path), "") if begun is None else self._begun(system, path, begun)
        tokens = self._tokens(text + said)
        n_ctx = self.rt.stats().n_ctx
        room = room_for_answer(n_ctx)
        if len(tokens) + (room if max_tokens is None else min(room, max_tokens)) > n_ctx:
            raise TooLongError(len(tokens), n_ctx)
        whole = path if begun is None else [*path, begun]
        earlier = self.lasting(system, whole) if len(whole) > 1 else []
        yield self._go_back(session, whole, tokens, earlier)

        known = [mark for pair in MARKS for mark in pair] if self.tools else []
        splitter = TokenSplitter(self.marks, text, self.rt.token_bytes, known)
        calls = ToolCallSplitter() if self.tools else None
        for kind, known_part in splitter.push(said):  # is there already
            if calls is not None and kind == "content":
                calls.push(known_part)
        counts = splitter.n_tokens
        most = self.thinking.limit
        limit = None if most is None else ThinkingLimit(splitter, most, self.rt.tokenize)
        snapshot_bytes = 0
        thinking_s, first_s = 0.0, time.perf_counter()
        for event in self.rt.generate(
            tokens,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            cancel=cancel,
            interject=limit,
            parts=lambda: self.parts(system, path, tokens),
        ):
            if isinstance(event, Prefill):
                yield event
                first_s = time.perf_counter()
                if event.n_done == event.n_total and self.rt.forgets and keep and not said:
                    to_disk = event.n_total - WORTH_A_FILE >= 0
                    snapshot_bytes = self._take(session, path[-1].id, in_memory=True, on_disk=to_disk)
                    first_s = time.perf_counter()
            elif isinstance(event, Token):
                kind = splitter.kind
                parts = splitter.push_token(event.id, event.text)
                if kind == "thinking" and splitter.kind == "content":
                    thinking_s = time.perf_counter() - first_s
                yield from self._pieces(parts, splitter.kind, counts, calls)
            elif isinstance(event, Done):
                yield from self._pieces(splitter.flush(), splitter.kind, counts, calls)
                for part in calls.flush() if calls is not None else ():
                    yield Called(part) if isinstance(part, ToolCall) else Piece("content", part, counts["content"])
                if splitter.kind == "thinking":
                    thinking_s = time.perf_counter() - first_s
                yield Answered(
                    reason=event.reason,
                    n_prompt=event.n_prompt,
                    n_cached=event.n_cached,
                    n_thinking=counts["thinking"],
                    n_content=counts["content"],
                    thinking_s=thinking_s,
                    prefill_s=event.prefill_s,
                    decode_s=event.decode_s,
                    snapshot_bytes=snapshot_bytes,
                )

    def _begun(self, system: str, path: Sequence[Message], answer: Message) -> tuple[str, str]:
        """The prompt up to where an answer begins, and what it says so far.

        Behind its thinking an answer goes on as the next turn would read it, without that. An answer of which nothing
        but thinking came goes on thinking.
        """
        text = self.prompt_text(system, path)
        if answer.content.strip():
            plain = dataclasses.replace(answer, report={})
            read = self.prompt_text(system, [*path, plain], add_generation_prompt=False)
            before, found, _ = read.rpartition(answer.content.strip())
            if found:  # where the template writes it, and as it does
                return before, answer.content.lstrip()
            splitter = TokenSplitter(self.marks, text, self.rt.token_bytes)
            return text + splitter.ending + splitter.answer, answer.content
        splitter = TokenSplitter(self.marks, text, self.rt.token_bytes)
        if not answer.thinking or splitter.kind == "thinking":
            return text, answer.thinking
        opened = next((marks.open for marks in self.marks if isinstance(marks, Marks)), THINK.open)
        if any(isinstance(marks, Messages) for marks in self.marks):
            raise UsageError("nothing but thinking came, and this model cannot go on with that", fix="answer anew")
        return text, f"{opened}\n{answer.thinking}"

    def _pieces(
        self,
        parts: Sequence[tuple[TextKind, str]],
        now: TextKind,
        counts: dict[TextKind, int],
        calls: ToolCallSplitter | None,
    ) -> Iterator[Piece | Called]:
        for kind, text in parts or [(now, "")]:
            if calls is None or kind == "thinking":
                yield Piece(kind, text, counts[kind])
                continue
            for part in calls.push(text) or [""]:
                yield Called(part) if isinstance(part, ToolCall) else Piece(kind, part, counts[kind])

    def summarise(
        self,
        session: str,
        system: str,
        path: Sequence[Message],
        *,
        sampling: SamplingConfig,
        cancel: Cancel | None = None,
    ) -> Iterator[Event]:
        """A summary of a branch by the model itself, in an eighth of the context at most.

        What is too long to be read is left out from its beginning.

        Yields
        ------
        As ``respond``.
        """
        n_ctx = self.rt.stats().n_ctx
        most = max(64, n_ctx // 8)
        ask = Message(id=0, session=session, parent=None, role="user", content=SUMMARY)
        starts = [i for i, message in enumerate(path) if message.role == "user"]
        whole, self.thinking = self.thinking, dataclasses.replace(self.thinking, enabled=False)
        try:
            first = next(
                (i for i in starts if len(self.prompt(system, [*path[i:], ask])) + most <= n_ctx),
                starts[-1] if starts else 0,
            )
            yield from self.respond(
                session, system, [*path[first:], ask], sampling=sampling, max_tokens=most, cancel=cancel, keep=False
            )
        finally:
            self.thinking = whole

    def settle(
        self, session: str, system: str, path: Sequence[Message], *, cancel: Cancel | None = None
    ) -> Iterator[Event]:
        """After an answer: leave in the cache what the next turn begins with, and keep a snapshot of it.

        The thinking goes by restoring the snapshot at the end of the user's turn and reading the answer alone.

        Yields
        ------
        Prefill while the answer is read, then Settled; nothing more once `cancel` is set, and nothing at all where the
        conversation fills the context.
        """
        tokens = self.lasting(system, path)
        before = self.rt.stats().n_past
        if len(tokens) > self.rt.stats().n_ctx:
            return  # the answer ended with the context: the next turn cannot begin with all of it anyway
        n_read = 0
        # what the cache holds behind them must not be what a snapshot cannot be cut before
        if self._in_cache(tokens) < len(tokens) - 1 or self.rt.stats().pos_saved > len(tokens):
            self._go_back(session, path, tokens, tokens)
            for event in self.rt.generate(
                tokens, max_tokens=0, cancel=cancel, parts=lambda: self.parts(system, path, tokens)
            ):
                if isinstance(event, Prefill):
                    yield event
                elif isinstance(event, Done):
                    if event.reason == "cancelled":
                        return
                    n_read = event.n_prompt - event.n_cached
        size = self._take(session, path[-1].id, in_memory=self.rt.forgets, on_disk=True)
        yield Settled(n_read=n_read, n_dropped=max(0, before - self.rt.stats().n_past), snapshot_bytes=size)

    # ------------------------------------------------------------------ look

    def retained(self, path: Sequence[Message]) -> Retained:
        """What is still held, of the sequence as it is, and of these messages in it."""
        heads = self.rt.heads_holding()
        most = max(int(heads.max(initial=0)), 1)  # the last window is held by all
        pieces = [self._bytes(token) for token in self.rt.tokens[: heads.shape[1]]]
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        text = b"".join(pieces)
        spans: dict[int, Span] = {}
        cursor = 0
        for message in path:
            content = message.content.strip().encode()
            begin = text.find(content, cursor) if content else -1
            if begin < 0:
                continue
            cursor = begin + len(content)
            lead = len(message.content.encode()) - len(message.content.lstrip().encode())
            first = int(np.searchsorted(ends, begin, side="right"))
            last = int(np.searchsorted(ends, cursor - 1, side="right"))
            spans[message.id] = Span(first, ends[first : last + 1] - begin + lead)
        return Retained((heads / most).astype(np.float32), spans, text, ends)

    def nothing_retained(self) -> Retained:
        """Of a conversation that the cache does not hold."""
        return Retained(np.zeros((self.rt.heads_holding().shape[0], 0), np.float32), {}, b"", np.zeros(0, np.int64))

    def _bytes(self, token: int) -> bytes:
        if token not in self._pieces_of:
            self._pieces_of[token] = self.rt.token_bytes(token, special=True)
        return self._pieces_of[token]

    # ------------------------------------------------------------- going back

    def _take(self, session: str, message: int, *, in_memory: bool, on_disk: bool) -> int:
        rows = self.snapshots.rows(session, self.rt.layout_id) if on_disk else None
        try:
            snapshot = self.rt.snapshot(rows)
        except TriattnError as error:
            self.snapshots.report(error)  # without its rows it goes on as well, but what was evicted is gone
            snapshot = self.rt.snapshot()
        self.snapshots.put(session, message, snapshot, in_memory=in_memory, on_disk=on_disk)
        return len(snapshot.state)

    def _go_back(self, session: str, path: Sequence[Message], tokens: Sequence[int], lasting: Sequence[int]) -> Ready:
        """Put the cache into the best state that there is to read `tokens` from."""
        n_best = self._in_cache(tokens)
        origin: Origin = "cache" if n_best else "nothing"
        wanted = n_shared(tokens, lasting)  # of the rest nobody can have a snapshot
        why: str | None = None
        if n_best < min(wanted, len(tokens) - 1):
            why = "no snapshot of this point is kept"
            for message in reversed(path):
                found = self.snapshots.find(session, message.id)
                if found is None:
                    continue
                snapshot = found.snapshot
                n = self._reusable(snapshot.tokens, snapshot.pos_whole, tokens)
                if n <= n_best:
                    continue
                try:
                    self.rt.restore(snapshot)
                except StateError as error:
                    why = f"the snapshot {error.what}"
                    n_best = self._in_cache(tokens)  # a state that llama.cpp itself fails on leaves nothing
                    origin = "cache" if n_best else "nothing"
                    continue
                n_best, origin = n, found.origin
                break
        n_again = max(0, wanted - n_best - 1)
        return Ready(origin, len(tokens), n_best, n_again, why if n_again else None)

    def _in_cache(self, tokens: Sequence[int]) -> int:
        stats = self.rt.stats()
        return self._reusable(self.rt.tokens[: stats.n_past], stats.pos_whole, tokens)

    @staticmethod
    def _reusable(have: Sequence[int], pos_whole: int, want: Sequence[int]) -> int:
        """How many tokens of `want` need not be read, if `have` is in the cache and can be cut from `pos_whole` on."""
        n = n_shared(have, want[:-1])  # the last one is read in any case, for its logits
        return n if n == len(have) or n >= pos_whole else 0
