"""A runtime that plays a script: what ``run`` does with its events is tested without a model.

``FakeRuntime.load`` stands in for ``Runtime.load``; what was asked of it is kept in ``FakeRuntime.loads`` and in the
instance.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar

from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig, ThinkingConfig
from triattn_local.engine.runtime import Cancel, Done, Event, Prefill, RuntimeStats, Token

ANSWER = ("The", " sea", " is", " wide", ".")


class FakeRuntime:
    loads: ClassVar[list[FakeRuntime]] = []
    script: ClassVar[Sequence[str]] = ANSWER
    template: ClassVar[str] = "<chat>"
    suggested: ClassVar[dict[str, float]] = {}
    on_load: ClassVar[Callable[[], None] | None] = None
    on_token: ClassVar[Callable[[int], None] | None] = None
    on_prefill: ClassVar[Callable[[int], None] | None] = None

    def __init__(self, path: Path, config: RuntimeConfig, eviction: EvictionConfig | None, stats: Path | None) -> None:
        self.path, self.config, self.eviction, self.stats_path = path, config, eviction, stats
        self.closed = False
        self.text = ""
        self.messages: list[dict[str, Any]] | None = None
        self.special: tuple[bool, bool] | None = None
        self.max_tokens: int | None = None
        self.sampling: SamplingConfig | None = None
        self.stop: Sequence[str] | None = None
        self.thinking: ThinkingConfig | None = None
        self.interject: Callable[[], Sequence[int]] | None = None
        self.vocabulary = SimpleNamespace(chat_template=self.template)
        self.n_past = 0

    @classmethod
    def load(
        cls,
        path: Path,
        config: RuntimeConfig | None = None,
        eviction: EvictionConfig | None = None,
        stats_path: Path | None = None,
    ) -> FakeRuntime:
        if cls.on_load is not None:
            cls.on_load()
        runtime = cls(path, config or RuntimeConfig(), eviction, stats_path)
        cls.loads.append(runtime)
        return runtime

    def __enter__(self) -> FakeRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        self.text, self.special = text, (add_special, parse_special)
        return list(range(len(text.split())))

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return self.text

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return b""

    def suggested_sampling(self) -> dict[str, float]:
        return dict(self.suggested)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        thinking: ThinkingConfig | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        self.messages, self.thinking = list(messages), thinking
        return "<chat> " + " ".join(str(message["content"]) for message in messages)

    def generate(
        self,
        prompt: Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] | None = None,
        cancel: Cancel | None = None,
        interject: Callable[[], Sequence[int]] | None = None,
        parts: Callable[[], object] | None = None,
    ) -> Iterator[Event]:
        self.max_tokens, self.sampling, self.stop, self.interject = max_tokens, sampling, stop, interject
        n_prompt = len(prompt or ())
        for n_done in range(1, n_prompt + 1):
            self.n_past = n_done
            yield Prefill(n_done, n_prompt, n_done / 100)
            if type(self).on_prefill is not None:
                type(self).on_prefill(n_done)
            if cancel is not None and cancel.is_set():
                yield Done("cancelled", n_prompt, 0, 0, n_done / 100, 0.0)
                return
        reason, n = "stop", 0
        for n, text in enumerate(self.script, 1):
            self.n_past += 1
            yield Token(n, text, n)
            if type(self).on_token is not None:
                type(self).on_token(n)
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            if n == max_tokens:
                reason = "length"
                break
        yield Done(reason, n_prompt, 0, n, n_prompt / 100, n / 50)  # type: ignore[arg-type]

    def stats(self) -> RuntimeStats:
        return RuntimeStats(
            n_ctx=self.config.n_ctx,
            n_past=self.n_past,
            n_cells=768 if self.eviction else self.config.n_ctx,
            n_cells_used=self.n_past,
            n_evictions=3 if self.eviction else 0,
            tokens_evicted=384 if self.eviction else 0,
            evict_ms=12.3456,
            kv_bytes=1 << 20,
            kv_bytes_full=16 << 20,
            pos_whole=0,
            mode=self.eviction.mode if self.eviction else None,
            budget_tokens=self.eviction.budget_tokens if self.eviction else None,
        )


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
