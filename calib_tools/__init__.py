"""Calibration: the centres of a model's queries, measured on text, into its GGUF.

torch is used in this package and nowhere else; the engine and the runtime need only what ``convert`` writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from triattn_local.errors import BackendMissingError


@contextlib.contextmanager
def torch_wanted() -> Iterator[None]:
    """Say how to get torch where an import inside lacks it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendMissingError(
            "torch is not installed", where="calibration", fix="pip install '.[calib]' in the folder of triattn-local"
        ) from None
