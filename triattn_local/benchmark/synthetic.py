"""Files of known shapes with random weights, kept in the user's cache: what ``bench --geometry`` measures."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from ..errors import UsageError
from ..geometry import Geometry, write_geometry
from ..support.progress import Count
from ..version import __version__


def default_folder() -> Path:
    return platformdirs.user_cache_path("triattn-local") / "geometries"


def geometry_file(geometry: Geometry, progress: Count, folder: Path | None = None) -> Path:
    """The file of a geometry, or of the first layers of one; written if it is not there yet.

    Raises
    ------
    DoesNotFitError
        The disk does not hold it.
    UsageError
        The folder cannot be written.
    """
    folder = folder or default_folder()
    path = folder / f"{geometry.name}-{geometry.n_layer}-layers-{__version__}.gguf"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"is no folder: {error.strerror}", where=str(folder), fix="make room for it") from None
    return write_geometry(geometry, path, progress)
