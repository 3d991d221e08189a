"""A real model that is made to call a tool: its first answer is drawn by a grammar that has nothing but the call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import pytest

from triattn_local.config import SamplingConfig
from triattn_local.engine import runtime
from triattn_local.engine.sampling import Sampler


def force(patch: pytest.MonkeyPatch, name: str, arguments: Mapping[str, Any]) -> None:
    """Make the next answer of any model a call of this tool, and leave the later ones to it."""
    words = f"<tool_call>\n{json.dumps({'name': name, 'arguments': dict(arguments)})}\n</tool_call>"
    grammar = f"root ::= {json.dumps(words)}"
    generate = runtime.Runtime._generate
    vocabulary: list[Any] = []
    left = [1]

    class Forced(Sampler):
        def __init__(self, config: SamplingConfig, n_vocab: int, history: Sequence[int] = ()) -> None:
            super().__init__(config, n_vocab)
            if left[0] and vocabulary:
                left[0] -= 1
                rest = [llama_cpp.llama_sampler_chain_remove(self._chain, 0) for _ in range(self._length())]
                by = llama_cpp.llama_sampler_init_grammar(vocabulary[0], grammar.encode(), b"root")
                assert by, grammar
                for part in [by, *rest]:
                    llama_cpp.llama_sampler_chain_add(self._chain, part)

        def _length(self) -> int:
            return int(llama_cpp.llama_sampler_chain_n(self._chain))

    def with_vocabulary(self: Any, prompt: Any, max_tokens: int | None, *others: Any) -> Any:
        # what is read without an answer draws nothing
        vocabulary[:] = [] if max_tokens == 0 else [self.vocabulary._vocab]
        return generate(self, prompt, max_tokens, *others)

    patch.setattr(runtime, "Sampler", Forced)
    patch.setattr(runtime.Runtime, "_generate", with_vocabulary)
