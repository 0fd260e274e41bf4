"""Contours that avoid each other, grown paddle by paddle in many pictures at once.

A picture needs some hundred attempts at a paddle, most of them in vain: whoever draws one after the other takes 0.4 s
for 32 x 32 pixels, as the published code does. Here a step is an attempt in every picture that is not finished. Each
picture has its own stream of random numbers, so it is the same whichever others are drawn with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sequence.data.pathfinder_draws import Attempts, Draws
from sequence.data.pathfinder_stamps import DEGREES, FULL, Stamps, disc, flipped, translate

TRIES = 3
"""At a paddle, before a contour is given up (published: max_paddle_retrial 2, and the first)."""
CONTOUR_TRIES = 5
"""At a distractor, before it is left out (published: max_distractor_contour_retrial 4, and the first)."""
FREE = 76
"""What stands at a pixel that counts as free, at most: 0.3 of full."""
CROWDED = 0.01
"""With less of the picture free there is no further distractor."""


class Ends(NamedTuple):
    """Where contours stand: pivot (n, 2), number of the last paddle (n,), and where that was put (n, 2)."""

    pivot: np.ndarray
    paddle: np.ndarray
    anchor: np.ndarray

    def at(self, where: np.ndarray) -> Ends:
        return Ends(*(part[where] for part in self))


class Masks:
    """What is occupied in each of n pictures of `window` x `window` pixels, with room around for what sticks out."""

    def __init__(self, stamps: Stamps, window: int, padding: int, count: int) -> None:
        look = stamps.look
        self.stamps, self.window = stamps, window
        self.rim = look.half + look.reach + 3 * look.margin + 4
        self.side = window + 2 * self.rim
        inside = np.zeros((self.side, self.side), np.uint8)
        inside[self.rim : -self.rim, self.rim : -self.rim] = 1
        empty = inside * np.uint8(FULL)
        free = self.rim + padding
        empty[free:-free, free:-free] = 0
        self.inside, self.empty = inside.ravel(), empty.ravel()
        self.occupied = np.tile(self.empty, (count, 1))
        steps = np.arange(-look.half, look.half + 1)
        self._stamp = (steps[:, None] * self.side + steps).ravel()
        self._near = disc(look.margin) @ (self.side, 1)
        self._ends = stamps.ends @ (self.side, 1)
        self._cores = stamps.cores @ (self.side, 1)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Number of each pixel (..., 2) in a picture with its rim."""
        return (points[..., 0] + self.rim) * self.side + points[..., 1] + self.rim

    def window_of(self, anchor: np.ndarray) -> np.ndarray:
        """Numbers (n, S * S) of the pixels under stamps around (n, 2)."""
        return self.place(anchor)[:, None] + self._stamp

    def contains(self, points: np.ndarray) -> np.ndarray:
        return np.all((points >= 0) & (points < self.window), axis=-1)

    def put(self, lanes: np.ndarray, paddle: np.ndarray, anchor: np.ndarray) -> None:
        """Occupy what these paddles occupy, one in each of `lanes`."""
        places = self.window_of(anchor)
        flat = self.occupied.reshape(-1)
        at = places + (lanes * self.side**2)[:, None]
        masks = self.stamps.masks.reshape(len(self.stamps.masks), -1)[paddle]
        flat[at] = np.maximum(flat[at], masks) * self.inside[places]

    def extend(self, draws: Draws, lanes: np.ndarray, ends: Ends) -> tuple[np.ndarray, Ends]:
        """Try to put one more paddle to one contour of each of `lanes`.

        The paddle before it is occupied only now: a paddle may touch its predecessor.

        Returns:
            Which of them succeeded, and the new ends of those.
        """
        look, table = self.stamps.look, self.stamps
        flat = self.occupied.reshape(-1)
        pivot = translate(ends.pivot, table.angles[ends.paddle], look.length + 2 * look.margin)
        base = self.place(pivot) + lanes * self.side**2
        ahead = table.ahead[ends.paddle]
        at = base[:, None] + self._ends[ahead]
        taken = flat[at + self._near[0]]
        for offset in self._near[1:]:
            np.maximum(taken, flat[at + offset], out=taken)
        weight = (FULL - taken) * table.turns[ends.paddle]
        weight *= self.contains(pivot[:, None] + table.ends[ahead])
        total = weight.cumsum(1)
        chosen = np.full(len(lanes), -1)
        trying = np.flatnonzero(total[:, -1] >= 1e-4 * FULL)
        for _ in range(TRIES):
            level = draws(lanes[trying]) * total[trying, -1]
            end = ahead[trying, (total[trying] > level[:, None]).argmax(1)]
            paddle = DEGREES + end
            cores = (base[trying] + self._ends[end])[:, None] + self._cores[paddle]
            clear = (flat[cores] <= table.limits[paddle]).all(1)
            chosen[trying[clear]] = end[clear]
            trying = trying[~clear]
            if not len(trying):
                break
        went = chosen >= 0
        before, end = ends.at(went), chosen[went]
        self.put(lanes[went], before.paddle, before.anchor)
        return went, Ends(pivot[went], DEGREES + end, pivot[went] + table.ends[end])

    def seed(self, degree: np.ndarray, tail: np.ndarray) -> tuple[np.ndarray, Ends]:
        """First paddles (n,) with their tails at (n, 2): which lie in the picture, and the contours' ends."""
        look, angle = self.stamps.look, self.stamps.angles[degree]
        head = translate(tail, angle, look.length)
        pivot = translate(head, flipped(angle), look.reach)
        return self.contains(head) & self.contains(pivot), Ends(pivot, degree, tail)

    def free_tails(self, occupied: np.ndarray, degree: int) -> np.ndarray:
        """Pixels at which a first paddle of this orientation has room, as numbers of the picture without its rim.

        `occupied`: (side, side), where something stands.
        """
        footprint = self.stamps.footprints[degree]
        taken = np.full((self.window, self.window), not len(footprint))
        for y, x in footprint + self.rim:
            taken |= occupied[y : y + self.window, x : x + self.window]
        return np.flatnonzero(~taken)


def targets(masks: Masks, keys: np.ndarray, seed_distance: int, paddles: int) -> tuple[np.ndarray, np.ndarray]:
    """Two contours of `paddles` paddles in each of n pictures, which start `seed_distance` apart and grow in turn.

    A dead end of one begins both anew: ten attempts to a picture, or a hundred, and now and then a thousand. An attempt
    has its own stream of random numbers, so attempts of one picture run side by side, and its first that succeeds is
    the one that counts.

    Args:
        masks: as many as attempts are to run at once.
        keys: of the pictures (n,).

    Returns:
        (n, 2, paddles, 3): number of each paddle in the table and where it was put; and what is occupied then.
    """
    attempts, lanes = Attempts(keys, len(masks.occupied)), np.arange(len(masks.occupied))
    rooms, draws = _rooms(masks, seed_distance), Draws(np.zeros(len(lanes)))
    found = np.zeros((len(lanes), 2, paddles, 3), np.int64)
    pivots = np.zeros((len(lanes), 2, 2), np.int64)
    grown = np.zeros(len(lanes), np.int64)  # paddles put after the first two
    result, occupied = np.zeros((len(keys), *found.shape[1:]), np.int64), np.empty((len(keys), masks.side**2), np.uint8)
    fresh = lanes
    while True:
        fresh = fresh[attempts.assign(fresh)]
        draws.state[fresh] = attempts.keys(fresh)
        begun, ends = _two_seeds(masks, draws, fresh, rooms, seed_distance)
        masks.occupied[begun], grown[begun], pivots[begun] = masks.empty, 0, ends.pivot
        found[begun, :, 0, 0], found[begun, :, 0, 1:] = ends.paddle, ends.anchor
        unbegun = np.setdiff1d(fresh, begun)
        attempts.failed(unbegun)
        lanes = attempts.running()
        if not len(lanes):
            if not len(unbegun):
                return result, occupied
            fresh = unbegun
            continue
        which, order = grown[lanes] % 2, grown[lanes] // 2
        last = found[lanes, which, order]
        went, ends = masks.extend(draws, lanes, Ends(pivots[lanes, which], last[:, 0], last[:, 1:]))
        attempts.failed(lanes[~went])
        lanes, which, order = lanes[went], which[went], order[went] + 1
        pivots[lanes, which] = ends.pivot
        found[lanes, which, order, 0], found[lanes, which, order, 1:] = ends.paddle, ends.anchor
        grown[lanes] += 1
        done = grown[lanes] == 2 * (paddles - 1)
        # As published, the last paddle of the second contour is occupied at the end, that of the first is not.
        masks.put(lanes[done], ends.paddle[done], ends.anchor[done])
        first, pictures = attempts.succeeded(lanes[done])
        result[pictures], occupied[pictures] = found[first], masks.occupied[first]
        fresh = attempts.idle()


class Rooms(NamedTuple):
    """Where the first contour may start: `sizes` (d,) tails for each of d orientations `degrees` (d,), those of the
    first are the first of `tails` (n, 2), and so on."""

    degrees: np.ndarray
    sizes: np.ndarray
    tails: np.ndarray


def _rooms(masks: Masks, seed_distance: int) -> Rooms:
    """Room for the first contour's start: its footprint keeps 2 seed distances from every border.

    The published code draws an orientation and begins anew where that has no room: those that have some are equally
    likely.
    """
    block = masks.rim + 2 * seed_distance
    occupied = masks.inside.reshape(masks.side, masks.side) > 0
    occupied[block:-block, block:-block] = False
    rooms = [masks.free_tails(occupied, degree) for degree in range(DEGREES)]
    sizes = np.array([len(room) for room in rooms])
    if not sizes.any():
        raise ValueError(
            f"pathfinder: seed_distance={seed_distance} leaves no room for a contour to start in a picture of "
            f"{masks.window} pixels a side"
        )
    degrees = np.flatnonzero(sizes)
    return Rooms(degrees, sizes[degrees], np.stack(np.divmod(np.concatenate(rooms), masks.window), 1))


def _two_seeds(
    masks: Masks, draws: Draws, lanes: np.ndarray, rooms: Rooms, seed_distance: int
) -> tuple[np.ndarray, Ends]:
    """The first paddles of both contours: the lanes that found some, and the ends (n, 2, ...)."""
    which = draws.below(lanes, len(rooms.degrees))
    first = rooms.sizes.cumsum() - rooms.sizes
    tail = rooms.tails[first[which] + draws.below(lanes, rooms.sizes[which])]
    fits, one = masks.seed(rooms.degrees[which], tail)
    lanes, one = lanes[fits], one.at(fits)
    two = Ends(*(np.zeros_like(part) for part in one))
    trying = np.arange(len(lanes))
    for _ in range(TRIES):
        degree = draws.below(lanes[trying], DEGREES)
        direction = draws.below(lanes[trying], 360) * np.pi / 180
        away = seed_distance * np.stack([np.sin(direction), np.cos(direction)], 1)
        fits, ends = masks.seed(degree, np.rint(one.anchor[trying] + away).astype(np.int64))
        for part, new in zip(two, ends, strict=True):
            part[trying[fits]] = new[fits]
        trying = trying[~fits]
        if not len(trying):
            break
    fits = np.ones(len(lanes), bool)
    fits[trying] = False
    return lanes[fits], Ends(*(np.stack(pair, 1)[fits] for pair in zip(one, two, strict=True)))


def distractors(masks: Masks, draws: Draws, contours: int, paddles: int) -> np.ndarray:
    """Up to `contours` short contours of `paddles` paddles in what is free of every picture.

    Returns:
        (n, contours, paddles, 3) as from `targets`; -1 where one was left out.
    """
    count = len(masks.occupied)
    found = np.full((count, contours, paddles, 3), -1)
    pivots = np.zeros((count, 2), np.int64)
    at, tries, grown = (np.zeros(count, np.int64) for _ in range(3))
    kept = masks.occupied.copy()
    left = np.arange(count) if contours else np.arange(0)
    while len(left):
        fresh, ends = _free_seeds(masks, draws, left[grown[left] == 0])
        grown[fresh], pivots[fresh] = 1, ends.pivot
        found[fresh, at[fresh], 0, 0], found[fresh, at[fresh], 0, 1:] = ends.paddle, ends.anchor
        begun = grown[left] > 0
        lanes, lost = left[begun], left[~begun]
        last = found[lanes, at[lanes], grown[lanes] - 1]
        went, ends = masks.extend(draws, lanes, Ends(pivots[lanes], last[:, 0], last[:, 1:]))
        lost = np.concatenate([lost, lanes[~went]])
        lanes = lanes[went]
        pivots[lanes] = ends.pivot
        found[lanes, at[lanes], grown[lanes], 0], found[lanes, at[lanes], grown[lanes], 1:] = ends.paddle, ends.anchor
        grown[lanes] += 1
        whole = grown[lanes] == paddles
        masks.put(lanes[whole], ends.paddle[whole], ends.anchor[whole])
        done = lanes[whole]
        kept[done] = masks.occupied[done]
        masks.occupied[lost] = kept[lost]
        found[lost, at[lost]] = -1
        tries[lost] += 1
        finished = np.concatenate([done, lost[tries[lost] == CONTOUR_TRIES]])
        grown[np.concatenate([done, lost])] = 0
        at[finished] += 1
        tries[finished] = 0
        left = left[at[left] < contours]
    return found


def _free_seeds(masks: Masks, draws: Draws, lanes: np.ndarray) -> tuple[np.ndarray, Ends]:
    """The first paddle of a distractor, anywhere free: the lanes that found one, and its end."""
    seeded, ends = [np.zeros(0, np.int64)], [Ends(*(np.zeros(shape, np.int64) for shape in ((0, 2), 0, (0, 2))))]
    for _ in range(TRIES):
        degree = draws.below(lanes, DEGREES)
        rooms = [_free_room(masks, *pair) for pair in zip(lanes.tolist(), degree.tolist(), strict=True)]
        sizes = np.array([len(room) for room in rooms], np.int64)
        lanes, degree, rooms, sizes = (
            lanes[sizes > 0],
            degree[sizes > 0],
            [r for r in rooms if len(r)],
            sizes[sizes > 0],
        )
        if not len(lanes):
            break
        place = [room[at] for room, at in zip(rooms, draws.below(lanes, sizes).tolist(), strict=True)]
        fits, end = masks.seed(degree, np.stack(np.divmod(place, masks.window), 1))
        seeded.append(lanes[fits])
        ends.append(end.at(fits))
        lanes = lanes[~fits]
    return np.concatenate(seeded), Ends(*(np.concatenate(parts) for parts in zip(*ends, strict=True)))


def _free_room(masks: Masks, lane: int, degree: int) -> np.ndarray:
    """Pixels of a picture at which a distractor with this orientation can start."""
    if not len(masks.stamps.footprints[degree]):
        return np.zeros(0, np.int64)
    occupied = masks.occupied[lane].reshape(masks.side, masks.side) > FREE
    inner = occupied[masks.rim : -masks.rim, masks.rim : -masks.rim]
    return masks.free_tails(occupied, degree) if 1 - inner.mean() >= CROWDED else np.zeros(0, np.int64)
