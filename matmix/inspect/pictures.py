"""Heat maps of mixing matrices. Red is positive, blue negative, white zero, on a scale that shows small entries."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from matmix.arguments import checking_arguments
from matmix.inspect.recording import grids as recorded_grids
from matmix.inspect.recording import matrices
from matmix.matrices.algebra import ColumnCat, HeadCat, Kron, Masked, Product, Scale, Sum, Transpose
from matmix.matrices.base import Matrix
from matmix.matrices.legend import fit
from matmix.mixers.base import Grid, Mixer
from matmix.mixers.registry import create_mixer
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Seed, Whole, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = 2.5  # inches
DECADES = 3  # below the largest entry the colours are logarithmic over so many powers of ten, then linear to zero
PIXELS = 384  # larger matrices are drawn in blocks


@dataclass(frozen=True)
class Panel:
    """One heat map: ``entries`` (L_out, L_in) with a title; ``grid`` where the tokens are an image."""

    entries: Tensor
    title: str
    grid: Grid | None = None


@checking_arguments()
def show(
    what: Matrix | Mixer | nn.Module,
    path: str | os.PathLike[str],
    x: Tensor | tuple[Any, ...] | None = None,
    *,
    heads: int | Sequence[int] | None = None,
    max_heads: Count = 8,
    sample: Whole = 0,
    grid: Grid | None = None,
    mask: Tensor | None = None,
    title: str | None = None,
) -> Path:
    """Draw the matrix of every head as a heat map; the file's extension picks the format (png, svg, pdf).

    Args:
        what: a matrix; a mixer; or a model that contains mixers (one row of panels for each).
        path: where to write, in a folder that exists.
        x: tokens ``(B, L, D)`` for a mixer (a seeded normal sample where absent), the input of a model, or a tuple
            of its inputs.
        heads: one head or several; where absent up to ``max_heads``, evenly spaced, and the title says which.
        sample: which one of the batch.
        grid: shape of the tokens where the mixer does not know it; for a mixer without ``x`` it also fixes L, which
            is 64 where nothing does.
        mask: ``(B, L)`` bool for a mixer.
        title: instead of the class and its properties.

    Raises:
        ValueError: for a path whose extension is no picture format, a head or sample that is not there, or a
            matrix too large to write out.
        FileNotFoundError: if the folder of ``path`` does not exist.
    """
    target = _check_path(path)
    if isinstance(what, Matrix):
        found, grids, name = {"": what}, {"": grid}, ""
    elif isinstance(what, Mixer):
        grid = grid or what.grid
        if x is None:
            x = sample_tokens(what, grid)
        fit("show", "x", x, "B L D", None, {"D": what.dim})
        assert isinstance(x, Tensor)
        options = {"grid": grid} if grid is not None and math.prod(grid) == x.shape[1] else {}
        found = matrices(what, x, mask=mask, **options)
        grids, name = dict.fromkeys(found, grid), type(what).__name__
    else:
        if x is None:
            raise ValueError(f"x must be an input of {type(what).__name__}: its mixers see what the model makes of it")
        found = matrices(what, *(x if isinstance(x, tuple) else (x,)))
        grids, name = recorded_grids(what, found), type(what).__name__
    rows, notes = [], []
    for key, matrix in found.items():
        chosen, total = _choose(matrix, heads, max_heads), matrix.shape[1]
        entries = dense(matrix, sample)
        prefix = f"{key}: " if key and len(found) > 1 else ""
        rows.append([Panel(entries[head], f"{prefix}head {head}", grids[key]) for head in chosen])
        if len(chosen) < total:
            notes.append(f"{prefix}{len(chosen)} of {total} heads")
    classes = list(dict.fromkeys(about(matrix) for matrix in found.values()))
    heading = title or "\n".join(([name] if name else []) + classes[:4])
    figure = draw(rows, heading, notes=list(dict.fromkeys(notes))[:3])
    figure.savefig(target)
    return target


@checking_arguments()
def gallery(
    mixers: Sequence[str],
    path: str | os.PathLike[str],
    *,
    dim: Count = 16,
    grid: Grid = (48,),
    columns: Count = 5,
    seed: Seed = 0,
) -> Path:
    """One picture with a matrix of each mixer spec, freshly built, for one seeded normal input; its first head.

    Every panel is drawn relative to its own largest entry. Raises as :func:`show` and ``create_mixer`` do.
    """
    target = _check_path(path)
    if not mixers:
        raise ValueError("gallery: mixers must name at least one, got none")
    panels = []
    for spec in mixers:
        with fork_seed(seed, spec):
            mixer = create_mixer(spec, dim, grid)
        matrix = next(iter(matrices(mixer, sample_tokens(mixer, grid, seed)).values()))
        panels.append(Panel(dense(matrix)[0], f"{spec}\n{short(kind(matrix))}", grid))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    draw(rows, "", relative=True).savefig(target)
    return target


def sample_tokens(mixer: Mixer, grid: Grid | None = None, seed: int = 0) -> Tensor:
    """A normal input ``(1, L, D)`` that depends on the seed alone, in the mixer's dtype and on its device."""
    grid = grid or mixer.grid or (64,)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, math.prod(grid), mixer.dim, generator=generator)
    parameter = next(mixer.parameters(), None)
    return tokens if parameter is None else tokens.to(parameter.device, parameter.dtype)


def dense(matrix: Matrix, sample: int = 0) -> Tensor:
    """Entries ``(H, L_out, L_in)`` of one sample, float32 on the CPU."""
    batch, heads, rows, columns = matrix.shape
    if not 0 <= sample < max(batch, 1):
        raise ValueError(f"sample must be in 0 .. {batch - 1} for {matrix!r}, got {sample}")
    if batch * heads * rows * columns > 2**28:
        raise ValueError(f"{matrix!r} is too large to write out; take a batch of one or fewer tokens")
    with torch.no_grad():  # the entries may be a parameter as it stands
        return matrix.to_dense()[sample].detach().to("cpu", torch.float32)


def about(matrix: Matrix) -> str:
    """Class, size and properties in a line."""
    batch, heads, rows, columns = matrix.shape
    traits = f", {', '.join(sorted(matrix.properties)).replace('_', ' ')}" if matrix.properties else ""
    many = f"{heads} head{'s' * (heads > 1)}" if heads else "no head"
    # A leading 1 may be data independence or a batch of one: only more than one says something.
    batch_of = f", batch of {batch}" if batch > 1 else ""
    return f"{kind(matrix)} {rows} x {columns}, {many}{batch_of}{traits}"


def kind(matrix: Matrix) -> str:
    """The class of a matrix; of an algebra object those of its parts: ``Semiseparable + Diagonal``."""
    match matrix:
        case Sum():
            return " + ".join(dict.fromkeys(map(kind, matrix.terms)))
        case Product():
            return " · ".join(f"({kind(part)})" if isinstance(part, Sum) else kind(part) for part in matrix.factors)
        case Scale() | Masked():
            return kind(matrix.inner)
        case Transpose():
            return f"{kind(matrix.inner)}ᵀ"
        case Kron():
            return f"{kind(matrix.rows)} ⊗ {kind(matrix.columns)}"
        case HeadCat():
            return ", ".join(dict.fromkeys(map(kind, matrix.parts)))
        case ColumnCat():
            return f"[{', '.join(map(kind, matrix.blocks))}]"
        case _:
            return type(matrix).__name__


def short(text: str, most: int = 36) -> str:
    """Text that fits over a panel."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def draw(rows: Sequence[Sequence[Panel]], heading: str, *, notes: Sequence[str] = (), relative: bool = False) -> Figure:
    """A figure with a row of panels for each row given (long rows wrap) and one colour bar.

    ``relative`` divides each matrix by its largest entry; otherwise all panels share one scale.
    """
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import SymLogNorm
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'matmix[experiments]'") from error

    # Six to a row at most, evenly filled.
    lines = []
    for row in rows:
        width = math.ceil(len(row) / math.ceil(len(row) / 6))
        lines += [row[start : start + width] for start in range(0, len(row), width)]
    columns = max(len(line) for line in lines)
    largest = 1.0
    if not relative:
        tops = [panel.entries[panel.entries.isfinite()].abs() for row in rows for panel in row]
        largest = max((top.max().item() for top in tops if top.numel()), default=0.0) or 1.0
    norm = SymLogNorm(largest * 10.0**-DECADES, linscale=0.3, vmin=-largest, vmax=largest, base=10)

    inches = max(columns * PANEL, 4.6) + 1.2
    heading = "\n".join(wrapped for line in heading.splitlines() for wrapped in textwrap.wrap(line, int(11 * inches)))
    extra = 0.28 * (heading.count("\n") + 1) * bool(heading) + 0.3
    title_lines = max(panel.title.count("\n") for row in rows for panel in row) + 1
    figure = Figure(
        figsize=(inches, len(lines) * (PANEL + 0.2 * title_lines + 0.25) + extra),
        dpi=130,
        layout="constrained",
    )
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for line, slots in zip(lines, axes, strict=True):
        for axis in slots[len(line) :]:
            axis.set_visible(False)
        for panel, axis in zip(line, slots, strict=False):
            entries = panel.entries.detach().float()
            if relative:
                top = entries[entries.isfinite()].abs()
                entries = entries / ((top.max().item() if top.numel() else 0.0) or 1.0)
            height, width = entries.shape
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axis.set_facecolor("0.6")  # what is not finite
            axis.imshow(
                _coarse(entries).numpy(), cmap="RdBu_r", norm=norm, extent=extent, aspect="auto", interpolation="none"
            )
            axis.set_box_aspect(1)
            axis.set_title(panel.title, fontsize=8.5)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            _lines(axis, panel.grid, height, width)
    axes[0][0].set_ylabel("to token", fontsize=8)
    axes[0][0].set_xlabel("from token", fontsize=8)

    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=axes, shrink=min(1.0, 3.2 / (len(lines) * PANEL)))
    powers = [largest * 10.0**-k for k in range(DECADES + 1)]
    ticks = [-p for p in powers] + [0.0] + powers[::-1]
    bar.set_ticks(ticks, labels=[f"{tick:.1e}".replace("e-0", "e-").replace("e+00", "") for tick in ticks])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    if relative:
        bar.set_label("entry / largest entry of its matrix", fontsize=8)
    image = next((p.grid for row in rows for p in row if p.grid is not None and len(p.grid) == 2), None)
    if image:
        notes = [*notes, f"tokens of a {image[0]} x {image[1]} grid, row by row; thin lines part its rows"]
    if any(p.entries.shape[1] != p.entries.shape[0] for row in rows for p in row):
        notes = [*notes, "dashed lines part the value streams"]
    if heading:
        figure.suptitle(heading, fontsize=10)
    if notes:
        figure.supxlabel(textwrap.fill("; ".join(notes), int(13 * inches)), fontsize=8, color="0.3")
    return figure


def _lines(axis: Any, grid: Grid | None, height: int, width: int) -> None:
    """Thin lines between the rows of an image, dashed ones between stacked value streams."""
    if grid is not None and len(grid) == 2 and math.prod(grid) == height and grid[0] <= 16:
        for at in range(grid[1], height, grid[1]):
            axis.axhline(at - 0.5, color="0.7", linewidth=0.3)
        for at in range(grid[1], width, grid[1]):
            axis.axvline(at - 0.5, color="0.7", linewidth=0.3)
    if width > height and width % height == 0:
        for at in range(height, width, height):
            axis.axvline(at - 0.5, color="black", linewidth=0.8, linestyle="--")


def _coarse(entries: Tensor) -> Tensor:
    """The largest entry by magnitude of each block, so that a lone entry of a large matrix stays to be seen."""
    height, width = entries.shape
    block = math.ceil(max(height, width) / PIXELS)
    if block == 1:
        return entries
    pad = (0, -width % block, 0, -height % block)
    blocks = nn.functional.pad(entries, pad)[None, None]
    high = nn.functional.max_pool2d(blocks, block)[0, 0]
    low = -nn.functional.max_pool2d(-blocks, block)[0, 0]
    return torch.where(high >= -low, high, low)


def _choose(matrix: Matrix, heads: int | Sequence[int] | None, most: int) -> list[int]:
    total = matrix.shape[1]
    if heads is None:
        count = min(total, most)
        return [index * total // count for index in range(count)]
    chosen = [heads] if isinstance(heads, int) else list(heads)
    if not chosen or not all(type(head) is int and 0 <= head < total for head in chosen):
        raise ValueError(f"heads must be in 0 .. {total - 1} for {matrix!r}, got {shown(heads)}")
    return chosen


def _check_path(path: str | os.PathLike[str]) -> Path:
    """The path of a picture that can be written; matplotlib is only loaded after these checks, and only here."""
    target = Path(path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'matmix[experiments]'") from error
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if target.suffix[1:].lower() not in kinds:
        raise ValueError(f"path must end in a picture format ({', '.join('.' + kind for kind in kinds)}), got {path}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise ValueError(f"path {target} is a folder")
    return target
