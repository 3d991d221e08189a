"""Models without their weights: exact shapes of known ones, and synthetic files that have them."""

from __future__ import annotations

from .shapes import GEOMETRIES, Geometry, Tensor, find_geometry
from .writing import geometry_bytes, write_geometry, write_outline

__all__ = [
    "GEOMETRIES",
    "Geometry",
    "Tensor",
    "find_geometry",
    "geometry_bytes",
    "write_geometry",
    "write_outline",
]
