"""A mixer as timm's ``attn_layer=``: ViT and DeiT built with it from the start."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.adapters.registry import adapter_named
from matmix.adapters.replacement import Replacement
from matmix.adapters.site import Site
from matmix.mixers.registry import create_mixer, mixer_info
from matmix.spec import parse_spec

UNUSED = ("qk_norm", "scale_norm", "attn_drop", "norm_layer")  # of queries and keys, which a mixer need not have


def attn_layer(spec: str, *, length: int | None = None) -> type[nn.Module]:
    """A class that timm takes for ``attn_layer=`` (timm >= 1.0.23): the mixer of a spec in every block.

    ::

        timm.create_model("vit_tiny_patch16_224", attn_layer=attn_layer("hydra(expand=1)"))

    timm gives it the width and options of attention: heads, biases and dropout of queries, keys and probabilities are
    the mixer's own affair and are left aside, dropout of the output is applied. Models that do not take
    ``attn_layer=`` may swallow it in silence (CAFormer and Swin of timm 1.0.15): look with ``surgery.find``.

    Args:
        spec: of a mixer that is not tied to one length, or of one of ``length`` tokens.
        length: tokens, class tokens included (197 for a ViT of 14 x 14 patches).

    Raises:
        ValueError: for a spec of an unknown mixer.
    """
    mixer_info(parse_spec(spec)[0].name)

    class MixerLayer(Replacement):
        """Built as timm's attention is."""

        def __init__(self, dim: int, num_heads: int = 8, *, proj_drop: float = 0.0, **options: Any) -> None:
            device, dtype = options.pop("device", None), options.pop("dtype", None)
            for name in ("qkv_bias", "proj_bias", *UNUSED):
                options.pop(name, None)
            if options:
                raise TypeError(f"attn_layer({spec!r}) does not know the options {', '.join(options)} of this timm")
            site = Site(
                "",
                "self_attention",
                "timm_attention",
                dim,
                "Attention",
                heads=num_heads,
                length=length,
                parameters=("x", "attn_mask", "is_causal"),
            )
            mixer = create_mixer(spec, dim, None if length is None else (length,))
            super().__init__(site, adapter_named("timm_attention"), mixer)
            self.proj_drop = nn.Dropout(proj_drop)
            self.to(device, dtype)

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.proj_drop(super().forward(*args, **kwargs))

    MixerLayer.__name__ = MixerLayer.__qualname__ = f"MixerLayer[{spec}]"
    return MixerLayer
