"""A small grid that tells in some minutes whether forgetting works for a model: the scores must beat chance.

If the centres did not belong to the model, or the score were wrong, the tokens kept would be as good as any: the KL
divergence from full attention would be that of the random policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from triattn_local.config import EvictionConfig
from triattn_local.errors import StatsError

from .methods import FULL, METHODS
from .runner import Grid, Line
from .summary import MAIN, summarise
from .tasks import TASKS, Size

LIMIT = 0.75
"""most that the KL divergence may be of that of random eviction"""

_CHANCE = "random"


def quick_grid(eviction: EvictionConfig) -> Grid:
    """Two texts of 1,024 tokens, a quarter of them kept."""
    return Grid(
        tasks=(TASKS["nll"],),
        methods=tuple(METHODS[name] for name in (FULL, MAIN, "streaming", _CHANCE)),
        fractions=(0.25,),
        size=Size(n_tokens=1024, texts=("novel", "python")),
        eviction=eviction,
    )


def check(lines: Sequence[Line]) -> float:
    """KL divergence of the model's own scores over that of random eviction.

    Raises
    ------
    StatsError
        The scores are no better than chance.
    """
    kl = {row.method: row.metrics["kl"].mean for row in summarise(lines)}
    ratio = kl[MAIN] / kl[_CHANCE]
    if not ratio <= LIMIT:
        raise StatsError(
            f"what is kept is hardly better than chance: KL divergence {kl[MAIN]:.4f}, "
            f"random eviction {kl[_CHANCE]:.4f}",
            where="eval --quick",
            fix="measure the statistics anew: triattn-local convert --force",
        )
    return ratio
