"""Pathfinder (Linsley et al. 2018, arXiv 1805.08315; Kim et al. 2020): do two discs lie on one dashed contour?

Two long contours start close to each other and wind past each other, among shorter ones. One disc lies at the start of
a long contour, the other at the end of the same one (label 1) or of the other (label 0). The generator draws from the
distribution of drewlinsley/pathfinder with the settings of the Long Range Arena (arXiv 2011.04006), for 32, 64, 128
(Path-X) and 256 pixels a side, and a small one for 16, which is ours.

    drawn = draw(published(32), seed=0, indices=range(100))  # drawn.images (100, 32, 32) uint8, drawn.labels (100,)

Picture i of a seed is the same whatever is drawn with it. On one core, pictures a second: 700 at 32 pixels, 25 at 64
(where the published code takes 15 s for one), 35 at 128 and 256.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from matmix.sampling import stream
from sequence.data.pathfinder_draws import Draws, mixed
from sequence.data.pathfinder_stamps import Look, marker, marker_reach, stamps
from sequence.data.pathfinder_walk import Masks, distractors, targets

LANES = 256
"""Attempts at once; it changes nothing but the time."""
BATCH_BYTES = 2**25
"""Of the masks of the pictures that are drawn at once."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of the published generator, as it calls them, but for the lists of one entry.

    Args:
        window: pixels a side.
        paddle_margins: of each picture one is drawn.
        padding: pixels at the border that stay free of paddles.
        contour_length, distractor_length: paddles of the two long contours and of each short one.
        distractors: number of short ones, at most: what finds no room is left out.
        seed_distance: between the starts of the two.
        target_contrast, distractor_contrast: brightness of the paddles; that of the discs is 1.
    """

    window: int
    paddle_margins: tuple[int, ...]
    padding: int
    paddle_length: int
    paddle_thickness: float
    marker_radius: float
    seed_distance: int
    continuity: float
    contour_length: int
    distractor_length: int
    distractors: int
    target_contrast: float
    distractor_contrast: float
    antialias: int = 2

    def __post_init__(self) -> None:
        for name in ("contour_length", "distractor_length"):
            if getattr(self, name) < 2:
                raise ValueError(f"pathfinder: {name} must be at least 2 paddles, got {getattr(self, name)}")
        if self.padding < 1 or self.distractors < 0 or not self.paddle_margins or min(self.paddle_margins) < 1:
            raise ValueError(f"pathfinder: padding and margins must be at least 1, distractors at least 0, got {self}")
        if (self.paddle_thickness * self.antialias) % 1:
            raise ValueError(
                f"pathfinder: paddle_thickness x antialias must be whole, got "
                f"{self.paddle_thickness} x {self.antialias}"
            )

    def look(self, margin: int) -> Look:
        return Look(self.paddle_length, self.paddle_thickness, margin, self.continuity, self.antialias)


# Arguments by size, from lra_benchmarks/data/pathfinder.py of the Long Range Arena; what that leaves out (padding and
# seed distance at 256, the paddle's length from 64 on) are the generator's defaults. 16 is ours: the smallest picture
# in which two contours of 6 paddles pass each other; with a seed distance of 3, four pixels are left to start in, as
# at 32.
_BY_SIZE = {
    16: (Settings(16, (1,), 1, 2, 0.5, 1.0, 3, 1.0, 6, 2, 0, 1.5, 2.0), 4),
    32: (Settings(32, (1,), 1, 2, 0.5, 1.5, 7, 1.0, 14, 4, 0, 1.5, 2.0), 20),
    64: (Settings(64, (1,), 1, 5, 1.0, 2.5, 12, 1.8, 14, 4, 0, 0.8, 0.8), 22),
    128: (Settings(128, (2, 3), 1, 5, 1.5, 3.0, 20, 1.8, 14, 4, 0, 0.9, 0.9), 35),
    256: (Settings(256, (3,), 22, 5, 2.0, 5.0, 27, 1.8, 14, 4, 0, 1.0, 1.0), 30),
}
SIZES = tuple(_BY_SIZE)


def published(size: int, contour_length: int = 0) -> Settings:
    """The settings for pictures of `size` pixels a side.

    `contour_length` 14 is the Arena's "hard" (0 = the size's own: 14, or 6 at 16 pixels), 9 its "intermediate" and 6
    its "easy". Distractors have a third of it, 2 at least, and as many paddles in all as at 14: inferred, for the Arena
    states its arguments for 14 alone.
    """
    if size not in _BY_SIZE:
        raise ValueError(f"pathfinder: img_size must be one of {', '.join(map(str, SIZES))}, got {size}")
    base, paddles = _BY_SIZE[size]
    length = contour_length or base.contour_length
    if length < 3:
        raise ValueError(f"pathfinder: contour_length must be 0 or at least 3, got {contour_length}")
    short = max(2, length // 3)
    return dataclasses.replace(base, contour_length=length, distractor_length=short, distractors=paddles // short)


class Drawn(NamedTuple):
    """Pictures and what is in them.

    Attributes:
        images: (n, window, window) uint8.
        labels: (n,) 1 = both discs on one contour.
        margins: (n,) of the paddles.
        contours: (n, 2, contour_length, 2) where the first paddle of each contour starts and each further one ends.
        discs: (n, 2, 2) the middles of the discs.
        distractors: (n,) how many found room.
    """

    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray
    contours: np.ndarray
    discs: np.ndarray
    distractors: np.ndarray


def draw(settings: Settings, *, seed: int, indices: Iterable[int]) -> Drawn:
    """The pictures with these numbers."""
    numbers = list(indices)
    if not numbers:
        raise ValueError("pathfinder: indices are empty")
    draws = Draws(np.array([stream(seed, index) for index in numbers], np.uint64))
    every = np.arange(len(numbers))
    labels = draws.below(every, 2)
    margins = np.array(settings.paddle_margins)[draws.below(every, len(settings.paddle_margins))]
    parts, order = [], []
    for margin in settings.paddle_margins:
        lanes = np.flatnonzero(margins == margin)
        side = Masks(stamps(settings.look(margin)), settings.window, settings.padding, 0).side
        at_once = max(16, BATCH_BYTES // side**2)
        for first in range(0, len(lanes), at_once):
            some = lanes[first : first + at_once]
            parts.append(_draw(settings, margin, draws, some, labels[some]))
            order.append(some)
    back = np.argsort(np.concatenate(order))
    images, contours, discs, found = (np.concatenate(part)[back] for part in zip(*parts, strict=True))
    return Drawn(images, labels, margins, contours, discs, found)


def _draw(
    settings: Settings, margin: int, draws: Draws, some: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, contours, discs and numbers of distractors of pictures of one margin."""
    table, window, padding = stamps(settings.look(margin)), settings.window, settings.padding
    at_once = Masks(table, window, padding, LANES)
    long, occupied = targets(at_once, draws.state[some], settings.seed_distance, settings.contour_length)
    masks, own = Masks(table, window, padding, 0), Draws(mixed(draws.state[some]))
    masks.occupied = occupied
    short = distractors(masks, own, settings.distractors, settings.distractor_length)
    lanes = np.arange(len(some))
    origin = own.below(lanes, 2)
    terminal = np.where(labels == 1, origin, 1 - origin)
    discs = np.stack([long[lanes, origin, 0, 1:], long[lanes, terminal, -1, 1:]], 1)
    canvas = np.zeros((len(some), masks.side**2), np.float32)
    for paddle in long.reshape(len(some), -1, 3).swapaxes(0, 1):
        _paint(canvas, masks, lanes, paddle, settings.target_contrast)
    for paddle in short.reshape(len(some), -1, 3).swapaxes(0, 1):
        there = paddle[:, 0] >= 0
        _paint(canvas, masks, lanes[there], paddle[there], settings.distractor_contrast)
    inner = slice(masks.rim, masks.rim + settings.window)
    pictures = canvas.reshape(len(some), masks.side, masks.side)[:, inner, inner]
    for picture, pair in zip(pictures, discs, strict=True):
        for y, x in pair.tolist():
            _paint_disc(picture, y, x, settings)
    return stretched(pictures), long[..., 1:], discs, (short[:, :, 0, 0] >= 0).sum(1)


def _paint(canvas: np.ndarray, masks: Masks, lanes: np.ndarray, paddle: np.ndarray, contrast: float) -> None:
    """The brighter of what is there and one paddle (n, 3) in each of `lanes`."""
    lines = masks.stamps.lines.reshape(len(masks.stamps.lines), -1)[paddle[:, 0]]
    at = masks.window_of(paddle[:, 1:]) + (lanes * masks.side**2)[:, None]
    flat = canvas.reshape(-1)
    flat[at] = np.maximum(flat[at], _brightness(contrast)[lines])


def _paint_disc(picture: np.ndarray, y: int, x: int, settings: Settings) -> None:
    """A disc of brightness 1 around (y, x)."""
    reach, last = marker_reach(settings.marker_radius), settings.window - 1
    above, below, left, right = (min(reach, far) for far in (y, last - y, x, last - x))
    disc = marker(above, below, left, right, settings.marker_radius, settings.antialias)
    part = picture[y - above : y + below + 1, x - left : x + right + 1]
    np.maximum(part, _brightness(1.0)[disc], out=part)


def _brightness(contrast: float) -> np.ndarray:
    """Of the grey levels 0 to 255; rounded as published, since some end up halfway between two levels again."""
    return (np.arange(256) / 255 * contrast).astype(np.float32)


def stretched(pictures: np.ndarray) -> np.ndarray:
    """Each of (n, h, w) from its smallest to its largest value on 0 to 255, as it was saved."""
    pictures = pictures.astype(np.float64)
    low = pictures.min((1, 2), keepdims=True)
    high = pictures.max((1, 2), keepdims=True)
    return ((pictures - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
