"""Pictures of what a model does with one image: `matmix picture KIND --model NAME --image FILE --out PNG`.

receptive-field   how much each pixel moves the middle of every stage's map
spectra           which spatial frequencies the token mixers pass, stage by stage
matrices          the mixing matrices, stage by stage
cam               where the evidence for a class lies in the image

Each function takes the model in eval mode, draws into a file and returns what it measured, in words.
`picture_commands.py` has the options of the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from matmix.adapters import discover, observe
from matmix.inspect import matrices
from matmix.inspect.pictures import Panel, draw, kind, short
from matmix.matrices import Matrix
from vision.data.decoding import decoding, in_colour, open_file
from vision.data.images import MODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shown = tuple[str, Any, dict[str, Any]]  # title, image (or image and heat map), options of imshow
PANEL = 2.6  # inches
HEADS = 4  # drawn of each matrix, evenly spaced
TOKENS = 1024  # a larger map's matrix is drawn for its first rows of tokens


def receptive_field(model: nn.Module, image: Path, out: Path, *, size: int = 0) -> str:
    """The effective receptive field (arXiv 1701.04128) of every stage, at this image.

    The gradient of the channels' sum in the middle of a stage's map with respect to the pixels, absolute values summed
    over colours. The radius that is printed holds half of that sum, and the share of pixels holds 95 % of it.
    """
    x, shown = prepare(model, image, size)
    x.requires_grad_()
    maps = model.forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
    panels: list[Shown] = [("image", shown, {})]
    said = []
    for index, stage in enumerate(maps):
        row, column = stage.shape[2] // 2, stage.shape[3] // 2
        (gradient,) = torch.autograd.grad(stage[0, :, row, column].sum(), x, retain_graph=True)
        field = gradient[0].abs().sum(0)
        radius, share = _extent(field, (row + 0.5) / stage.shape[2], (column + 0.5) / stage.shape[3])
        said.append(f"stage {index + 1}: half within {radius:.0f} px, 95 % on {100 * share:.2g} % of the image")
        # The fourth root shows what is a ten-thousandth of the largest; linear colours show a dot.
        panels.append(
            (f"stage {index + 1}: {said[-1].partition(': ')[2]}", (field / field.max()) ** 0.25, {"cmap": "magma"})
        )
    title = f"{type(model).__name__}: effective receptive field of the middle of each stage (fourth root)"
    _panels([panels], title).savefig(out)
    return f"{out}\n" + "\n".join(said)


def spectra(model: nn.Module, image: Path, out: Path, *, size: int = 0) -> str:
    """The spectrum of a token mixer of every stage: |DFT| of what the middle token gathers from each other token.

    For a filter (a circulant matrix) that is the modulus of its learned frequencies; for any other mixer the response
    around the middle, for this image. Zero frequency stands in the centre. The mean over heads, and some heads.
    """
    x, _ = prepare(model, image, size)
    rows: list[list[Shown]] = []
    said = []
    for name, matrix, grid in _stages(model, x):
        response = torch.fft.fft2(_middle_row(matrix, grid)).abs()
        shifted = torch.fft.fftshift(response, dim=(-2, -1))
        low = _low_share(response)
        said.append(f"{name}: {kind(matrix)}, {100 * low:.0f} % of the energy below a quarter of the sampling rate")
        line = [
            (
                f"{name}, mean of {len(shifted)} heads" if len(shifted) > 1 else name,
                shifted.mean(0),
                {"cmap": "viridis"},
            )
        ]
        chosen = _chosen(len(shifted)) if len(shifted) > 1 else []
        rows.append(line + [(f"head {head}", shifted[head], {"cmap": "viridis"}) for head in chosen])
    _panels(
        rows,
        f"{type(model).__name__}: spectra of the mixing, zero frequency in the centre, each panel on its own scale",
    ).savefig(out)
    return f"{out}\n" + "\n".join(said)


def stage_matrices(model: nn.Module, image: Path, out: Path, *, size: int = 0) -> str:
    """The matrix of the last block of every stage, for this image, for some heads; of large maps a corner."""
    x, _ = prepare(model, image, size)
    rows, said = [], []
    for name, matrix, grid in _stages(model, x):
        heads = _chosen(matrix.shape[1])
        shown = max(1, TOKENS // grid[1]) * grid[1] if matrix.shape[2] > TOKENS else None
        entries = _entries(matrix, heads, shown)
        which = f", head {{}} of {matrix.shape[1]}" if matrix.shape[1] > 1 else ""
        which += f"\nfirst {shown // grid[1]} of {grid[0]} rows" if shown else ""
        titles = [f"{name}\n{short(kind(matrix), 24)}{which.format(head)}" for head in heads]
        part_of = grid if shown is None else (shown // grid[1], grid[1])
        rows.append([Panel(part, title, part_of) for part, title in zip(entries, titles, strict=True)])
        said.append(f"{name}: {kind(matrix)}, {matrix.shape[1]} heads of {matrix.shape[2]} x {matrix.shape[3]}")
    draw(rows, f"{type(model).__name__}: mixing matrices", relative=True).savefig(out)
    return f"{out}\n" + "\n".join(said)


def class_activation(model: nn.Module, image: Path, out: Path, *, size: int = 0, target: int | None = None) -> str:
    """Grad-CAM (arXiv 1610.02391) at the last map, for `target` or for the three classes that score best.

    Channels are weighted by the mean gradient of the class's logit; what is positive is evidence for the class.
    """
    x, shown = prepare(model, image, size)
    features = model.forward_features(x).detach().requires_grad_()  # type: ignore[operator]
    logits = model.forward_head(features)[0]  # type: ignore[operator]
    if logits.dim() != 1 or len(logits) != getattr(model, "num_classes", len(logits)) or not len(logits):
        raise ValueError(f"{type(model).__name__} has no classifier to explain")
    if target is not None and not 0 <= target < len(logits):
        raise ValueError(f"target must be a class, 0 to {len(logits) - 1}, got {target}")
    share = logits.softmax(0)
    classes = [target] if target is not None else share.topk(min(3, len(logits))).indices.tolist()
    panels: list[Shown] = [("image", shown, {})]
    said = []
    for label in classes:
        (gradient,) = torch.autograd.grad(logits[label], features, retain_graph=True)
        values, slope = (_as_map(tensor, model) for tensor in (features.detach(), gradient))
        evidence = (slope.mean((1, 2), keepdim=True) * values).sum(0).relu()
        wide = nn.functional.interpolate(evidence[None, None], size=x.shape[2:], mode="bicubic")[0, 0].clamp(min=0)
        said.append(f"class {label}: probability {share[label]:.3f}")
        heat = wide / wide.max().clamp(min=1e-12)
        panels.append((said[-1], (shown, heat), {"cmap": "jet"}))
    _panels([panels], f"{type(model).__name__}: class activation").savefig(out)
    return f"{out}\n" + "\n".join(said)


def prepare(model: nn.Module, image: Path, size: int = 0) -> tuple[Tensor, Tensor]:
    """The image as the model gets it in evaluation, (1, C, side, side), and as people see it, (side, side, 3)."""
    config = resolve_model_data_config(model)
    channels = getattr(model, "in_chans", config["input_size"][0])
    if channels not in (1, 3):
        raise ValueError(f"{type(model).__name__} takes {channels} channels; an image file has 3 or 1")
    mean, std = (
        torch.tensor(config[key]) if channels == 3 else torch.tensor(config[key]).mean()[None]
        for key in ("mean", "std")
    )
    side = size or config["input_size"][-1]
    transform = create_transform(
        (channels, side, side),
        interpolation=config["interpolation"],
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    with decoding(str(image), "image"), open_file(image) as file, Image.open(file) as opened:
        decoded = in_colour(opened, MODES[channels])
    x: Tensor = transform(decoded)
    shown = (x * std[:, None, None] + mean[:, None, None]).clamp(0, 1).permute(1, 2, 0)
    like = next(model.parameters())
    return x[None].to(like.device, like.dtype), shown.expand(-1, -1, 3)


def _stages(model: nn.Module, x: Tensor) -> list[tuple[str, Matrix, tuple[int, int]]]:
    """Name, matrix and grid of the last mixer on every size of grid, in order."""
    found: dict[tuple[int, int], tuple[str, Matrix]] = {}
    grids = _grids(model, x)
    for name, matrix in matrices(model, x).items():
        found[grids[name.partition("#")[0]]] = (name, matrix)
    return [(name, matrix, grid) for grid, (name, matrix) in found.items()]


def _grids(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int]]:
    """The grid that each site is called with; a row of tokens where class tokens stand before an image."""
    seen: dict[str, tuple[int, int]] = {}
    for site in (one.site for one in observe(model, discover(model), x) if one.site.seen):
        whole = site.grid is not None and len(site.grid) == 2 and not site.prefix
        seen[site.name or type(model).__name__] = site.grid if whole else (1, site.seen[-1])  # type: ignore[assignment]
    return seen


def _middle_row(matrix: Matrix, grid: tuple[int, int]) -> Tensor:
    """What the token in the middle gathers from each: (H, rows, columns); of several value streams the first."""
    _, heads, length, _ = matrix.shape
    unit = torch.zeros(1, heads, length, 1)
    unit[:, :, grid[0] // 2 * grid[1] + grid[1] // 2] = 1
    with torch.no_grad():
        row = matrix.rmatmul(unit)[0, :, :length, 0]
    return row.float().cpu().unflatten(1, grid)


def _entries(matrix: Matrix, heads: Sequence[int], most: int | None = None, chunk: int = 64) -> Tensor:
    """Entries of some heads, column by column: all heads of a large map do not fit into memory at once."""
    _, count, rows, columns = matrix.shape
    rows, drawn = min(rows, most or rows), min(columns, most or columns)
    entries = torch.empty(len(heads), rows, drawn)
    with torch.no_grad():
        for start in range(0, drawn, chunk):
            width = min(chunk, drawn - start)
            unit = torch.zeros(1, count, columns, width)
            unit[:, :, range(start, start + width), range(width)] = 1
            entries[:, :, start : start + width] = matrix.matmul(unit)[0, list(heads), :rows].float().cpu()
    return entries


def _chosen(heads: int) -> list[int]:
    count = min(heads, HEADS)
    return [index * heads // count for index in range(count)]


def _low_share(response: Tensor) -> float:
    """Share of the energy at frequencies below a quarter of the sampling rate in both directions."""
    rows, columns = (torch.fft.fftfreq(n).abs() < 0.25 for n in response.shape[-2:])
    energy = response.square().mean(0)
    return float((energy * (rows[:, None] & columns)).sum() / energy.sum().clamp(min=1e-30))


def _extent(field: Tensor, row: float, column: float) -> tuple[float, float]:
    """Radius around the middle that holds half of a field, and the share of pixels that holds 95 % of it."""
    height, width = field.shape
    y, x = torch.arange(height) + 0.5 - row * height, torch.arange(width) + 0.5 - column * width
    distance = (y[:, None].square() + x.square()).sqrt().flatten()
    order = distance.argsort()
    held = field.flatten()[order].cumsum(0) / field.sum()
    largest = field.flatten().sort(descending=True).values.cumsum(0) / field.sum()
    at = int(torch.searchsorted(held, 0.5))
    return float(distance[order][min(at, len(order) - 1)]), (
        int(torch.searchsorted(largest, 0.95)) + 1
    ) / largest.numel()


def _as_map(features: Tensor, model: nn.Module) -> Tensor:
    """The features of one image as (C, h, w), from (1, C, h, w), (1, h, w, C) or the tokens of a square, (1, L, C)."""
    channels = getattr(model, "num_features", features.shape[1])
    if features.dim() == 4:
        return features[0] if features.shape[1] == channels else features[0].permute(2, 0, 1)
    if features.dim() == 3:
        tokens = features[0, getattr(model, "num_prefix_tokens", 0) :]
        side = round(len(tokens) ** 0.5)
        if side * side == len(tokens):
            return tokens.T.unflatten(1, (side, side))
    raise ValueError(f"{type(model).__name__} has no last map: its features are {tuple(features.shape)}")


def _panels(rows: list[list[Shown]], heading: str) -> Figure:
    """Images with a title each; a pair is an image under a heat map."""
    import textwrap

    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    inches = max(columns * PANEL, 5.0)
    figure = Figure(figsize=(inches, len(rows) * (PANEL + 0.5) + 0.5), dpi=130, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(axes, rows, strict=True):
        for axis in row:
            axis.axis("off")
        for axis, (title, content, options) in zip(row, line, strict=False):
            if isinstance(content, tuple):
                under, heat = content
                axis.imshow(under.numpy())
                axis.imshow(heat.detach().numpy(), alpha=0.45, **options)
            else:
                axis.imshow(content.detach().numpy(), interpolation="nearest", **options)
            axis.set_title(textwrap.fill(title, 34), fontsize=8)
    figure.suptitle(textwrap.fill(heading, int(11 * inches)), fontsize=10)
    return figure
