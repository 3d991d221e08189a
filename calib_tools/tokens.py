"""Calibration text to the tokens that a model reads: the same for every engine.

llama.cpp's tokenizer on the file's own vocabulary, loaded without the weights. A conversation is written in the model's
chat template first, for that is the form in which a model will read most of what it reads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triattn_local import native
from triattn_local.errors import CalibrationError

from .corpus import Corpus, Document, share_out, turns

MIN_TOKENS = 512
"""fewer leave the centres of rare directions to chance"""

SKIP_TOKENS = 16
"""first tokens of each sequence that are not counted. The very first is an attention sink: its queries lie 1.4 to 1.6
times as far from the centre as others and are down to half as long, and it takes some 16 tokens until that has worn
off (three models of the Llama, Gemma 3 and Qwen2 families). The queries to be foreseen come much later."""


class Tokenizer:
    """The vocabulary of a loaded model.

    Parameters
    ----------
    model : llama_model pointer
        Must outlive the tokenizer.
    path : Path
        Named in errors.
    """

    def __init__(self, model: Any, path: Path) -> None:
        import llama_cpp

        self.path = path
        self._llama = llama_cpp
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)

    @property
    def bos(self) -> int | None:
        """Token that begins every text of this model; None if it has none."""
        has_one = self._llama.llama_vocab_get_add_bos(self._vocab)
        return int(self._llama.llama_vocab_bos(self._vocab)) if has_one else None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, without a BOS.

        Parameters
        ----------
        special : bool
            Control tokens written in the text become such; else they stay text.
        """
        raw = text.encode("utf-8")
        n = len(raw)
        # byte tokens can outnumber the bytes, since a space may become a character of three; then -n are needed
        for _ in range(2):
            tokens = (self._llama.llama_token * n)()
            n_token = int(self._llama.llama_tokenize(self._vocab, raw, len(raw), tokens, n, False, special))
            if n_token >= 0:
                return list(tokens[:n_token])
            n = -n_token
        raise CalibrationError("the model's tokenizer fails on the calibration text", where=str(self.path))

    def encode_document(self, document: Document) -> list[int]:
        """Tokens of a document, its conversations in the model's chat template if it has one that takes them."""
        if not document.is_dialogue or self._template is None:
            return self.encode(document.text)
        tokens: list[int] = []
        for part in document.text.split("\n---\n"):
            messages = turns(part)
            prompt = None if messages is None else self._render(messages)
            tokens += self.encode(part) if prompt is None else self.encode(prompt, special=True)
        return tokens

    @property
    def _template(self) -> str | None:
        n = 1 << 20
        buffer = ctypes.create_string_buffer(n)
        if self._llama.llama_model_meta_val_str(self._model, b"tokenizer.chat_template", buffer, n) < 0:
            return None
        return buffer.value.decode("utf-8", "replace")

    def _render(self, messages: list[dict[str, str]]) -> str | None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        bos, eos = (self._text(f(self._vocab)) for f in (self._llama.llama_vocab_bos, self._llama.llama_vocab_eos))
        try:
            formatter = Jinja2ChatFormatter(str(self._template), eos, bos, add_generation_prompt=False)
            prompt = str(formatter(messages=messages).prompt)
        except Exception:  # the template is a program of the model's maker, and may refuse whatever it likes
            return None
        # the BOS stands before the whole sequence already
        return prompt.removeprefix(bos) if bos and self.bos is not None else prompt

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        buffer = ctypes.create_string_buffer(256)
        n = self._llama.llama_token_to_piece(self._vocab, token, buffer, 256, 0, True)
        return buffer.raw[: max(0, n)].decode("utf-8", "replace")


@contextmanager
def open_tokenizer(path: Path) -> Iterator[Tokenizer]:
    """The tokenizer of a model file, without its weights.

    Raises
    ------
    BackendMissingError
        There is no llama.cpp.
    CalibrationError
        llama.cpp cannot read the vocabulary.
    """
    native.library()
    import llama_cpp

    llama_cpp._logger.set_verbose(False)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise CalibrationError("llama.cpp cannot read its vocabulary", where=str(path))
    try:
        yield Tokenizer(model, path)
    finally:
        llama_cpp.llama_model_free(model)


def sequences(tokenizer: Tokenizer, corpus: Corpus, n_tokens: int, n_longest: int) -> list[list[int]]:
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
    head = [] if tokenizer.bos is None else [tokenizer.bos]
    documents = [tokenizer.encode_document(document) for document in corpus.documents]
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
