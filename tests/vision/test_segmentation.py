"""Segmentation task: which pairs, how they are cut, what bad data do, and that it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from matmix.experiments.run import RunConfig, execute
from tests.vision.folders import QUICK, TINY, break_file
from vision.data.decoding import BrokenImage
from vision.data.images import seed_all
from vision.data.masks import IGNORED, Cut, Pairs, pairs
from vision.tasks.segmentation import Segmentation

TASK = "vision.tasks.segmentation:Segmentation"
SETTINGS = {"architecture": TINY, "img_size": 32, "width": 16, "inner": 16, "scale": (0.8, 1.25), "dropout": 0.0}


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Two images are decoded sooner than a process is started."""
    monkeypatch.setenv("MATMIX_WORKERS", "0")


def make_folder(root: Path, layout: str = "{split}/{kind}", counts: dict[str, int] | None = None) -> Path:
    """Noise with a red or a blue rectangle on it; the mask says where: 1 red, 2 blue, 0 neither."""
    random = np.random.default_rng(0)
    for split, count in (counts or {"train": 8, "val": 2, "test": 2}).items():
        images, masks = (root / layout.format(split=split, kind=kind) for kind in ("images", "masks"))
        images.mkdir(parents=True), masks.mkdir(parents=True)
        for index in range(count):
            pixels, mask = random.normal(90, 12, (30, 40, 3)), np.zeros((30, 40), np.uint8)
            top, left = random.integers(2, 10, 2)
            where = slice(top, top + 14), slice(left, left + 18)
            pixels[(*where, index % 2 * 2)] += 120
            mask[where] = 1 + index % 2
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(images / f"{index}.jpg", quality=95)
            Image.fromarray(mask).save(masks / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("masks")))


def task(data: str, **settings) -> Segmentation:
    return Segmentation(**{**SETTINGS, "data": str(data), **settings})


# ------------------------------------------------------------------ which pairs


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_both_layouts(tmp_path, layout):
    one = task(make_folder(tmp_path, layout))
    assert one.facts() == {"train": 8, "val": 2, "test": 2, "classes": 3}
    image, mask = one.pairs("test").files[1]
    assert image.name == "1.jpg" and mask.name == "1.png" and mask.parent != image.parent
    floor = one.baselines()["most frequent class"]
    assert floor["pixel_accuracy"] == pytest.approx(1 - 14 * 18 / 1200) and floor["miou"] < 0.3


def test_held_out_where_splits_are_missing(tmp_path):
    alone = task(make_folder(tmp_path / "a", "{kind}", {"": 10}), held_out=0.2)
    assert alone.facts() == {"train": 6, "val": 2, "test": 2, "classes": 3}
    parts = [set(alone.pairs(split).files) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == 10
    evaluated = make_folder(tmp_path / "b", counts={"train": 10, "val": 3})
    assert task(evaluated, held_out=0.2).facts() == {"train": 8, "val": 2, "test": 3, "classes": 3}
    papers = task(evaluated, held_out=0.0)
    assert papers.pairs("val").files == papers.pairs("test").files and len(papers.pairs("train")) == 10


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        task(tmp_path / "absent").facts()
    with pytest.raises(ValueError, match="no train/images, images/train or images"):
        task(tmp_path).facts()
    root = make_folder(tmp_path / "lonely")
    (root / "train" / "masks" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.jpg: no mask in"):
        task(root).facts()
    root = make_folder(tmp_path / "maskless")
    (root / "train" / "masks").rename(root / "train" / "elsewhere")
    with pytest.raises(ValueError, match="has no masks: there is none of"):
        task(root).facts()


def test_bad_files(tmp_path):
    root = make_folder(tmp_path)
    found = task(root).pairs("train")
    Image.new("RGB", (40, 30)).save(found.files[0][1])
    with pytest.raises(BrokenImage, match=r"0\.png cannot be read: its mode is 'RGB'; a mask has one channel"):
        found.read(0)
    Image.new("L", (7, 30)).save(found.files[1][1])
    with pytest.raises(BrokenImage, match=r"1\.jpg is \(40, 30\) pixels wide and high, its mask .*1\.png \(7, 30\)"):
        found.read(1)
    break_file(found.files[2][0])
    with pytest.raises(BrokenImage, match=r"2\.jpg cannot be read"):
        found.read(2)
    with pytest.raises(ValueError, match=r"\.png has the class 2, the last of 2 is 1"):
        list(task(root, classes=2).batches("test", 2))


def test_values_of_masks(tmp_path):
    """Palettes hold indices; where 0 is no class, the others move down."""
    values = np.array([[0, 1], [2, 255]], np.uint8)
    palette = Image.frombytes("P", (2, 2), values.tobytes())
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "mask.png")
    files = [(tmp_path / "image.png", tmp_path / "mask.png")]
    assert np.asarray(Pairs(files).mask(0)).tolist() == values.tolist()
    assert np.asarray(Pairs(files, ignore_zero=True).mask(0)).tolist() == [[IGNORED, 0], [1, IGNORED]]
    assert Pairs(files).counts()[[0, 1, 2, 255]].tolist() == [1, 1, 1, 1]


# ------------------------------------------------------------------ how they are cut


def test_evaluation_sees_the_whole_image():
    image, mask = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("L", (20, 10), 3)
    x, y = Cut(40, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))((image, mask))
    assert x.shape == (3, 40, 40) and y.shape == (40, 40)
    assert (y[:20] == 3).all() and (y[20:] == IGNORED).all()
    assert (x[0, :20] == 1).all() and (x[1, :20] == -1).all() and (x[:, 20:] == 0).all()


def test_training_moves_image_and_mask_alike():
    """A mask that is a channel of the image stays one, in every cut; outside of the image nothing counts."""
    values = np.zeros((30, 40), np.uint8)
    values[8:20, 5:30] = 200
    pair = Image.fromarray(np.stack([values] * 3, -1)), Image.fromarray(values)
    cut = Cut(32, (0.0,) * 3, (1.0,) * 3, train=True, scale=(0.5, 2.0))
    sizes = set()
    for seed in range(20):
        seed_all(seed)
        x, y = cut(pair)
        counted = y != IGNORED
        wrong = ((x[0] * 255 > 100) != (y == 200)) & counted
        assert wrong.float().mean() < 0.08  # bilinear against nearest, at the edges
        assert (x[:, ~counted] == 0).all()
        sizes.add(int((y == 200).sum()))
    assert len(sizes) > 10


def test_batches_follow_from_seed_and_step(folder):
    one = task(folder)
    run = one.batches("train", 4, seed=3)
    whole = [next(run) for _ in range(4)]
    late = next(one.batches("train", 4, seed=3, start=3))
    assert torch.equal(late.x, whole[3].x) and torch.equal(late.y, whole[3].y)
    shares = [next(one.batches("train", 4, seed=3, start=3, rank=rank, world=2)) for rank in range(2)]
    assert torch.equal(torch.cat([share.x for share in shares]), whole[3].x)
    assert not torch.equal(next(one.batches("train", 4, seed=4)).x, whole[0].x)
    assert whole[0].x.shape == (4, 3, 32, 32) and whole[0].y.shape == (4, 32, 32)


# ------------------------------------------------------------------ the task


def test_loss_of_parts_adds_up(folder):
    one = task(folder)
    batch = next(one.batches("train", 8))
    logits = torch.randn(8, 3, 32, 32)
    parts = [one.loss(logits[i : i + 4], batch.map(lambda t, i=i: t[i : i + 4])) for i in (0, 4)]
    torch.testing.assert_close(one.loss(logits, batch), sum(parts) / 2)
    counted = batch.y != IGNORED
    mean = F.cross_entropy(logits.movedim(1, -1)[counted], batch.y[counted])
    torch.testing.assert_close(one.loss(logits, batch), mean * counted.float().mean())


def test_arms_differ_in_the_mixers_alone(folder):
    one, other = (task(folder).model(mixer, 0).state_dict() for mixer in ("pooling", "attention(head_dim=4)"))
    shared = [name for name in one if "token_mixer" not in name]
    assert len(shared) > 40 and all(torch.equal(one[name], other[name]) for name in shared)
    assert any("token_mixer" in name for name in other)


def test_starts_from_weights_of_a_classifier(folder, tmp_path):
    from vision import create_model

    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    weights = create_model("metaformer_s18", **options, num_classes=5).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    made = task(folder, weights=str(tmp_path / "weights.pth"), weights_classes=5).model("", 0)
    assert torch.equal(made.backbone.model.stem.conv.weight, weights["stem.conv.weight"])
    assert made(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_published_recipe():
    one, recipe = Segmentation(architecture="poolformer_s12").named_recipe("published")
    assert (one.img_size, recipe.steps, recipe.batch_size, recipe.lr, recipe.weight_decay) == (
        512,
        40000,
        32,
        2e-4,
        1e-4,
    )
    with pytest.raises(ValueError, match="has no recipe 'fast'"):
        one.named_recipe("fast")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 300}, r"classes must be a whole number in \[0, 254\], got 300"),
        ({"scale": (2.0, 1.0)}, "scale must go from small to large"),
        ({"held_out": 0.7}, r"held_out must be a finite number in \[0, 0.5\), got 0.7"),
        ({"flip": -1.0}, r"flip must be a finite number in \[0, 1\], got -1.0"),
        ({"inner": 0}, r"inner must be a whole number in \[1, 1e\+09\], got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(**settings)


def test_a_run_from_end_to_end(folder, tmp_path):
    result = execute(RunConfig(TASK, "", 0, {**SETTINGS, "data": folder}, QUICK), tmp_path)
    assert result.status == "finished" and 0 <= result.test["miou"] <= 1 and result.facts["classes"] == 3


@pytest.mark.slow
def test_learns_a_handful_of_images(tmp_path):
    """Through the trainer: what it was trained on, with the augmentation off, is segmented at the end."""
    root = make_folder(tmp_path / "data", counts={"train": 6, "test": 1})
    settings = {**SETTINGS, "data": str(root), "held_out": 0.0, "scale": (0.75, 0.75), "flip": 0.0, "classes": 3}
    architecture = "metaformer_s18(depths=(1, 1, 1, 1), dims=(16, 16, 32, 32))"
    recipe = {**QUICK, "steps": 150, "batch_size": 6, "lr": 1e-2, "eval_every": 150, "checkpoint_every": 150}
    result = execute(RunConfig(TASK, "", 0, {**settings, "architecture": architecture}, recipe), tmp_path / "run")
    assert result.status == "finished" and result.test["pixel_accuracy"] > 0.9, result


def test_settings_are_a_frozen_dataclass():
    assert dataclasses.replace(Segmentation(), img_size=64) == Segmentation(img_size=64)
    with pytest.raises(ValueError, match="name one with images and masks"):
        pairs("")
