"""A Runtime without a model: real rules of the cache, answers from a script, tokens at a pace that the test sets.

Words are tokens. The cache evicts by the rules of the real one as far as callers can see them: rounds every `window`
tokens beyond the budget, T behind the last position by `window`, nothing before T can be rewound, snapshots bring it
back. ``n_read`` counts every token that was decoded as part of a prompt.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from triattn_local.answers.text_stream import TextStream
from triattn_local.answers.tool_calls import for_template
from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig, ThinkingConfig
from triattn_local.engine.runtime import Cancel, Done, Event, Prefill, RuntimeStats, Token
from triattn_local.engine.snapshot import Snapshot
from triattn_local.errors import StateError, TriattnError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

END = "<|im_end|>"
TEMPLATE = "{{ '<|im_start|>' }} <think>"
_TOKEN = re.compile(r"<\|\w+\|>|</?think>| ?[^\s<]+|\s|<")

Script = Sequence[str] | Callable[[str, int], str]
"""answers one after another (the last one again and again), or made from (prompt, number of the answer)"""


class ScriptedRuntime:
    """Stands in for ``Runtime``; the class attributes set what the next instance does."""

    script: ClassVar[Script] = ("The sea is wide.",)
    suggested: ClassVar[dict[str, float]] = {}
    """what the file says of sampling"""
    tokens_per_s: ClassVar[float | None] = None
    """None: as fast as they can be taken"""
    batch_s: ClassVar[float] = 0.0
    """what a batch of a prompt takes"""
    load_error: ClassVar[TriattnError | None] = None
    loads: ClassVar[list[ScriptedRuntime]] = []

    def __init__(self, path: Path, config: RuntimeConfig, eviction: EvictionConfig | None) -> None:
        self.path, self.config, self.eviction = path, config, eviction
        self.forgets = eviction is not None
        self.vocabulary = SimpleNamespace(chat_template=TEMPLATE)
        self.n_read = 0
        self.n_answers = 0
        self.n_restored = 0
        self.samplings: list[SamplingConfig | None] = []
        self.thoughts: list[ThinkingConfig | None] = []
        self.prompts: list[str] = []
        self.stats_path: Path | str | None = None
        self.closed = False
        self.finished = threading.Event()
        """set whenever generate has ended"""
        self._texts: dict[int, str] = {}
        self._tokens: list[int] = []
        self._pending: int | None = None
        self._kept: list[int] = []
        self._pos_whole = 0
        self._n_rounds = self._n_evicted = 0

    @classmethod
    def load(
        cls,
        path: Path | str,
        config: RuntimeConfig | None = None,
        eviction: EvictionConfig | None = None,
        stats_path: Path | str | None = None,
    ) -> Self:
        if cls.load_error is not None:
            raise cls.load_error
        runtime = cls(Path(path), config or RuntimeConfig(), eviction)
        runtime.stats_path = stats_path
        cls.loads.append(runtime)
        return runtime

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # text

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        del add_special, parse_special
        ids = []
        for piece in _TOKEN.findall(text):
            id_ = zlib.crc32(piece.encode()) & 0x7FFFFFFF  # the same in every process
            self._texts[id_] = piece
            ids.append(id_)
        return ids

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        text = self._texts[token]
        return b"" if text.startswith("<|") and not special else text.encode()

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.token_bytes(t, special=special) for t in tokens).decode()

    def suggested_sampling(self) -> dict[str, float]:
        return dict(self.suggested)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        self.thoughts.append(thinking)
        turns = for_template(None, messages, tools)
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in turns)
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    # generate

    @property
    def tokens(self) -> list[int]:
        return [*self._tokens, *([] if self._pending is None else [self._pending])]

    def generate(
        self,
        prompt: Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] | None = None,
        cancel: Cancel | None = None,
        ignore_eos: bool = False,
        interject: Callable[[], Sequence[int]] | None = None,
        parts: Callable[[], object] | None = None,
    ) -> Iterator[Event]:
        del ignore_eos
        try:
            yield from self._generate(list(prompt or self.tokens), max_tokens, sampling, stop, cancel, interject)
        finally:
            self.finished.set()

    def _generate(
        self,
        tokens: list[int],
        max_tokens: int | None,
        sampling: SamplingConfig | None,
        stop: Sequence[str] | None,
        cancel: Cancel | None,
        interject: Callable[[], Sequence[int]] | None,
    ) -> Iterator[Event]:
        self.finished.clear()
        if len(tokens) > self.config.n_ctx:
            raise UsageError(
                f"a prompt of {len(tokens)} tokens exceeds the context of {self.config.n_ctx}",
                where="--ctx",
                fix=f"give --ctx {len(tokens) + 512} or more",
            )
        n_cached = self._rewind(tokens)
        self._pending = None
        start_s = time.perf_counter()
        for i in range(n_cached, len(tokens), self.config.n_batch):
            if cancel is not None and cancel.is_set():
                yield Done("cancelled", len(tokens), n_cached, 0, time.perf_counter() - start_s, 0.0)
                return
            time.sleep(self.batch_s)
            batch = tokens[i : i + self.config.n_batch]
            self.n_read += len(batch)
            self._decode(batch)
            yield Prefill(len(self._tokens), len(tokens), time.perf_counter() - start_s)
        first_s = time.perf_counter()
        if max_tokens == 0:
            yield Done("length", len(tokens), n_cached, 0, first_s - start_s, 0.0)
            return
        text = self.detokenize(tokens, special=True)
        self.prompts.append(text)
        self.samplings.append(sampling)
        script = type(self).script
        n = self.n_answers
        answer = script(text, n) if callable(script) else script[min(n, len(script) - 1)]
        self.n_answers += 1
        reason, n, stream = "stop", 0, TextStream(stop or ())
        for token in self._interrupted(self.tokenize(answer), interject):
            if self._pending is not None:
                if len(self._tokens) >= self.config.n_ctx:
                    reason = "context"
                    break
                self._decode([self._pending])
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            self._pending = token
            n += 1
            if self.tokens_per_s is not None:
                time.sleep(max(0.0, first_s + n / self.tokens_per_s - time.perf_counter()))
            yield Token(token, stream.push(self.token_bytes(token)), n)
            if n == max_tokens:
                reason = "length"
                break
        else:
            if self._pending is not None:
                self._decode([self._pending])
            self._pending = self.tokenize(END)[0]
        yield Done(reason, len(tokens), n_cached, n, first_s - start_s, time.perf_counter() - first_s)  # type: ignore[arg-type]

    def _interrupted(self, script: list[int], interject: Callable[[], Sequence[int]] | None) -> Iterator[int]:
        """The tokens of the script; where others come in their place, it goes on with the answer, as a model would."""
        while script:
            put = list(interject() if interject is not None else ())
            yield from put
            if put:
                script = self.tokenize(self.detokenize(script).partition("</think>")[2])
            if script:
                yield script.pop(0)

    def _rewind(self, tokens: Sequence[int]) -> int:
        n = 0
        while n < min(len(tokens) - 1, len(self._tokens)) and tokens[n] == self._tokens[n]:
            n += 1
        if n < len(self._tokens):
            if n < self._pos_whole:
                n, self._pos_whole = 0, 0
            self._tokens = self._tokens[:n]
            self._kept = [p for p in self._kept if p < n]
        return n

    def _decode(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._kept.append(len(self._tokens))
            self._tokens.append(token)
        if self.eviction is None:
            return
        keep, window, budget = self.eviction.n_keep, self.eviction.window, self.eviction.budget_tokens
        if len(self._kept) > budget + window:
            self._n_rounds += 1
            self._n_evicted += len(self._kept) - budget
            first, last = self._kept[:keep], self._kept[-window:]
            # every other one of the middle, from the back: the oldest fade first
            middle = self._kept[keep:-window][::-1]
            n_middle = budget - keep - window
            self._kept = sorted(
                [*first, *middle[: n_middle // 2], *middle[n_middle // 2 :: 2][: -(-n_middle // 2)], *last]
            )
            self._pos_whole = len(self._tokens) - window

    def reset(self) -> None:
        self._tokens, self._kept, self._pending, self._pos_whole = [], [], None, 0

    # look, save, restore

    def stats(self) -> RuntimeStats:
        n_cells = self.config.n_ctx
        if self.eviction:
            n_cells = self.eviction.budget_tokens + self.eviction.window + self.config.n_batch
        return RuntimeStats(
            n_ctx=self.config.n_ctx,
            n_past=len(self._tokens),
            n_cells=n_cells,
            n_cells_used=len(self._kept),
            n_evictions=self._n_rounds,
            tokens_evicted=self._n_evicted,
            evict_ms=2.5 * self._n_rounds,
            kv_bytes=n_cells << 14,
            kv_bytes_full=self.config.n_ctx << 14,
            pos_whole=self._pos_whole,
            mode=self.eviction.mode if self.eviction else None,
            budget_tokens=self.eviction.budget_tokens if self.eviction else None,
        )

    def heads_holding(self) -> NDArray[np.int32]:
        held = np.zeros((12, len(self._tokens)), np.int32)
        kept = np.array(self._kept, np.int64)
        for il in range(12):
            held[il, kept] = 2
            held[il, kept[: len(kept) // 2][il % 3 :: 3]] = 1
        return held

    @property
    def layout_id(self) -> str:
        return "0123456789ab"

    def snapshot(self, rows: Path | None = None) -> Snapshot:
        return Snapshot(
            model=self.path.name,
            context={"evicts": self.eviction is not None},
            tokens=list(self._tokens),
            pending=self._pending,
            state=json.dumps([self._kept, [self._texts[t] for t in self._tokens]]).encode(),
            pos_whole=self._pos_whole,
        )

    def restore(self, snapshot: Snapshot) -> None:
        if snapshot.model != self.path.name:
            raise StateError(f"was saved with another model ({snapshot.model}, this is {self.path.name})")
        kept, texts = json.loads(snapshot.state)
        self._texts.update(zip(snapshot.tokens, texts, strict=True))
        self._kept, self._tokens, self._pending = kept, list(snapshot.tokens), snapshot.pending
        self._pos_whole = snapshot.pos_whole
        self.n_restored += 1
