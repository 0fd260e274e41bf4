"""Image tasks: which images, in what order, augmented how; and what bad data do."""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matmix.experiments import trainer
from matmix.experiments.checkpoint import write_tensors
from matmix.experiments.run import Result, RunConfig, execute, read_metrics
from tests.vision.folders import QUICK, SETTINGS, break_file, make_folder
from vision.data import hub, splits
from vision.data.batches import Mix, training_shares
from vision.data.decoding import BrokenImage
from vision.data.splits import divide
from vision.tasks import classify
from vision.tasks.cifar10 import CIFAR10
from vision.tasks.classify import Classify
from vision.tasks.imagefolder import ImageFolder
from vision.tasks.imagenet import ImageNet

CLOTHING = Path(os.environ.get("MATMIX_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "clothing160"
AUGMENTED = {
    "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "repeats": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    """Two images are decoded sooner than a process is started."""
    monkeypatch.setenv("MATMIX_WORKERS", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("images")))


def task(data: str, **settings) -> ImageFolder:
    return ImageFolder(**{**SETTINGS, "data": data, **settings})


def take(one: Classify, steps: int, batch_size: int = 8, **where):
    batches = one.batches("train", batch_size, seed=3, **where)
    return [next(batches) for _ in range(steps)]


# ------------------------------------------------------------------ which images


def test_splits_of_a_folder(folder):
    one = task(folder)
    assert one.facts() == {"train": 24, "val": 9, "test": 9}
    assert one.number_of_classes() == 3 and one.baselines()["most frequent class"]["accuracy"] == pytest.approx(1 / 3)
    batch = next(one.batches("val", 16))
    assert batch.x.shape == (9, 3, 32, 32) and batch.y.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    # Blue, green, red: the pixels are those of the class.
    assert batch.x[[0, 3, 6]].mean((2, 3)).argmax(1).tolist() == [2, 1, 0]


def test_a_lone_evaluation_split_is_what_one_tests_on(tmp_path):
    one = task(str(make_folder(tmp_path, {"train": 10, "val": 2})), held_out=0.2)
    assert one.facts() == {"train": 24, "val": 6, "test": 6}
    assert set(one.images("val").indices).isdisjoint(one.images("train").indices)
    assert one.images("val").targets.bincount().tolist() == [2, 2, 2]
    assert one.images("test").reader.filename(0).startswith(str(tmp_path / "val"))


def test_classes_without_splits_are_divided(tmp_path):
    make_folder(tmp_path, {"train": 10})
    one = task(str(tmp_path / "train"), held_out=0.2)
    assert one.facts() == {"train": 18, "val": 6, "test": 6}
    parts = [set(one.images(split).indices) for split in ("train", "val", "test")]
    assert set.union(*parts) == set(range(30)) and sum(map(len, parts)) == 30


def test_nothing_held_out_validates_on_the_test_split(tmp_path):
    one = task(str(make_folder(tmp_path, {"train": 4, "test": 2})), held_out=0.0)
    assert one.facts() == {"train": 12, "val": 6, "test": 6}
    assert one.images("val").reader.filename(0) == one.images("test").reader.filename(0)


def test_what_one_tests_on_is_enough_to_evaluate(tmp_path):
    one = task(str(make_folder(tmp_path, {"val": 2})))
    assert next(one.batches("test", 8)).y.tolist() == [0, 0, 1, 1, 2, 2] and one.number_of_classes() == 3
    with pytest.raises(ValueError, match="has no training images"):
        one.images("train")


def test_nothing_held_out_needs_something_to_test_on(tmp_path):
    make_folder(tmp_path, {"train": 4})
    with pytest.raises(ValueError, match="held_out: with 0 there is nothing to test on"):
        task(str(tmp_path / "train"), held_out=0.0).images("test")


def test_divide_is_stratified_and_fixed_by_its_seed():
    labels = [0] * 30 + [1] * 10
    val, rest = divide(labels, 0.2, 1, 5)
    assert [sum(labels[i] == label for i in val) for label in (0, 1)] == [6, 2] and len(rest) == 32
    assert divide(labels, 0.2, 1, 5) == [val, rest] != divide(labels, 0.2, 1, 6)
    with pytest.raises(ValueError, match="class 1 has 1 images, too few"):
        divide([0, 0, 0, 1], 0.1, 1, 0)


def test_the_other_containers_hold_the_same_images(folder, tmp_path):
    """WebDataset shards (labels as text and as JSON), and JPEG bytes in arrays."""
    plain = task(folder)
    shards, arrays = tmp_path / "shards", {"classes": np.array(["blue", "green", "red"])}
    shards.mkdir()
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        reader, blobs, labels = plain._sources()[split], [], []
        with tarfile.open(shards / f"set-{name}-0000.tar", "w") as tar:
            for index in range(len(reader)):
                file, label = reader[index]
                blobs.append(file.read())
                labels.append(label)
                text = (str(label) if index % 2 else json.dumps({"label": label})).encode()
                for ending, content in (("jpg", blobs[-1]), ("cls" if index % 2 else "json", text)):
                    info = tarfile.TarInfo(f"{index:05d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        arrays |= {
            f"jpeg_{split}": np.frombuffer(b"".join(blobs), np.uint8),
            f"off_{split}": np.cumsum([0, *map(len, blobs)]),
            f"y_{split}": np.array(labels),
        }
    np.savez(tmp_path / "set.npz", **arrays)
    for other in (task(str(shards)), task(str(tmp_path / "set.npz"))):
        assert other.facts() == plain.facts() and other.number_of_classes() == 3
        for split in ("train", "val", "test"):
            mine, theirs = (next(one.batches(split, 8)) for one in (plain, other))
            assert torch.equal(mine.x, theirs.x) and torch.equal(mine.y, theirs.y)


def test_a_hub_data_set(folder, monkeypatch):
    """The hub's library, with what it would download replaced by the folder."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["blue", "green", "red"])})
    plain, made = task(folder), {}
    for split, name in (("train", "train"), ("test", "test")):
        reader = plain._sources()[split]
        rows = [reader[index] for index in range(len(reader))]
        columns = {
            "img": [{"bytes": file.read(), "path": None} for file, _ in rows],
            "fine": [label for _, label in rows],
        }
        made[name] = datasets.Dataset.from_dict(columns, features=features)
    builder = type("Builder", (), {"info": datasets.DatasetInfo(features=features)})
    monkeypatch.setattr(hub, "hub_answers", lambda name: True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: list(made))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, **options: made[split])
    one = task("someone/colours")  # opened sources are kept by their name
    assert one.facts() == {"train": 21, "val": 3, "test": 9}
    assert torch.equal(next(one.batches("test", 9)).x, next(plain.batches("test", 9)).x)


def test_imagenet_and_cifar_know_their_classes():
    assert ImageNet(architecture="x").number_of_classes() == 1000 and CIFAR10().number_of_classes() == 10
    assert ImageNet.as_test == "val" and set(ImageNet(architecture="x").metrics()) == {"accuracy", "top5"}


# ------------------------------------------------------------------ in what order, augmented how


def test_images_depend_on_seed_and_step_alone(folder, monkeypatch):
    one = task(folder, **AUGMENTED)
    here = take(one, 5)
    monkeypatch.setenv("MATMIX_WORKERS", "2")
    workers = take(one, 5)
    later = take(one, 2, start=3)
    for one_batch, other in (*zip(here, workers, strict=True), *zip(here[3:], later, strict=True)):
        assert torch.equal(one_batch.x, other.x) and torch.equal(one_batch.y, other.y)
    assert not torch.equal(here[0].x, here[1].x)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_make_the_parts_of_one_batch(folder, world):
    one = task(folder, **{**AUGMENTED, "repeats": 1})
    whole = take(one, 3)
    parts = [take(one, 3, rank=rank, world=world) for rank in range(world)]
    for step in range(3):
        assert torch.equal(torch.cat([part[step].x for part in parts]), whole[step].x)
        assert torch.equal(torch.cat([part[step].y for part in parts]), whole[step].y)


def test_other_generators_stand_still(folder):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    take(task(folder, **AUGMENTED), 2)
    next(task(folder).batches("val", 4))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_held_images_are_the_files_made_smaller(folder):
    held, read = task(folder, shrink=20, img_size=16), task(folder, img_size=16)
    assert {image.shape for image in held.images("val").held} == {(20, 22, 3)}
    a, b = next(held.batches("val", 9)).x, next(read.batches("val", 9)).x
    assert a.shape == b.shape and (a - b).abs().mean() < 0.25 * a.std()  # two reductions instead of one


def test_repeated_augmentation_shows_an_image_several_times():
    share = next(training_shares(30, 12, seed=0, repeats=3))
    assert sorted(share.positions) == sorted(share.positions[:4] * 3) and len(set(share.seeds)) == 12
    assert all(a != b for a, b in zip(share.positions[::2], share.positions[1::2], strict=True))
    with pytest.raises(ValueError, match="must divide by 3 repeats x 2 processes"):
        next(training_shares(30, 8, seed=0, repeats=3, world=2))


def test_mixing_pairs_neighbours():
    x = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8).contiguous()
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    kinds = set()
    for seed in range(20):
        mixed, target = Mix(3, mixup=0.8, cutmix=1.0)(x, y, seed)
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        share = target[0, 0].item()
        uniform = mixed.flatten(1).std(1).max() < 1e-6
        kinds.add("mixup" if uniform else "cutmix")
        # What is seen of the partner is what its label gets.
        torch.testing.assert_close(mixed[0].mean(), torch.tensor(1 - share), atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed[1].mean(), torch.tensor(share), atol=1e-5, rtol=0)
        assert target[2].tolist() == [0, 0, 1]  # two of one class
    assert kinds == {"mixup", "cutmix"}
    with pytest.raises(ValueError, match="even number"):
        Mix(3, mixup=1.0)(x[:5], y[:5], 0)


def test_smoothing_alone():
    _, target = Mix(4, smoothing=0.2)(torch.zeros(1, 3, 2, 2), torch.tensor([1]), 0)
    torch.testing.assert_close(target, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


def test_synthetic_data(tmp_path):
    one = ImageNet(**{**SETTINGS, "data": "synthetic"})
    batches = one.batches("train", 8, world=2)
    first = next(batches)
    assert first.x.shape == (4, 3, 32, 32) and first.y.shape == (4, 1000) and next(batches) is first
    result = execute(
        RunConfig("imagenet", "", 0, {**SETTINGS, "data": "synthetic"}, {**QUICK, "precision": "no"}), tmp_path
    )
    assert result.status == "finished" and result.samples_per_second > 0 and "noise" in result.facts["data"]


# ------------------------------------------------------------------ the model


def test_arms_of_a_study_share_all_other_weights(folder):
    one = task(folder)
    arms = [one.model(mixer, 7).state_dict() for mixer in ("attention", "identity", "sep_conv(expand=1)")]
    others = [name for name in arms[1] if ".token_mixer." not in name]
    assert len(others) > 20
    assert all(torch.equal(arms[0][name], arm[name]) for arm in arms[1:] for name in others)
    assert not torch.equal(arms[0]["stem.conv.weight"], one.model("attention", 8).state_dict()["stem.conv.weight"])


def test_grey_images(tmp_path):
    one = task(str(make_folder(tmp_path, mode="L")), channels=1)
    batch = next(one.batches("train", 8))
    assert batch.x.shape == (8, 1, 32, 32) and one.model("", 0)(batch.x).shape == (8, 3)


def test_start_from_weights_of_another_number_of_classes(folder, tmp_path):
    pretrained = task(folder).model("", 1)
    pretrained.reset_classifier(5)
    write_tensors(tmp_path / "five.safetensors", pretrained.state_dict())
    tuned = task(folder, weights=str(tmp_path / "five.safetensors"), weights_classes=5).model("", 0)
    assert torch.equal(tuned.stem.conv.weight, pretrained.stem.conv.weight) and tuned.num_classes == 3
    with pytest.raises(
        ValueError, match=r"five.safetensors does not fit MetaFormer: of the wrong shape: head.fc.fc2.bias"
    ):
        task(folder, weights=str(tmp_path / "five.safetensors")).model("", 0)


def test_start_from_weights_of_another_size(folder, tmp_path):
    made = task(folder).model("global_filter", 1)
    write_tensors(tmp_path / "32.safetensors", made.state_dict())
    grown = task(folder, img_size=64, weights=str(tmp_path / "32.safetensors"), weights_size=32)
    model = grown.model("global_filter", 0)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert torch.equal(model.stem.conv.weight, made.stem.conv.weight)


# ------------------------------------------------------------------ training


class Crash(BaseException):
    """As sudden as a kill: nothing is written after it."""


def forget() -> None:
    """What a process keeps is gone in the next one."""
    for kept in (classify.data_config, splits.sources, splits.split_images):
        kept.cache_clear()


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("final.safetensors", "best.safetensors", "metrics.jsonl")}


def test_a_killed_training_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
    """Everything that is random at once: augmentation, mixing, drop path, and averaged weights."""
    settings = {**SETTINGS, **AUGMENTED, "data": folder, "drop_path": 0.3, "dropout": 0.2}
    config = RunConfig("imagefolder", "attention(head_dim=4)", 2, settings, {**QUICK, "ema": 0.8})
    assert execute(config, tmp_path / "whole").status == "finished"
    real, left = trainer.accumulate, 0

    def mortal(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash
        return real(*arguments)

    monkeypatch.setattr(trainer, "accumulate", mortal)
    for steps in (2, 5, 4):  # dies in step 2, then 5, then 7
        left = steps
        forget()
        with pytest.raises(Crash):
            execute(config, tmp_path / "killed")
    left = -1
    forget()
    assert execute(config, tmp_path / "killed").status == "finished"
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "killed")


def test_averaged_weights_are_what_is_scored(folder, tmp_path):
    from safetensors.torch import load_file

    plain, averaged = (
        RunConfig("imagefolder", "", 0, {**SETTINGS, "data": folder}, {**QUICK, "ema": ema, "lr": 0.01, "warmup": 0.0})
        for ema in (0.0, 0.5)
    )
    steps = []
    for count in range(1, 4):
        config = RunConfig("imagefolder", "", 0, plain.options, {**plain.recipe, "lr_end": 1.0, "steps": count})
        execute(config, tmp_path / str(count))
        steps.append(load_file(tmp_path / str(count) / "final.safetensors")["stem.conv.weight"])
    config = RunConfig("imagefolder", "", 0, averaged.options, {**averaged.recipe, "lr_end": 1.0, "steps": 3})
    execute(config, tmp_path / "mean")
    expected = 0.5 * (0.5 * steps[0] + 0.5 * steps[1]) + 0.5 * steps[2]  # the first update copies
    mean = load_file(tmp_path / "mean" / "final.safetensors")["stem.conv.weight"]
    torch.testing.assert_close(mean, expected)
    assert not torch.allclose(mean, steps[2])


def test_a_batch_in_parts_is_the_same_batch(folder, tmp_path):
    """Fewer devices keep the published batch; pairs that are mixed are never divided."""
    options, curves = {**SETTINGS, "data": folder, "mixup": 0.8, "cutmix": 1.0}, []
    for parts in (1, 4):
        config = RunConfig("imagefolder", "", 0, {**options, "drop_path": 0.0}, {**QUICK, "accumulate": parts})
        assert execute(config, tmp_path / str(parts)).status == "finished"
        curves.append([line["loss"] for line in read_metrics(tmp_path / str(parts))])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3) and len(curves[0]) >= 6


@pytest.mark.slow
def test_two_processes_train_as_one(folder, tmp_path):
    """`accelerate launch` with two CPU processes: the loss curve of one process with the same batch."""
    config = RunConfig("imagefolder", "", 0, {**SETTINGS, "data": folder, "mixup": 0.8, "drop_path": 0.0}, QUICK)
    assert execute(config, tmp_path / "one").status == "finished"
    _, *words, out = shlex.split(config.command(tmp_path / "one"))
    assert out.startswith("repeat/")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29617",
              "-m", "matmix.experiments.cli")  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MATMIX_WORKERS": "0"}
    done = subprocess.run(
        [sys.executable, *launch, *words, str(tmp_path / "two")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_metrics(tmp_path / way) for way in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-3)
    assert Result.read(tmp_path / "two").environment["command"]


# ------------------------------------------------------------------ bad data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_training_by_name(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("MATMIX_WORKERS", str(workers))
    broken = break_file(make_folder(tmp_path / "data") / "train" / "green" / "3.jpg")
    with pytest.raises(BrokenImage, match=rf"^data: {broken} cannot be read: .*truncated"):
        take(task(str(tmp_path / "data")), 3)
    config = RunConfig("imagefolder", "", 0, {**SETTINGS, "data": str(tmp_path / "data")}, QUICK)
    result = execute(config, tmp_path / "run")
    assert result.status == "failed" and str(broken) in result.error and "\n" not in result.error


def test_broken_images_are_left_out_and_listed(tmp_path):
    root = make_folder(tmp_path / "data")
    names = [break_file(root / "train" / "green" / "3.jpg"), root / "test" / "red" / "0.jpg"]
    names[1].write_text("not an image")
    config = RunConfig("imagefolder", "", 0, {**SETTINGS, "data": str(root), "broken": "skip"}, QUICK)
    with pytest.warns(UserWarning, match="1 of 24 images are left out: .*3.jpg"):
        result = execute(config, tmp_path / "run")
    assert result.status == "finished" and result.facts["broken"] == 2
    assert (result.facts["train"], result.facts["val"], result.facts["test"]) == (23, 9, 8)
    assert all(str(name) in result.facts["broken files"] for name in names)


def test_an_empty_class(tmp_path):
    (make_folder(tmp_path) / "train" / "yellow").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*train/yellow holds no image"):
        task(str(tmp_path)).model("", 0)


def test_images_may_lie_deeper_and_hidden_files_are_none(tmp_path):
    make_folder(tmp_path)
    deep = tmp_path / "train" / "red" / "more"
    deep.mkdir()
    (tmp_path / "train" / "red" / "0.jpg").rename(deep / "0.JPG")
    (deep / "._0.jpg").write_text("left by a file system")
    assert task(str(tmp_path)).images("train").targets.bincount().tolist() == [8, 8, 8]


def test_weights_for_other_channels(folder, tmp_path):
    write_tensors(tmp_path / "grey.safetensors", task(folder, channels=1).model("", 0).state_dict())
    with pytest.raises(
        ValueError, match=r"grey.safetensors does not fit MetaFormer: .*stem.conv.weight \(8, 1, 7, 7\)"
    ):
        task(folder, weights=str(tmp_path / "grey.safetensors")).model("", 0)


def test_a_class_that_training_lacks(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rde")
    with pytest.raises(ValueError, match="test/rde is a class that the training split does not have"):
        task(str(tmp_path)).number_of_classes()


def test_sixteen_bits_are_refused(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "val" / "blue" / "deep.png"
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(path)
    with pytest.raises(BrokenImage, match=r"deep.png cannot be read: its mode is 'I;16'"):
        next(task(str(tmp_path)).batches("val", 16))


def test_other_pixel_formats_are_converted(tmp_path):
    make_folder(tmp_path)
    colours = np.zeros((40, 40, 4), np.uint8)
    colours[..., 0] = colours[..., 3] = 255
    for index, mode in enumerate(("RGBA", "CMYK", "P", "L", "1")):
        image = Image.fromarray(colours).convert("RGB").convert(mode)
        image.save(tmp_path / "val" / "red" / f"x{index}.{'tif' if mode == 'CMYK' else 'png'}")
    assert next(task(str(tmp_path)).batches("val", 16)).x.shape[1] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "name the data: --data"),
        ({"data": "/nowhere/at/all"}, "there is no folder, .npz file or Hugging Face data set"),
        ({"channels": 2}, "channels must be one of 1, 3, got 2"),
        ({"broken": "ignore"}, "broken must be one of 'stop', 'skip'"),
        ({"scale": (0.5, 0.1)}, "scale must go from small to large"),
        ({"architecture": ""}, "name the model: --model"),
        ({"architecture": "convfrmer_s18"}, "did you mean convformer_s18"),
        ({"architecture": "convformer_s18(depth=3)"}, "has no option 'depth'"),
        ({"weights": "none.pth"}, "there is no file of weights none.pth"),
        ({"smoothing": 1.5}, "smoothing must be a finite number"),
        ({"repeats": 0}, "repeats must be a whole number in"),
    ],
)
def test_wrong_settings(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        task(**{"data": folder, **settings}).model("", 0)


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="needs the clothing160 folder (MATMIX_DATA names its parent)")
def test_clothing():
    one = ImageFolder(data=str(CLOTHING))
    assert (len(one.images("val")), len(one.images("test")), one.number_of_classes()) == (341, 372, 10)
    model = one.model("", 0)
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert model(next(one.batches("test", 4)).x).shape == (4, 10)
