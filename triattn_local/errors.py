"""One error tree for the whole program.

Every error says what went wrong, where, and what to do about it, and knows the exit code that the command line gives
for it. Nothing here prints: only the command line and the terminal chat catch these errors and show them.
"""

from __future__ import annotations

import errno
import os

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""numbers of an OSError that mean: there is no room for what is written"""


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
    """A saved session cannot be restored, a sequence not rewound that far, or what it belongs to is closed or taken."""


def from_system(error: BaseException) -> TriattnError | None:
    """What the machine refused, as an error that a person can act on; None for what is the program's own fault.

    The last net: whoever knows what was being done catches these errors where they come from, and says more.
    """
    if isinstance(error, TriattnError):
        return error
    if isinstance(error, MemoryError):
        return DoesNotFitError("out of memory", fix="give a smaller --ctx, --budget or --batch")
    if isinstance(error, OSError):
        return _refused(error)
    if isinstance(error, UnicodeDecodeError):
        at = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        return UsageError(f"a text is not {error.encoding.upper()}: {at}", fix="convert it, for example with iconv")
    if isinstance(error, UnicodeEncodeError):
        what = f"a text or a name holds U+{ord(error.object[error.start]):04X}, which {error.encoding.upper()} has not"
        return UsageError(what, fix="leave the character out, or rename the file")
    if type(error).__name__ == "UnfitProcessorError":  # llama_cpp's, which cannot be imported to compare
        return BackendMissingError(str(error))
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return DoesNotFitError("no more threads may be started", fix="raise the limit (ulimit -u)")
    return None


def _refused(error: OSError) -> TriattnError:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    where = " -> ".join(names) or None
    what = error.strerror or str(error) or type(error).__name__
    if error.errno in DISK_FULL:
        return DoesNotFitError(what, where=where, fix="make room on this disk, or write to another")
    if error.errno == errno.ENOMEM:
        return DoesNotFitError("out of memory", where=where, fix="give a smaller --ctx, --budget or --batch")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return DoesNotFitError(what, where=where, fix="raise the limit of open files (ulimit -n)")
    if error.errno in (errno.EACCES, errno.EPERM):
        return TriattnError(what, where=where, fix="this user needs the right to it")
    if error.errno == errno.EROFS:
        return TriattnError(what, where=where, fix="name a place that can be written")
    return TriattnError(what, where=where)
