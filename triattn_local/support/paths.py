"""Names that people give for files, looked at without surprises, and text files as people's editors write them.

``pathlib`` raises where one may not look, where a name is too long, and where ``~somebody`` is nobody, and does so
differently from one Python to the next. Here such a name is one that nothing has; ``refusal`` says why.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def expanded(name: str | Path) -> Path:
    """With the home folder in the place of a leading ``~``, if that user has one."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own raises


def is_file(path: Path) -> bool:
    """Whether a file can be seen there."""
    return os.path.isfile(path)  # noqa: PTH113


def is_dir(path: Path) -> bool:
    """Whether a folder can be seen there."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Whether anything can be seen there."""
    return os.path.exists(path)  # noqa: PTH110


def refusal(path: Path) -> str | None:
    """Why it cannot be told what is there, such as "Permission denied"; None where it can, or where nothing is."""
    try:
        path.stat()
    except OSError as error:
        return None if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG) else error.strerror
    except ValueError:  # a null character
        return None
    return None


def shown(name: str) -> str:
    """A file's name as text, which it need not be: for what is written into files of ours."""
    return os.fsencode(name).decode("utf-8", "replace")


def decode(data: bytes) -> str:
    """A text file in UTF-8, without the mark that some editors put before it.

    Raises
    ------
    UnicodeDecodeError
        It is something else.
    """
    return data.decode("utf-8-sig")
