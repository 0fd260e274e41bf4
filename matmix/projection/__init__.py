"""The nearest matrix of a class: what structure a matrix has, and how far it is from having it."""

from matmix.projection import factors, patterns, semiseparable, shifts
from matmix.projection.base import (
    Projection,
    ProjectionInfo,
    list_projections,
    project,
    projection_info,
    register_projection,
)

__all__ = [
    "Projection",
    "ProjectionInfo",
    "factors",
    "list_projections",
    "patterns",
    "project",
    "projection_info",
    "register_projection",
    "semiseparable",
    "shifts",
]
