"""The text that a model is calibrated on: what it is, where it came from, and how much of which part is taken.

The centres of queries hardly depend on the text as long as it is varied, so the bundled mix of prose, code,
mathematics, conversation, step-by-step reasoning, structured documents and other languages does for most models. Text
that is not varied, one line over and over, gives centres that look perfect and are wrong: it is refused.

Knows nothing of models; tokens are numbers here.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from triattn_local.errors import CalibrationError
from triattn_local.support.paths import decode, shown

BUNDLED_NAME = "triattn-local mix 1"
HELDOUT_NAME = "triattn-local held-out 1"

MIN_COMPRESSED = 0.1
"""zlib leaves a third of ordinary text, a quarter of source code, and a hundredth of a repeated line"""
MIN_DISTINCT = 0.2
"""share of the text in lines that do not repeat an earlier one: catches repeats that are too far apart for zlib"""

_DIALOGUE = "dialogue.txt"

_FIX = "give other text with --corpus, or leave it out to use the bundled text"


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    name: str
    text: str
    is_dialogue: bool = False
    """holds conversations of user and assistant, see ``turns``"""


@dataclass(frozen=True)
class Corpus:
    """Texts to calibrate on, in the order in which they were named."""

    name: str
    documents: tuple[Document, ...]

    @property
    def sha256(self) -> str:
        """Hash of all texts behind one another; for a single file, the hash of that file."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.text.encode("utf-8"))
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """What the statistics say about where they come from."""
        return f"{self.name} sha256:{self.sha256}"


def bundled_corpus() -> Corpus:
    """The mix that comes with the program: 48 kB in seven documents, written for it, CC0."""
    return Corpus(BUNDLED_NAME, _documents("data"))


def heldout_corpus() -> Corpus:
    """Three other texts, to measure on what was not calibrated on: 15 kB of prose, code and reasoning, CC0 too."""
    return Corpus(HELDOUT_NAME, _documents("heldout"))


def read_corpus(paths: Sequence[Path]) -> Corpus:
    """A corpus of one's own files, each one document.

    Raises
    ------
    CalibrationError
        A file that is missing, empty or not UTF-8, or text that repeats itself.
    """
    documents = []
    for path in paths:
        try:
            text = decode(path.read_bytes())
        except OSError as error:
            raise CalibrationError(f"cannot be read: {error.strerror}", where=str(path)) from None
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}",
                where=str(path),
                fix="convert it, for example with: iconv -f latin1 -t utf-8",
            ) from None
        check_varied(text, path)
        documents.append(Document(shown(path.name), text))
    if not documents:
        raise CalibrationError("no calibration text", fix=_FIX)
    return Corpus(", ".join(document.name for document in documents), tuple(documents))


def share_out(documents: Sequence[Sequence[int]], n_tokens: int, n_chunk: int) -> list[list[int]]:
    """Take equally much of each document, from its beginning, in pieces that fit into one context.

    Parameters
    ----------
    documents : sequence of token sequences
    n_tokens : int
        Tokens to take in all; what a short document lacks, the longer ones give.
    n_chunk : int
        Longest piece.

    Returns
    -------
    list of token lists
        No more than ``n_tokens`` tokens in all, fewer if there are not so many.
    """
    pieces: dict[int, list[list[int]]] = {}
    n_left = n_tokens
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    for n_done, i in enumerate(by_length):
        n_take = min(len(documents[i]), n_left // (len(documents) - n_done))
        n_left -= n_take
        n_piece = -(-n_take // n_chunk)
        bounds = [n_take * j // n_piece for j in range(n_piece + 1)] if n_piece else [0]
        pieces[i] = [list(documents[i][a:b]) for a, b in itertools.pairwise(bounds)]
    return [piece for i in range(len(documents)) for piece in pieces[i]]


def turns(text: str) -> list[dict[str, str]] | None:
    """Messages of a conversation whose turns begin with "User:" and "Assistant:"; None if it is something else."""
    pieces = re.split(r"^(User|Assistant):\s*", text.strip(), flags=re.MULTILINE)
    if len(pieces) < 5 or pieces[0]:
        return None
    roles, contents = pieces[1::2], pieces[2::2]
    return [{"role": r.lower(), "content": c.strip()} for r, c in zip(roles, contents, strict=True)]


def _documents(folder: str) -> tuple[Document, ...]:
    entries = resources.files(__package__).joinpath(folder).iterdir()
    texts = sorted((entry for entry in entries if entry.name.endswith(".txt")), key=lambda entry: entry.name)
    return tuple(Document(t.name, t.read_bytes().decode("utf-8"), t.name == _DIALOGUE) for t in texts)


def check_varied(text: str, path: Path) -> None:
    """Check that a text says many different things.

    Raises
    ------
    CalibrationError
        It is empty, or says one thing over and over.
    """
    raw = text.encode("utf-8")
    if not text.strip():
        raise CalibrationError("is empty", where=str(path), fix=_FIX)
    lines = raw.splitlines()
    distinct = sum(map(len, set(lines))) / max(1, sum(map(len, lines)))
    if len(zlib.compress(raw)) < MIN_COMPRESSED * len(raw) or distinct < MIN_DISTINCT:
        raise CalibrationError("repeats itself, and so would its centres", where=str(path), fix=_FIX)
