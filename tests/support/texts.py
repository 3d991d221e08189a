"""Text for tests, made here: as varied as a few word lists allow, the same for the same seed."""

from __future__ import annotations

import random

_SUBJECTS = [
    "the old captain",
    "a young engineer",
    "my neighbour",
    "the committee",
    "her brother",
    "the river",
    "an owl",
    "the teacher",
    "a merchant",
]
_VERBS = [
    "measured",
    "remembered",
    "carried",
    "described",
    "lost",
    "repaired",
    "crossed",
    "painted",
    "counted",
    "followed",
    "sold",
    "doubted",
]
_OBJECTS = [
    "the bridge",
    "seven lamps",
    "a long letter",
    "the harbour",
    "an answer",
    "the winter road",
    "three boats",
    "a map of the coast",
]
_PLACES = [
    "near the mill",
    "before dawn",
    "in the third year",
    "under the hill",
    "without a word",
    "for no reason",
    "by the north gate",
]


def prose(n_words: int, seed: int = 0) -> str:
    """Sentences of about n_words words in all."""
    rng = random.Random(seed)
    words, sentences = 0, []
    while words < n_words:
        number = rng.randrange(1000)
        s = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {rng.choice(_PLACES)}"
        if number % 3 == 0:
            s += f", and {number} people {rng.choice(_VERBS)} it"
        words += len(s.split())
        sentences.append(s[0].upper() + s[1:] + ".")
    return " ".join(sentences)
