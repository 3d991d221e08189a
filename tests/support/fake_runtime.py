"""The scripted runtime with round numbers for a report, and with every word and call kept: for ``run``."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from scripted_runtime import ScriptedRuntime

from triattn_local.config import EvictionConfig, RuntimeConfig, SamplingConfig, ThinkingConfig
from triattn_local.engine.runtime import Cancel, Done, Event, Prefill, RuntimeStats, Token

if TYPE_CHECKING:
    from typing_extensions import Self


class FakeRuntime(ScriptedRuntime):
    """What was asked of it stands in its attributes; 100 tokens of a prompt take a second, and 50 of an answer."""

    script: ClassVar[Sequence[str]] = ("The", " sea", " is", " wide", ".")
    """the tokens of the answer"""
    template: ClassVar[str] = "<chat>"
    on_load: ClassVar[Callable[[], None] | None] = None
    on_token: ClassVar[Callable[[int], None] | None] = None
    on_prefill: ClassVar[Callable[[int], None] | None] = None

    def __init__(self, path: Path, config: RuntimeConfig, eviction: EvictionConfig | None) -> None:
        super().__init__(path, config, eviction)
        self.vocabulary = SimpleNamespace(chat_template=self.template)
        self.text = ""
        self.messages: list[Mapping[str, Any]] | None = None
        self.special: tuple[bool, bool] | None = None
        self.n_past = 0
        self.asked: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """What `generate` was asked for."""
        try:
            return self.__dict__["asked"][name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def load(
        cls,
        path: Path | str,
        config: RuntimeConfig | None = None,
        eviction: EvictionConfig | None = None,
        stats_path: Path | str | None = None,
    ) -> Self:
        if cls.on_load is not None:
            cls.on_load()
        return super().load(path, config, eviction, stats_path)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        self.text, self.special = text, (add_special, parse_special)
        return list(range(len(text.split())))

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return self.text

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return b""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: ThinkingConfig | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        self.messages, self.asked["thinking"] = list(messages), thinking
        return "<chat> " + " ".join(str(message["content"]) for message in messages)

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
        self.asked |= {"max_tokens": max_tokens, "sampling": sampling, "stop": stop, "interject": interject}
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
        rounds = {"n_cells": 768, "n_evictions": 3, "tokens_evicted": 384} if self.eviction else {}
        return dataclasses.replace(
            super().stats(),
            n_past=self.n_past,
            n_cells_used=self.n_past,
            evict_ms=12.3456,
            kv_bytes=1 << 20,
            kv_bytes_full=16 << 20,
            **rounds,
        )


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
