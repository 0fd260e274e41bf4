"""See the matrices of a model: capture them, measure them, draw them."""

from matmix.inspect.pictures import gallery, show
from matmix.inspect.probes import Description, RankPattern, describe, rank_pattern
from matmix.inspect.recording import matrices, record

__all__ = ["Description", "RankPattern", "describe", "gallery", "matrices", "rank_pattern", "record", "show"]
