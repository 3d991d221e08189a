"""One error tree for the whole program.

Every error says what went wrong, where, and what to do about it, and knows the exit code that the command line gives
for it. Nothing here prints: only the command line and the terminal chat catch these errors and show them.
"""

from __future__ import annotations


class TriattnError(Exception):
    """An error that a person can act on.

    Parameters
    ----------
    what : str
        What went wrong, in one clause, with the values that were seen.
    where : str, optional
        The file, key, flag or tensor that it is about.
    fix : str, optional
        The flag or command that mends it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.fix}" if self.fix else text


class UsageError(TriattnError):
    """A flag, a setting or an argument that cannot be taken."""

    exit_code = 2


class ModelNotFoundError(TriattnError):
    """The model file is missing, or is not a GGUF that can be read."""

    exit_code = 3


class DoesNotFitError(TriattnError):
    """Memory or disk does not hold what was asked for."""

    exit_code = 4


class BackendMissingError(TriattnError):
    """The patched llama.cpp, or a backend of it, is not there."""

    exit_code = 5


class StatsError(TriattnError):
    """TriAttention statistics are missing, damaged, or belong to another model."""

    exit_code = 6


class CalibrationError(TriattnError):
    """The model or the text cannot be calibrated."""


class StateError(TriattnError):
    """A saved session cannot be restored, a sequence cannot be rewound that far, or what it belongs to is closed or
    taken by somebody else."""
