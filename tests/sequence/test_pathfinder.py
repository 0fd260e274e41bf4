"""Pathfinder's generator draws what the published one draws, each picture from its seed and number alone."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sequence.data import pathfinder
from sequence.data.pathfinder import SIZES, draw, published
from sequence.data.pathfinder_stamps import circle, disc, stamps, translate, turn_weights
from sequence.data.pathfinder_walk import Masks, targets

REFERENCE = Path(__file__).parents[1] / "reference" / "sequence"


def fixture(name: str) -> dict:
    return json.loads((REFERENCE / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def drawn() -> pathfinder.Drawn:
    return draw(published(32), seed=0, indices=range(400))


def test_published_geometry() -> None:
    data = fixture("data_pathfinder_geometry")
    for move in data["moves"]:
        assert translate(np.array(move["coord"]), move["orientation"], move["dist"]).tolist() == move["result"]
    for radius, picture in data["dilation"].items():
        assert sorted((disc(int(radius)) + int(radius)).tolist()) == np.argwhere(picture).tolist()
    for row in data["rows"]:
        points = circle(row["step_length"]) + row["last_endpoint"]
        inside = ((points >= 0) & (points < row["size"])).all(1)
        angles = np.arctan2(*(circle(row["step_length"])[inside].T))
        weights = turn_weights(np.array([row["last_orientation"]]), angles, row["continuity"])[0]
        weights *= points[inside, 0] >= row["occupied_rows"]
        assert points[inside].tolist() == row["coords"]
        np.testing.assert_allclose(angles, row["orientations"], rtol=1e-8)
        np.testing.assert_allclose(weights / weights.sum(), row["pmf"], rtol=1e-8, atol=1e-12)


def test_settings_are_the_published_ones() -> None:
    config, ours = fixture("data_pathfinder32_samples")["config"], published(32)
    contrast = config["snake_contrast_list"][0]
    assert (ours.target_contrast, ours.distractor_contrast) == (contrast * config["paddle_contrast_list"][0], contrast)
    for name, value in {"window": config["window_size"][0], "paddle_margins": (1,), "antialias": 2}.items():
        assert getattr(ours, name) == value
    named = {"distractors": "num_distractor_snakes"}
    for name in ("padding", "paddle_length", "marker_radius", "contour_length", "paddle_thickness", "seed_distance",
                 "continuity", "distractor_length", "distractors"):  # fmt: skip
        assert getattr(ours, name) == config[named.get(name, name)]


def test_contours_drift_as_the_published_ones(drawn) -> None:
    """From start to end, the first down and to the right, as of 600 pictures that the published code drew with OpenCV:
    means and deviations of both contours, which are why the places of the discs alone tell something of the label."""
    published_mean, deviation = [[3.87, 4.53], [-0.74, -0.85]], [[8.40, 7.71], [10.87, 10.92]]
    drift = drawn.contours[:, :, -1].astype(float) - drawn.contours[:, :, 0]
    error = np.hypot(np.array(deviation) / 600**0.5, drift.std(0, ddof=1) / len(drift) ** 0.5)
    assert (abs(drift.mean(0) - published_mean) < 3 * error).all(), drift.mean(0)
    assert (abs(drift.std(0) / deviation - 1) < 0.15).all()
    assert (drift.mean(0)[0] > 4 * error[0]).all()  # and it is there: without one, 0


def test_statistics_are_the_published_ones(drawn) -> None:
    """Mean, deviation and shares of pixels by picture agree with the 24 published ones within four standard errors."""
    data = fixture("data_pathfinder32_samples")
    theirs = np.frombuffer(base64.b64decode(data["images_base64"]), np.uint8).reshape(data["images_shape"])
    measures = {
        "mean": lambda x: x.mean((1, 2)),
        "deviation": lambda x: x.std((1, 2)),
        "not black": lambda x: (x > 0).mean((1, 2)),
        "above 128": lambda x: (x > 128).mean((1, 2)),
        "in the middle": lambda x: x[:, 8:24, 8:24].mean((1, 2)),
        "at the border": lambda x: x[:, 0].mean(1) + x[:, -1].mean(1) + x[:, :, 0].mean(1) + x[:, :, -1].mean(1),
    }
    for name, measure in measures.items():
        one, two = measure(theirs.astype(float)), measure(drawn.images.astype(float))
        error = np.hypot(one.std(ddof=1) / len(one) ** 0.5, two.std(ddof=1) / len(two) ** 0.5)
        assert abs(one.mean() - two.mean()) < 4 * error, (name, one.mean(), two.mean(), error)
    assert drawn.images.min() == 0 and (drawn.images.max((1, 2)) == 255).all()
    # The paint is the published one: no grey level that ours does not have, rounding included.
    assert not np.isin(theirs[theirs > 8], np.unique(drawn.images), invert=True).any()


def test_pictures_show_what_their_labels_say(drawn) -> None:
    """Contours have their length, discs lie at their tips, and the label says whether on the same one."""
    settings, count = published(32), len(drawn.labels)
    assert drawn.contours.shape == (count, 2, 14, 2)
    assert (drawn.contours >= 0).all() and (drawn.contours < 32).all()
    assert abs(drawn.labels.mean() - 0.5) < 4 * 0.5 / count**0.5
    starts, ends = drawn.contours[:, :, 0], drawn.contours[:, :, -1]
    at_start = (drawn.discs[:, :1] == starts).all(-1)
    at_end = (drawn.discs[:, 1:] == ends).all(-1)
    assert at_start.any(1).all() and at_end.any(1).all()
    same = (at_start & at_end).any(1)
    assert (same == (drawn.labels == 1)).all()
    assert abs(np.linalg.norm(starts[:, 0] - starts[:, 1], axis=-1) - settings.seed_distance).max() <= 0.75
    # A paddle ends length + margin from its pivot, which is length + 2 margins further than the last one.
    steps = np.linalg.norm(np.diff(drawn.contours[:, :, 1:], axis=2), axis=-1)
    assert steps.max() <= 2 * (settings.paddle_length + 2) and steps.min() >= 1
    assert 0.9 < drawn.distractors.mean() < 1.5 and drawn.distractors.max() <= settings.distractors
    middles = drawn.images[np.arange(count)[:, None], drawn.discs[..., 0], drawn.discs[..., 1]]
    assert middles.min() > 150  # 1 of at most 1.4


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_follows_from_seed_and_number(size: int, monkeypatch) -> None:
    """Whatever is drawn with it, and however many attempts run at once."""
    settings = published(size)
    whole = draw(settings, seed=3, indices=range(3))
    assert whole.images.shape == (3, size, size) and len(np.unique(whole.images, axis=0)) == 3
    if size <= 32:
        monkeypatch.setattr(pathfinder, "LANES", 20)
        for part in ([1], [2, 0]):
            for ours, all_ in zip(draw(settings, seed=3, indices=part), whole, strict=True):
                assert (ours == all_[part]).all()
        assert not (draw(settings, seed=4, indices=[0]).images == whole.images[:1]).all()


def test_easier_contours_are_shorter() -> None:
    for length, short in ((6, 2), (9, 3), (14, 4)):
        settings = published(32, length)
        found = draw(settings, seed=0, indices=range(4))
        assert found.contours.shape[2] == length and settings.distractor_length == short


def test_paddles_keep_their_distance() -> None:
    """Masks of the two contours reach less than 1.8 of full together, but for paddles put at the same time: as
    published, the last paddle of a contour is not yet in the other's way."""
    settings = published(64)
    masks = Masks(stamps(settings.look(1)), 64, 1, 128)
    found, _ = targets(masks, np.arange(1, 4, dtype=np.uint64), settings.seed_distance, settings.contour_length)
    inside, most = masks.inside.reshape(-1), []
    for one, two in found:
        painted = np.zeros((2, len(one), len(inside)), np.int64)
        for layer, contour in zip(painted, (one, two), strict=True):
            for paddle, (number, y, x) in zip(layer, contour, strict=True):
                paddle[masks.window_of(np.array([[y, x]]))[0]] = masks.stamps.masks[number].ravel()
        for i in range(len(one)):
            apart = [j for j in range(len(two)) if abs(i - j) > 1]
            most.append(((painted[0, i] + painted[1, apart]) * inside).max())
    assert 255 < max(most) < 459


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="size must be one of 16, 32, 64, 128, 256, got 48"):
        published(48)
    with pytest.raises(ValueError, match="contour_length must be 0 or at least 3, got 2"):
        published(32, 2)
    with pytest.raises(ValueError, match="seed_distance=8 leaves no room"):
        draw(dataclasses.replace(published(32), seed_distance=8), seed=0, indices=[0])
    with pytest.raises(ValueError, match="must be whole"):
        dataclasses.replace(published(32), paddle_thickness=0.7)
    with pytest.raises(ValueError, match="indices are empty"):
        draw(published(32), seed=0, indices=[])
