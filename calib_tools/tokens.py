"""Calibration text to the tokens that a model reads: the same for every engine.

llama.cpp's tokenizer on the file's own vocabulary, loaded without the weights. A conversation is written in the model's
chat template first, for that is the form in which a model will read most of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from triattn_local.engine.contexts import Model
from triattn_local.engine.vocabulary import Vocabulary
from triattn_local.errors import CalibrationError, ModelNotFoundError, TriattnError, UsageError

from .corpus import Corpus, Document, share_out, turns

MIN_TOKENS = 512
"""fewer leave the centres of rare directions to chance"""

SKIP_TOKENS = 16
"""first tokens of each sequence that are not counted. The very first is an attention sink: its queries lie 1.4 to 1.6
times as far from the centre as others and are down to half as long, and it takes some 16 tokens until that has worn
off (three models of the Llama, Gemma 3 and Qwen2 families). The queries to be foreseen come much later."""


def encode_document(vocabulary: Vocabulary, document: Document) -> list[int]:
    """Tokens of a document, its conversations in the model's chat template if it has one that takes them."""

    def plain(text: str) -> list[int]:
        return vocabulary.tokenize(text, add_special=False)

    if not document.is_dialogue or vocabulary.chat_template is None:
        return plain(document.text)
    tokens: list[int] = []
    for part in document.text.split("\n---\n"):
        messages = turns(part)
        if messages is None:
            tokens += plain(part)
            continue
        try:
            prompt = vocabulary.apply_chat_template(messages, add_generation_prompt=False)
        except UsageError:  # the template is a program of the model's maker, and may refuse whatever it likes
            tokens += plain(part)
        else:
            tokens += vocabulary.tokenize(prompt, add_special=False, parse_special=True)
    return tokens


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of a model file, without its weights.

    Raises
    ------
    BackendMissingError
        There is no llama.cpp.
    CalibrationError
        llama.cpp cannot read the vocabulary.
    """
    try:
        model = Model(path, vocab_only=True)
    except ModelNotFoundError:
        raise
    except TriattnError as error:
        raise CalibrationError("llama.cpp cannot read its vocabulary", where=str(path)) from error
    with model:
        yield model.vocabulary


def sequences(vocabulary: Vocabulary, corpus: Corpus, n_tokens: int, n_longest: int) -> list[list[int]]:
    """A corpus as sequences that are read one by one, each from position 0 and with the model's BOS.

    Parameters
    ----------
    n_tokens : int
        Tokens of text, evenly from all documents; fewer if there are fewer.
    n_longest : int
        Tokens of one sequence.

    Raises
    ------
    CalibrationError
        The text is too short.
    """
    head = [] if vocabulary.bos is None else [vocabulary.bos]
    documents = [encode_document(vocabulary, document) for document in corpus.documents]
    pieces = [piece for piece in share_out(documents, n_tokens, n_longest - len(head)) if len(piece) > SKIP_TOKENS]
    n_counted = sum(len(piece) + len(head) - SKIP_TOKENS for piece in pieces)
    if n_counted < MIN_TOKENS * 3 // 4:
        raise CalibrationError(
            f"has {sum(map(len, documents))} tokens, too few to calibrate on",
            where=corpus.name,
            fix=f"give {2 * MIN_TOKENS} tokens of text or more, or leave out --corpus to use the bundled text",
        )
    return [head + piece for piece in pieces]


def text_bytes(sequence: Sequence[int]) -> bytes:
    """A sequence of tokens as bytes, to hash."""
    return b"".join(token.to_bytes(4, "little") for token in sequence)
