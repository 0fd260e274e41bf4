"""matmix: every sequence mixer is a structured matrix with a fast product."""

from matmix import matrices, mixers
from matmix.matrices import Matrix
from matmix.mixers import (
    Mixer,
    Traits,
    create_mixer,
    create_mixers,
    list_mixers,
    mixer_info,
    register,
)
from matmix.ops.marks import no_weight_decay, optim_settings
from matmix.ops.seed import fork_seed
from matmix.ops.sizes import LengthError
from matmix.projection import Projection, list_projections, project, projection_info, register_projection
from matmix.published import load_published
from matmix.training import after_step, auxiliary_losses

__all__ = [
    "LengthError",
    "Matrix",
    "Mixer",
    "Projection",
    "Traits",
    "after_step",
    "auxiliary_losses",
    "create_mixer",
    "create_mixers",
    "fork_seed",
    "list_mixers",
    "list_projections",
    "load_published",
    "matrices",
    "mixer_info",
    "mixers",
    "no_weight_decay",
    "optim_settings",
    "project",
    "projection_info",
    "register",
    "register_projection",
]
