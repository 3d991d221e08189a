"""Drawing the next token with llama.cpp's own samplers.

The random draw of a position is seeded by (seed, position) alone, so the same seed gives the same text again, and a
session that was saved and restored goes on as if it had not been stopped. Knows nothing of models and caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import llama_cpp

from ..config import SamplingConfig


def _position_seed(seed: int, position: int) -> int:
    """A 32-bit seed of its own for each position (splitmix64's mixing)."""
    mask = (1 << 64) - 1
    x = (((seed & 0xFFFFFFFF) << 32) + position + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & 0x7FFFFFFF


class Sampler:
    """A sampler chain for one sequence."""

    def __init__(self, config: SamplingConfig, n_vocab: int, history: Sequence[int] = ()) -> None:
        self._config = config
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        self._chain = chain
        self._free = weakref.finalize(self, llama_cpp.llama_sampler_free, chain)
        if config.repeat_penalty != 1.0 or config.presence_penalty != 0.0:
            penalties = llama_cpp.llama_sampler_init_penalties(
                n_vocab, config.repeat_last_n, config.repeat_penalty, 0.0, config.presence_penalty
            )
            llama_cpp.llama_sampler_chain_add(chain, penalties)
        if config.temperature == 0.0:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        else:
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_k(config.top_k))
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(config.top_p, 1))
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_min_p(config.min_p, 1))
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(config.temperature))
            llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(0))
        for token in history[max(len(history) - config.repeat_last_n, 0) :]:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take a token into the history that was not drawn here."""
        llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, ctx: int, position: int) -> int:
        """The token for `position`, from the last logits of the context."""
        if self._config.temperature != 0.0:
            last = llama_cpp.llama_sampler_chain_n(self._chain) - 1
            llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._chain, last))
            dist = llama_cpp.llama_sampler_init_dist(_position_seed(self._config.seed, position))
            llama_cpp.llama_sampler_chain_add(self._chain, dist)
        return int(llama_cpp.llama_sampler_sample(self._chain, ctx, -1))

    def close(self) -> None:
        self._free()
