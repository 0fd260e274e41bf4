"""Random numbers of many pictures at once, and who works at which attempt.

Each picture, and each attempt at one, has its own stream, so what comes out hangs neither on the other pictures nor on
how many attempts run side by side.
"""

from __future__ import annotations

import numpy as np

NEVER = 2**62
"""The number of an attempt that has not succeeded."""
STREAMS = 0xD1342543DE82EF95
"""An odd number, by which the streams of a picture's attempts lie apart before they are mixed."""


def mixed(z: np.ndarray) -> np.ndarray:
    """splitmix64's last step, uint64: neighbours come out unrelated."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Draws:
    """A stream of random numbers for each of n pictures: splitmix64 of a counter, so they follow from the key alone."""

    def __init__(self, keys: np.ndarray) -> None:
        self.state = keys.astype(np.uint64)

    def __call__(self, lanes: np.ndarray) -> np.ndarray:
        """One number in [0, 1) for each of `lanes`, which are different."""
        z = self.state[lanes] + np.uint64(0x9E3779B97F4A7C15)
        self.state[lanes] = z
        return (mixed(z) >> np.uint64(11)) * 2.0**-53

    def below(self, lanes: np.ndarray, count: int | np.ndarray) -> np.ndarray:
        """A whole number in [0, count) for each lane."""
        return (self(lanes) * count).astype(np.int64)


class Attempts:
    """Which lane works at which attempt of which picture."""

    def __init__(self, keys: np.ndarray, lanes: int) -> None:
        self._keys = keys.astype(np.uint64)
        self.picture, self.attempt = np.full(lanes, -1), np.zeros(lanes, np.int64)
        self.begun = np.zeros(len(keys), np.int64)
        self.best = np.full(len(keys), NEVER)

    def assign(self, lanes: np.ndarray) -> np.ndarray:
        """Give idle lanes the next attempts, of pictures with few before others; which of them have one now."""
        open_ = np.flatnonzero(self.best == NEVER)
        if not len(open_) or not len(lanes):
            return np.zeros(len(lanes), bool)
        open_ = open_[np.argsort(self.begun[open_], kind="stable")]
        pictures = np.resize(open_, len(lanes))
        self.picture[lanes] = pictures
        self.attempt[lanes] = self.begun[pictures] + np.arange(len(lanes)) // len(open_)
        np.add.at(self.begun, pictures, 1)
        return np.ones(len(lanes), bool)

    def keys(self, lanes: np.ndarray) -> np.ndarray:
        """Of the streams of their attempts."""
        step = (self.attempt[lanes] + 1).astype(np.uint64) * np.uint64(STREAMS)
        return mixed(self._keys[self.picture[lanes]] + step)

    def running(self) -> np.ndarray:
        return np.flatnonzero(self.picture >= 0)

    def idle(self) -> np.ndarray:
        """The lanes without work; an attempt after one that succeeded is given up."""
        needless = (self.picture >= 0) & (self.attempt > self.best[self.picture])
        self.picture[needless] = -1
        return np.flatnonzero(self.picture < 0)

    def failed(self, lanes: np.ndarray) -> None:
        self.picture[lanes] = -1

    def succeeded(self, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lanes whose attempts are the first of their pictures to succeed so far, and those pictures."""
        pictures, attempts = self.picture[lanes], self.attempt[lanes]
        np.minimum.at(self.best, pictures, attempts)
        first = self.best[pictures] == attempts
        self.picture[lanes] = -1
        return lanes[first], pictures[first]
