"""The pieces of Pathfinder's pictures: paddles, their surroundings, discs, and where a contour may go on.

Coordinates are `(y, x)`, orientations angles with `(sin, cos)` along them. A paddle is a short line; its mask, the line
widened by the margin, is what no other paddle may enter. A contour goes on from its pivot to one of the pixels of the
circle of radius paddle length + margin around it, so there are few orientations, and each paddle is drawn once, here.

Everything is drawn `antialias` times larger and brought down by Pillow's Lanczos filter to whole numbers from 0 to 255,
as the published pictures were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

DEGREES = 360
"""A contour's first paddle has a whole number of degrees; orientations 0 to 359 of a table are those, from -180 on."""
FULL = 255


@dataclass(frozen=True)
class Look:
    """What a paddle looks like.

    Args:
        length, thickness: of its line, in pixels.
        margin: by which it is widened into its mask.
        continuity: how straight a contour goes on; the weight of a turn by `a` is `cos(min(continuity a, pi/2))^2`.
        antialias: pixels a side that are drawn for one.
    """

    length: int
    thickness: float
    margin: int
    continuity: float
    antialias: int = 2

    @property
    def reach(self) -> int:
        """From a pivot to the end of its paddle."""
        return self.length + self.margin

    @property
    def half(self) -> int:
        """A stamp has this many pixels on either side of its anchor."""
        return self.length + math.ceil(self.thickness) + self.margin


def translate(point: np.ndarray, angle: np.ndarray, distance: float) -> np.ndarray:
    """The pixel `distance` away along `angle`: both coordinates are rounded up, as published."""
    moved = point + distance * np.stack([np.sin(angle), np.cos(angle)], -1)
    return np.ceil(moved).astype(np.int64)


def flipped(angle: np.ndarray) -> np.ndarray:
    """The opposite orientation, in [-pi, pi]."""
    return np.where(angle < 0, angle + np.pi, angle - np.pi)


def disc(radius: int) -> np.ndarray:
    """Offsets (n, 2) of the pixels not further than `radius` from the middle."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.argwhere(x**2 + y**2 <= radius**2) - radius


def circle(radius: int) -> np.ndarray:
    """Offsets (K, 2) of the pixels of a circle, in order, without repetition: a step of one pixel along the arc."""
    angles = np.arange(0, 360, 360 / (2 * radius * np.pi)) * np.pi / 180
    points = np.stack([np.sin(angles), np.cos(angles)], 1) * radius
    return np.unique(np.floor(points).astype(np.int64), axis=0)


def turn_weights(last: np.ndarray, angles: np.ndarray, continuity: float) -> np.ndarray:
    """Weights (n, K) of going on at `angles` (K,) after the orientations `last` (n,), before what is occupied."""
    apart = np.abs(angles - last[:, None])
    apart = np.minimum(apart, 2 * np.pi - apart)
    return np.cos(np.minimum(apart * continuity, np.pi / 2)) ** 2


@dataclass(frozen=True)
class Stamps:
    """Every paddle there can be of a look.

    Attributes:
        ends: offsets (K, 2) from a pivot to where its paddle may end.
        angles: orientation (360 + K,) of every paddle: whole degrees for first paddles, then those to the ends.
        ahead, turns: numbers (360 + K, A) of the ends that can come after a paddle of each orientation, and their
            weights; those at a right angle and behind, whose weights the published code rounds to 1e-33, are left out.
        lines, masks: pictures (360 + K, S, S), uint8. A first paddle is drawn from its tail, in the middle of the
            stamp, along its orientation; a later one from its end, in the middle, backwards.
        footprints: of each first paddle the offsets (n, 2) from its tail that must be free; of some, none can.
        cores: pixels of each mask at which two masks can clash, as offsets (360 + K, C, 2), and what may stand there at
            most, `limits` (360 + K, C): together 1.8 of full.
    """

    look: Look
    ends: np.ndarray
    angles: np.ndarray
    ahead: np.ndarray
    turns: np.ndarray
    lines: np.ndarray
    masks: np.ndarray
    footprints: tuple[np.ndarray, ...]
    cores: np.ndarray
    limits: np.ndarray


@cache
def stamps(look: Look) -> Stamps:
    """All paddles of a look; a tenth of a second."""
    ends = circle(look.reach)
    towards = np.arctan2(ends[:, 0], ends[:, 1])
    angles = np.concatenate([np.arange(-180, 180) * np.pi / 180, towards])
    drawn = np.concatenate([angles[:DEGREES], flipped(towards)])
    large = np.stack([_line(look, angle) for angle in drawn])
    lines = np.stack([shrunk(picture, look.antialias) for picture in large])
    masks = np.stack([shrunk(picture, look.antialias) for picture in _widened(large, look.margin * look.antialias)])
    footprints = tuple(_footprint(look, mask) for mask in masks[:DEGREES])
    # 1.8 of full are 459: below 204 a pixel clashes with nothing.
    pixels = [np.argwhere(mask >= 459 - FULL) for mask in masks]
    most = max(map(len, pixels))
    cores = np.zeros((len(masks), most, 2), np.int64)
    limits = np.full((len(masks), most), FULL, np.uint8)
    for index, (mask, found) in enumerate(zip(masks, pixels, strict=True)):
        cores[index, : len(found)] = found - look.half
        limits[index, : len(found)] = 458 - mask[tuple(found.T)].astype(np.int64)
    weights = turn_weights(angles, towards, look.continuity)
    weights[weights < 1e-20] = 0
    # In order, with as many for each as the one with most has.
    ahead = np.sort(np.argsort(-weights, 1, kind="stable")[:, : (weights > 0).sum(1).max()], 1)
    turns = np.take_along_axis(weights, ahead, 1)
    return Stamps(look, ends, angles, ahead, turns, lines, masks, footprints, cores, limits)


def _line(look: Look, angle: float) -> np.ndarray:
    """A paddle before it is brought down; its start is in the middle."""
    middle = look.half * look.antialias
    picture = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    y, x = translate(np.array([middle, middle]), np.array(angle), look.length * look.antialias)
    width = round(look.thickness * look.antialias)
    ImageDraw.Draw(picture).line([(middle, middle), (int(x), int(y))], fill=FULL, width=width)
    return np.asarray(picture)


def _widened(pictures: np.ndarray, radius: int) -> np.ndarray:
    """Largest value within `radius` (n, S, S); what lies outside a picture does not count."""
    padded = np.pad(pictures, ((0, 0), (radius, radius), (radius, radius)))
    side, found = pictures.shape[1], pictures.copy()
    for y, x in disc(radius) + radius:
        np.maximum(found, padded[:, y : y + side, x : x + side], out=found)
    return found


def _footprint(look: Look, mask: np.ndarray) -> np.ndarray:
    """Offsets from the tail of a first paddle at which nothing may stand; none at all where it cannot be a first one.

    Two accidents of the published code decide which pictures there are, so they are kept. The footprint is where the
    mask is full, but one pixel down and right: the middle of its kernel is off by one. And where it would lie wholly
    outside of the picture for some tail, a corner then, OpenCV's dilation gives minus infinity there, which is taken
    for a picture without room. At 32 pixels that leaves 30 of 360 orientations to start with, so a picture has one or
    two distractors and not five.
    """
    offsets = np.argwhere(mask == FULL) - look.half + 1
    offsets = offsets[(np.abs(offsets) <= look.reach).all(1)]
    corners = all((offsets * sign >= 0).all(1).any() for sign in ((1, 1), (1, -1), (-1, 1), (-1, -1)))
    return offsets if corners else offsets[:0]


def shrunk(picture: np.ndarray, factor: int) -> np.ndarray:
    """A uint8 picture of `factor` times the size, less a rest of one pixel, brought down by Pillow's Lanczos filter."""
    height, width = (-(-side // factor) for side in picture.shape)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


@cache
def marker(above: int, below: int, left: int, right: int, radius: float, antialias: int) -> np.ndarray:
    """A disc around a pixel with so many pixels of the picture on each side of it: (above + 1 + below, ...), uint8."""
    y = np.arange(-above * antialias, (below + 1) * antialias)[:, None]
    x = np.arange(-left * antialias, (right + 1) * antialias)
    return shrunk(np.where(y**2 + x**2 <= (radius * antialias) ** 2, FULL, 0).astype(np.uint8), antialias)


def marker_reach(radius: float) -> int:
    """Beyond this distance from a disc's middle nothing is seen of it: its filter has three pixels on either side."""
    return math.ceil(radius) + 4
