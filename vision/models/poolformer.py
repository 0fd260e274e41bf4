"""PoolFormer and the ablations of its repository: "MetaFormer Is Actually What You Need for Vision", arXiv 2111.11418.

Weights: https://github.com/sail-sg/poolformer/releases/tag/v1.0, ``poolformer_{s12,s24,s36,m36,m48}.pth.tar`` and those
of the ablations, ``metaformer_{id_s12,pppa_s12_224,ppaa_s12_224,pppf_s12_224,ppff_s12_224}.pth.tar``::

    model = vision.create_model("poolformer_s12")
    state = torch.load("poolformer_s12.pth.tar", weights_only=True)
    matmix.load_published(model, state, source="sail-sg/poolformer")

timm has the same weights under its own names (``source="timm"``, or ``create_model(name, pretrained=True)``), but its
model normalises the pooled vector with a layer norm, where the authors' normalises the map before pooling: its logits
differ from theirs. Ours are the authors'; ``final_norm="pooled"`` gives timm's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from matmix.mixers import Mixer
from vision.metaformer import MetaFormer, from_timm, truncated
from vision.models.metaformer_baselines import SIZES_12
from vision.published import State, mixer_states, rename
from vision.registry import register


def _from_poolformer(model: MetaFormer, state: State) -> State:
    """Names of sail-sg/poolformer: one list ``network`` of stages, downsamplings and a position embedding."""
    patterns = [(r"^patch_embed\.proj\.", "stem.conv."), (r"\.layer_scale_([12])$", r".layer_scale\1")]
    place, norms = 0, []
    for i, stage in enumerate(model.stages):
        if i:
            patterns.append((rf"^network\.{place}\.proj\.", f"stages.{i}.downsample.conv."))
            place += 1
            if getattr(stage.downsample, "positions", None) is not None:
                patterns.append((rf"^network\.{place}\.pos_embed$", f"stages.{i}.downsample.positions.pos_embed"))
                place += 1
        patterns.append((rf"^network\.{place}\.(\d+)\.", rf"stages.{i}.blocks.\1."))
        norms.append((rf"^norm{place}\.", f"feature_norms.{i}."))
        place += 1
    patterns += [*norms, (r"^head\.", "head.fc.")]
    ours = {}
    for name, value in rename(state, patterns).items():
        if name.endswith("pos_embed"):
            value = value.permute(0, 2, 3, 1)
        ours[name] = value.flatten(1) if ".mlp." in name and value.dim() == 4 else value
    return mixer_states(model, ours, "sail-sg/poolformer")


class PoolFormer(MetaFormer):
    """The skeleton with PoolFormer's draws: only linear layers and the MLPs are normal of deviation 0.02.

    The convolutions of the stem and between the stages keep PyTorch's own initialisation.
    """

    published: ClassVar = {"sail-sg/poolformer": _from_poolformer, "timm": from_timm}

    def init_weights(self) -> None:
        for name, module in self.named_modules():
            if "token_mixer" not in name and isinstance(module, nn.Linear):
                truncated(module)

    def init_mixer(self, mixer: Mixer) -> None:
        super().init_mixer(mixer)
        matrix = getattr(mixer, "M", None)  # the dense mixer, theirs is a linear layer over positions
        if matrix is not None:
            nn.init.trunc_normal_(matrix, std=0.02)


_WEIGHTS = "https://github.com/sail-sg/poolformer/releases/download/v1.0"
_PAPER: dict[str, Any] = {"paper": "2111.11418", "source": "sail-sg/poolformer"}
_BLOCK: dict[str, Any] = {
    "final_norm": "map_bias", "norm": "map_bias", "down_norm": None, "head": "linear", "act": "gelu",
    "bias": True, "res_scale": None,
}  # fmt: skip

for _size, (_depths, _dims) in SIZES_12.items():
    register(
        f"poolformer_{_size}",
        PoolFormer,
        {
            **_BLOCK,
            "depths": _depths,
            "dims": _dims,
            "mixers": "pooling",
            "layer_scale": 1e-5 if _size in ("s12", "s24") else 1e-6,
        },
        checkpoint=f"{_WEIGHTS}/poolformer_{_size}.pth.tar",
        timm=f"poolformer_{_size}",
        crop_pct=0.95 if _size.startswith("m") else 0.9,
        **_PAPER,
    )

_ATTENTION: dict[str, Any] = {"norm": "layer_bias", "final_norm": "layer_bias", "pos_embed": True}
for _name, _mixers, _more in (
    ("metaformer_id_s12", "identity", {}),
    ("metaformer_pppa_s12_224", "pooling, pooling, pooling, attention(proj_bias=True)", _ATTENTION),
    ("metaformer_ppaa_s12_224", "pooling, pooling, attention(proj_bias=True), attention(proj_bias=True)", _ATTENTION),
    ("metaformer_pppf_s12_224", "pooling, pooling, pooling, dense(heads=1)", {}),
    ("metaformer_ppff_s12_224", "pooling, pooling, dense(heads=1), dense(heads=1)", {}),
):
    _depths, _dims = SIZES_12["s12"]
    register(
        _name,
        PoolFormer,
        {**_BLOCK, **_more, "depths": _depths, "dims": _dims, "mixers": _mixers, "layer_scale": 1e-5},
        checkpoint=f"{_WEIGHTS}/{_name}.pth.tar",
        crop_pct=0.9 if _name in ("metaformer_id_s12", "metaformer_pppf_s12_224") else 0.95,
        fixed_input_size=_name.endswith("_224"),
        **_PAPER,
    )
