"""`matmix picture KIND`: the options of each picture, and from them the model that it is drawn of.

The functions stand in the entry-point group `matmix.pictures`; their arguments are the options of the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from matmix.experiments.models import create_model
from matmix.experiments.weights import load_weights
from matmix.ranges import Whole
from matmix.settings import Settings
from vision import pictures


@dataclass(frozen=True, kw_only=True)
class Look(Settings):
    """A model, an image, and where the picture goes."""

    model: str
    """Name, or a call with options, such as "convformer_s18(depths=(2, 2, 4, 2))"."""
    image: Path
    """The image that the model gets."""
    out: Path
    """Picture to write; its ending picks the format (png, svg, pdf)."""
    weights: Path | None = None
    """File of weights, one's own or published; absent: the initial ones."""
    source: str = ""
    """owner/repo of the published code that wrote them; absent: found by the names of the weights."""
    img_size: Whole = 0
    """Side of the square that the model sees; 0 = its own."""
    classes: Whole = 0
    """Number of classes of the weights; 0 = the model's own."""

    def made(self) -> nn.Module:
        """The model with its weights, in eval mode; the folder of the picture is there then."""
        options: dict[str, Any] = {"img_size": self.img_size} if self.img_size else {}
        options |= {"num_classes": self.classes} if self.classes else {}
        model = create_model(self.model, **options)
        if self.weights:
            load_weights(model, self.weights, self.source)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        return model.eval()


def receptive_field(look: Look) -> str:
    """How much each pixel moves the middle of every stage's map."""
    return pictures.receptive_field(look.made(), look.image, look.out, size=look.img_size)


def spectra(look: Look) -> str:
    """Which spatial frequencies the token mixers pass, stage by stage."""
    return pictures.spectra(look.made(), look.image, look.out, size=look.img_size)


def matrices(look: Look) -> str:
    """The mixing matrices, stage by stage."""
    return pictures.stage_matrices(look.made(), look.image, look.out, size=look.img_size)


def cam(look: Look, *, target: int | None = None) -> str:
    """Where the evidence for a class lies in the image.

    Args:
        target: class to explain. Default: the three that the model takes it for most.
    """
    return pictures.class_activation(look.made(), look.image, look.out, size=look.img_size, target=target)
