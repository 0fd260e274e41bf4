"""Whether labels fit their pictures: contours are traced, and the answer is compared.

The Long Range Arena's archive holds Pathfinder-128 twice, and the labels of the outer copy have nothing to do with its
pictures: every model stays at chance (its issue 38). Nothing in the files says so, and training takes days to say it.
The tracer is no model to compare with. It links each paddle to the one that goes on best from its end, and asks whether
the paddles at the two discs are linked. On drawn pictures of 128 pixels it says so of 65 % of those with label 1 and of
5 % of the others; where labels do not belong to pictures, of as many in both. 300 pictures, a second, tell the two
apart by 11 standard deviations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sequence.data.pathfinder import Settings, published
from sequence.data.pathfinder_stamps import disc

TRACED = (128, 256)
"""Sizes at which the tracer tells: in smaller pictures paddles touch, or contours lie too close."""
PICTURES = 300
"""As many are traced."""


class Fit(NamedTuple):
    """How often the tracer finds the discs on one contour, by label."""

    with_1: float
    with_0: float
    pictures: int

    @property
    def deviations(self) -> float:
        """The difference in standard deviations of what it would be by chance."""
        share = (self.with_1 + self.with_0) / 2
        return (self.with_1 - self.with_0) / max(1e-9, (share * (1 - share) * 4 / self.pictures) ** 0.5)

    @property
    def broken(self) -> bool:
        """The labels are others': it finds many connected, and as many with either label."""
        return self.pictures >= 100 and self.with_1 + self.with_0 > 0.2 and self.deviations < 3


def fit(size: int, images: np.ndarray, labels: np.ndarray) -> Fit:
    """Trace pictures (n, size, size) uint8."""
    settings = published(size)
    found = np.array([connected(image, settings) for image in images])
    return Fit(float(found[labels > 0].mean()), float(found[labels == 0].mean()), len(images))


def connected(image: np.ndarray, settings: Settings) -> bool:
    """Whether the tracer finds both discs on one contour."""
    from scipy.ndimage import label

    middles = find_discs(image, settings.marker_radius)
    bright = image > 0.3 * image.max()
    y, x = np.mgrid[: len(image), : image.shape[1]]
    for middle in middles:
        bright &= np.hypot(y - middle[0], x - middle[1]) > settings.marker_radius + 0.5
    parts, count = label(bright, np.ones((3, 3)))
    if count < 2:
        return False
    ends, ways = _paddles(parts, count)
    links = _links(ends, ways, max(settings.paddle_margins))
    group = np.arange(count)
    for one, two in links:
        group[group == group[one]] = group[two]
    first, second = (_at_disc(middle, ends) for middle in middles)
    return bool(group[first] == group[second])


def find_discs(image: np.ndarray, radius: float) -> np.ndarray:
    """The middles (2, 2) of the two brightest discs."""
    offsets = disc(max(1, int(radius)))
    reach = int(np.abs(offsets).max())
    padded = np.pad(image.astype(np.float64), reach)
    height, width = image.shape
    score = np.zeros(image.shape)
    for y, x in offsets + reach:
        # Lines are as bright, or brighter, but no disc: it is its darkest pixels that tell.
        score += np.minimum(padded[y : y + height, x : x + width], np.median(image[image > 128]))
    found = []
    for _ in range(2):
        y, x = np.unravel_index(score.argmax(), score.shape)
        found.append((y, x))
        score[max(0, y - 2 * reach - 1) : y + 2 * reach + 2, max(0, x - 2 * reach - 1) : x + 2 * reach + 2] = 0
    return np.array(found)


def _paddles(parts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Both ends (count, 2, 2) of each bright part, and the directions (count, 2, 2) that point out of them."""
    pixels = np.argwhere(parts)
    number = parts[tuple(pixels.T)] - 1
    sizes = np.bincount(number, minlength=count)
    mean = [np.bincount(number, pixels[:, axis], count) / sizes for axis in (0, 1)]
    y, x = (pixels[:, axis] - mean[axis][number] for axis in (0, 1))
    spread = [np.bincount(number, product, count) for product in (y * y, x * x, x * y)]
    angle = np.arctan2(2 * spread[2], spread[1] - spread[0]) / 2  # of the longer axis
    way = np.stack([np.sin(angle), np.cos(angle)], 1)
    along = y * way[number, 0] + x * way[number, 1]
    far = np.zeros((2, count))
    np.maximum.at(far[0], number, along)
    np.minimum.at(far[1], number, along)
    ends = np.stack(mean, 1)[:, None] + far.T[..., None] * way[:, None]
    return ends, np.stack([way, -way], 1)


def _links(ends: np.ndarray, ways: np.ndarray, margin: int) -> list[tuple[int, int]]:
    """Pairs of paddles whose ends go on best from each other, on both sides."""
    count = len(ends)
    points, out = ends.reshape(-1, 2), ways.reshape(-1, 2)
    gap = points[None] - points[:, None]
    distance = np.linalg.norm(gap, axis=-1)
    unit = gap / np.maximum(distance, 1e-9)[..., None]
    leaving = (unit * out[:, None]).sum(-1).clip(-1, 1)
    arriving = (-unit * out[None]).sum(-1).clip(-1, 1)
    cost = np.arccos(leaving) + np.arccos(arriving) + np.abs(distance - 2 * margin) / (2 * margin)
    owner = np.arange(2 * count) // 2
    cost[(owner[:, None] == owner) | (distance > 2 * margin + 5) | (leaving < 0) | (arriving < 0)] = np.inf
    best = cost.argmin(1)
    mutual = (best[best] == np.arange(2 * count)) & np.isfinite(cost.min(1))
    return [(int(owner[end]), int(owner[best[end]])) for end in np.flatnonzero(mutual)]


def _at_disc(middle: np.ndarray, ends: np.ndarray) -> int:
    """The part with an end nearest to a disc."""
    return int(np.linalg.norm(ends - middle, axis=-1).min(1).argmin())
