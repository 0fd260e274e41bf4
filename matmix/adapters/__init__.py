"""Foreign calling conventions, one a file: how a library calls what mixes tokens, in the words of matmix."""

from matmix.adapters import (
    convolution,
    mixer,
    pooling,
    timm_attention,
    timm_biased,
    token_map,
    torch_attention,
    transformers_interface,
    transformers_plain,
    unknown,
)
from matmix.adapters.base import Adapter, Attended, Call, Setting, parameters_of, parts_of
from matmix.adapters.discovery import Found, discover, observe, recognise
from matmix.adapters.registry import adapter_named, adapters, register_adapter
from matmix.adapters.rematrixed import Rematrixed, Structured, put_matrix, rematrixed
from matmix.adapters.replacement import Replacement
from matmix.adapters.site import KINDS, LEVELS, Kind, Level, Place, Prefix, Site
from matmix.adapters.timm_layer import attn_layer

__all__ = [
    "KINDS",
    "LEVELS",
    "Adapter",
    "Attended",
    "Call",
    "Found",
    "Kind",
    "Level",
    "Place",
    "Prefix",
    "Rematrixed",
    "Replacement",
    "Setting",
    "Site",
    "Structured",
    "adapter_named",
    "adapters",
    "attn_layer",
    "convolution",
    "discover",
    "mixer",
    "observe",
    "parameters_of",
    "parts_of",
    "pooling",
    "put_matrix",
    "recognise",
    "register_adapter",
    "rematrixed",
    "timm_attention",
    "timm_biased",
    "token_map",
    "torch_attention",
    "transformers_interface",
    "transformers_plain",
    "unknown",
]
