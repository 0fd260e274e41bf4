"""The commands that look at a model without training it: cost, picture."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import tyro


def cost(
    what: tyro.conf.Positional[str],
    *,
    img_size: tuple[int, ...] = (),
    dim: int = 64,
    length: int = 64,
    grid: tuple[int, int] | None = None,
    imports: tuple[str, ...] = (),
) -> int:
    """Count parameters, multiply-accumulates and FFT operations of one forward of a model or a mixer.

    Args:
        what: model, such as caformer_s18 or "convformer_s18(depths=(2, 2, 4, 2))"; or the spec of a mixer.
        img_size: of the image for a model, one number or height and width. Default: the model's own.
        dim: width of a mixer.
        length: tokens of a mixer.
        grid: rows and columns of tokens, instead of a length.
        imports: Python files or modules to import first; they register mixers.
    """
    import torch

    from matmix.cost import count
    from matmix.experiments.models import create_model
    from matmix.experiments.plugins import import_all
    from matmix.inspect.recording import outer_mixers
    from matmix.mixers import create_mixer

    import_all(imports)
    if len(img_size) > 2 or any(side < 1 for side in img_size):
        raise ValueError(f"--img-size is one positive number or two, got {' '.join(map(str, img_size))}")
    if not _is_mixer(what):
        size = img_size * 2 if len(img_size) == 1 else img_size
        made = create_model(what, **({"img_size": size} if size else {}))
        channels, *own = made.pretrained_cfg["input_size"]  # type: ignore[index]
        channels = getattr(made, "in_chans", channels)
        where = tuple(size or getattr(made, "img_size", own))
        inputs, options = torch.zeros(1, channels, *where), {}
    elif img_size:
        raise ValueError(f"--img-size is for models; {what!r} is a mixer: give --grid ROWS COLUMNS")
    else:
        where = grid or (length,)
        made = create_mixer(what, dim, where)
        inputs, options = torch.zeros(1, torch.Size(where).numel(), dim), {"grid": where}
    report = count(made, inputs, **options)
    # A fixed random matrix is a buffer of its mixer; published counts name it beside the parameters.
    frozen = report.parameters - report.trainable
    frozen += sum(buffer.numel() for mixer in outer_mixers(made).values() for buffer in mixer.buffers())
    print(f"{what} for one input of {' x '.join(map(str, inputs.shape[1:]))}")
    print(f"parameters        {report.trainable:>18,}" + (f"  and {frozen:,} frozen" if frozen else ""))
    print(f"MACs              {report.macs:>18,}")
    print(f"FFT operations    {report.fft_flops:>18,}  (5 N log2 N for N complex points; two take the time of one MAC)")
    if report.uncounted:
        print(f"not counted: {', '.join(report.uncounted)}")
    return 0


def _is_mixer(spec: str) -> bool:
    from matmix.mixers import list_mixers
    from matmix.spec import parse_spec

    try:
        return all(call.name in list_mixers() for call in parse_spec(spec))
    except ValueError:  # names of models may have dots
        return False


def picture(words: Sequence[str]) -> int:
    """Draw what a model sees in an image: its receptive field, its filters' spectra, its matrices, its evidence."""
    kinds = {entry.name: entry for entry in entry_points(group="matmix.pictures")}
    kind = words[0] if words and not words[0].startswith("-") else None
    given = tyro.cli(
        _Picture,
        prog=f"matmix picture {kind or '{' + ','.join(sorted(kinds)) + '}'}",
        description=picture.__doc__,
        args=list(words[1:] if kind else words),
    )
    if kind not in kinds:
        close = difflib.get_close_matches(kind or "", kinds, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(kinds)) or 'none'}"
        raise ValueError(f"name the kind of picture first: {hint}")
    from matmix.experiments.models import create_model
    from matmix.experiments.weights import load_weights

    options: dict[str, Any] = {"img_size": given.img_size} if given.img_size else {}
    options |= {"num_classes": given.classes} if given.classes else {}
    model = create_model(given.model, **options)
    if given.weights:
        load_weights(model, given.weights, given.source)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw: Callable[..., str] = kinds[kind].load()
    print(draw(model.eval(), given.image, given.out, size=given.img_size, target=given.target))
    return 0


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """Options of every picture."""

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
    img_size: int = 0
    """Side of the square that the model sees; 0 = its own."""
    classes: int = 0
    """Number of classes of the weights; 0 = the model's own."""
    target: int | None = None
    """Class to explain (cam). Default: the one that the model takes it for."""
