"""Folders as people have them: which are splits, which are classes, what is left out, and what is refused."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.vision.folders import draw_tree, write_shard
from vision.data import class_folders, hub
from vision.data.folders import NAMES, split_of
from vision.data.masks import Pairs, pairs
from vision.data.sources import kind_of, open_source
from vision.data.splits import left_out, sources, summary
from vision.tasks.imagenet import ImageNet
from vision.tasks.segmentation import Segmentation

SPELLINGS = {
    "train": ["train", "Train", "TRAINING", "training_set", "Training Set", "train-images", "train2017", "TrainSet"],
    "val": ["val", "Valid", "VALIDATION", "dev", "Dev_Set", "val2017", "validation-data"],
    "test": ["test", "TEST", "Testing", "test_set", "test-images", "TestSplit"],
}
CLASSES = ("blue", "green", "red")


def found(root: Path, splits: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    """Images of every class of every split."""
    counts = {}
    for split in NAMES:
        source = open_source(str(root), split, splits)
        if source is not None:
            names = {number: name for name, number in source.class_to_idx.items()}
            counts[split] = dict(Counter(names[label] for label in source.labels()))
    return counts


def refused(root: Path | str, *words: str, splits: tuple[str, ...] = ()) -> None:
    with pytest.raises(ValueError) as caught:
        sources(str(root), "test", splits)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ splits


JUNK = ["__MACOSX", ".git", ".ipynb_checkpoints", "@eaDir", "__pycache__"]
JUNK_FILES = ["Thumbs.db", ".DS_Store", "desktop.ini", "._0.jpg"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spelled=st.fixed_dictionaries({split: st.sampled_from([*names]) for split, names in SPELLINGS.items()}),
    kept=st.sets(st.sampled_from(["val", "test"])),
    ending=st.sampled_from([".jpg", ".JPEG", ".webp", ".BMP", ".tif", ".gif", ".avif"]),
    junk=st.lists(st.tuples(st.sampled_from(["", "split", "class"]), st.sampled_from(JUNK + JUNK_FILES)), max_size=4),
    link=st.sampled_from(["", ".", "..", "../..", "deeper", "/"]),
    count=st.integers(1, 3),
)
def test_any_spelling_with_any_junk_is_the_plain_folder(spelled, kept, ending, junk, link, count):
    kept = {"train", *kept}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        for split in kept:
            draw_tree(root, {f"{spelled[split]}/{label}": count for label in CLASSES}, ending)
            deeper = draw_tree(root, {f"{spelled[split]}/red/deeper": 1}, ending) / spelled[split] / "red" / "deeper"
            if link:  # in a circle, at any height; or to what was seen already
                (deeper / "loop").symlink_to("../" + link if link != "/" else root)
            for where, what in junk:
                at = {"": root, "split": root / spelled[split], "class": root / spelled[split] / "red"}[where] / what
                if what in JUNK:
                    draw_tree(at, {"copy": 2}, ending)
                else:
                    at.touch()
        plain = {label: count + (label == "red") for label in CLASSES}
        assert found(root) == dict.fromkeys([split for split in NAMES if split in kept], plain)
        assert left_out(str(root), "test") == {}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SPELLINGS.items() for name in names])
def test_names_of_splits(split, name):
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["trains", "tester", "value", "valve", "seg_train", "test tube", "device", "1"])
def test_names_of_no_split(name):
    assert split_of(name) is None


def test_two_names_of_one_split(tmp_path):
    draw_tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "val", "valid") for name in CLASSES})
    refused(tmp_path, "the folders val and valid, which all say val", "--task.splits train=train val=val")
    assert found(tmp_path, ("train=train", "val=valid")).keys() == {"train", "val"}
    assert open_source(str(tmp_path), "val", ("train=train", "val=valid")).filename(0).startswith(f"{tmp_path}/valid/")
    assert "folder val" in left_out(str(tmp_path), "test", ("train=train", "val=valid"))


def test_splits_beside_classes(tmp_path):
    """Vehicles: bus, train."""
    draw_tree(tmp_path, {"bus": 2, "train": 3, "docs": 0})
    (tmp_path / "docs" / "readme.txt").touch()
    refused(tmp_path, "the folder train, named as splits, beside the folder bus", "--task.splits none")
    (tmp_path / "docs" / "readme.txt").unlink()
    (tmp_path / "docs").rmdir()
    assert found(tmp_path, ("none",)) == {"train": {"bus": 2, "train": 3}}
    refused(tmp_path, "/train has no folders of classes, only 3 images", splits=("train=train",))


def test_a_folder_without_images_beside_splits_is_left_out_and_said(tmp_path):
    draw_tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "annotations": 3}, ".jpg")
    for path in (tmp_path / "annotations").iterdir():
        path.rename(path.with_suffix(".xml"))
    assert left_out(str(tmp_path), "test") == {"folder annotations": 1}


def test_names_that_only_look_like_splits(tmp_path):
    draw_tree(tmp_path, {f"{split}/{name}": 2 for split in ("seg_train", "seg_test") for name in CLASSES})
    refused(tmp_path, "seg_test and seg_train: are they splits or classes?", "train=seg_train test=seg_test", "none")
    assert found(tmp_path, ("train=seg_train", "test=seg_test")).keys() == {"train", "test"}
    assert found(tmp_path, ("none",)) == {"train": {"seg_train": 6, "seg_test": 6}}
    refused(tmp_path, "train=seg_tran", "did you mean seg_train", splits=("train=seg_tran",))


def test_classes_that_are_divided_themselves(tmp_path):
    draw_tree(tmp_path, {f"{name}/{split}": 2 for split in ("train", "test") for name in ("cat", "dog")})
    refused(tmp_path, "cat would be a class, but it has the folders test and train", "--task.splits none")
    assert found(tmp_path, ("none",)) == {"train": {"cat": 4, "dog": 4}}


def test_one_folder_too_high(tmp_path):
    draw_tree(tmp_path, {"set/train/a": 2, "set/train/b": 2, "__MACOSX/set": 2})
    draw_tree(tmp_path / "twice", {"train/train/a": 2, "train/train/b": 2})
    refused(tmp_path / "twice", "has a single class, 'train'; it holds the folders a and b", "twice/train/train")
    draw_tree(tmp_path / "one", {"set/train/a": 2, "set/test/a": 2})
    refused(tmp_path / "one", "set would be a class", f"--data {tmp_path}/one/set")


def test_one_folder_as_two_splits(tmp_path):
    draw_tree(tmp_path, {"train/a": 2, "train/b": 2})
    (tmp_path / "val").symlink_to("train")
    refused(tmp_path, "are one folder", "--task.splits train=train val=val")
    assert found(tmp_path, ("train=train", "val=val")).keys() == {"train", "val"}


@pytest.mark.parametrize("link", ["test/a", "test/a/more", "test/c/deep/more"])
def test_a_folder_of_two_splits(tmp_path, link):
    """A class, or a folder below one, that is also below another split by a link: it would be trained and tested on."""
    draw_tree(tmp_path, {"train/a/deep": 2, "train/b": 2, "train/c": 2, "test/b": 2, "test/c/deep": 1})
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "train" / "a")
    refused(tmp_path, "train/a", "one folder or hold one, by a link", "--task.splits train=train test=test")
    assert found(tmp_path, ("train=train", "test=test")).keys() == {"train", "test"}


def test_a_shard_of_two_splits(tmp_path):
    write_shard(tmp_path / "train-0.tar", [(f"{i}.jpg", b"", i) for i in range(2)])
    (tmp_path / "test-0.tar").symlink_to("train-0.tar")
    refused(tmp_path, "train-0.tar and", "test-0.tar are one file", "--task.splits train=NAME")


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_pairs_of_two_splits(tmp_path, layout):
    for kind, end in (("images", ".jpg"), ("masks", ".png")):
        train, test = (layout.format(split=split, kind=kind) for split in ("train", "test"))
        draw_tree(tmp_path, {train: 2, f"{train}/deep": 2, test: 1}, end)
        (tmp_path / test / "more").symlink_to(tmp_path / train / "deep")
    with pytest.raises(ValueError, match=r"hold one, by a link.*--task\.splits train=train test=test"):
        pairs(str(tmp_path))
    assert pairs(str(tmp_path), ("train=train", "test=test")).keys() == {"train", "test"}


@pytest.mark.parametrize("value", [("train",), ("traim=a",), ("train=a", "train=b"), ("train=",), ("none", "val=a")])
def test_wrong_values_of_the_option(value):
    with pytest.raises(ValueError, match="splits must be 'none' or train=NAME val=NAME test=NAME"):
        ImageNet(splits=value)


# ------------------------------------------------------------------ classes


def test_links_between_classes(tmp_path):
    draw_tree(tmp_path, {"blue": 2, "green": 2, "red": 2})
    (tmp_path / "red" / "more").symlink_to("../green")
    refused(tmp_path, "red/more is also below", "green")
    (tmp_path / "red" / "more").unlink()
    (tmp_path / "yellow").symlink_to("red")
    refused(tmp_path, "are one folder, by a link")


def test_classes_by_links_are_followed(tmp_path):
    draw_tree(tmp_path / "pool", {"x": 2, "y": 3})
    (tmp_path / "data").mkdir()
    for name, target in (("cat", "x"), ("dog", "y")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "pool" / target)
    assert found(tmp_path / "data") == {"train": {"cat": 2, "dog": 3}}


def test_a_class_in_another_case(tmp_path):
    draw_tree(tmp_path, {"train/Cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    refused(tmp_path, "val/cat is a class that the training split does not have; it has Cat")


def test_what_a_folder_without_images_holds_is_said(tmp_path):
    draw_tree(tmp_path, {"cat": 2, "dog": 0})
    (tmp_path / "dog" / "a.HEIC").touch()
    (tmp_path / "dog" / "b.heic").touch()
    refused(tmp_path, "the class folder", "dog holds no image, only 2 .heic")
    (tmp_path / "flat").mkdir()
    draw_tree(tmp_path / "flat", {"": 3})
    refused(tmp_path / "flat", "has no folders of classes, only 3 images", "--task.splits train=NAME")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    draw_tree(tmp_path, {"cat/deep": 2, "dog": 2})
    real = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(tmp_path, "cat/deep cannot be read: Permission denied")


def test_the_number_of_classes_of_a_task(tmp_path):
    draw_tree(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 2})
    with pytest.raises(ValueError, match="has 2 classes, ImageNet has 1000; the task imagefolder takes any number"):
        ImageNet(data=str(tmp_path)).images("test")


def test_a_split_that_the_task_does_not_use_is_left_out_and_said(tmp_path):
    draw_tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in CLASSES})
    assert left_out(str(tmp_path), "test") == {} and left_out(str(tmp_path), "val") == {"folder test": 1}


def test_images_without_a_class(tmp_path, monkeypatch):
    """As the hub's test splits have them, label -1."""
    draw_tree(tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in CLASSES})
    real = class_folders.FolderClasses.labels

    def labels(self):
        return [-1] * len(self) if self.origin == "test" else real(self)

    monkeypatch.setattr(class_folders.FolderClasses, "labels", labels)
    refused(tmp_path, "the split test of", "images without a class (label -1)", "--task.splits train=NAME")


def test_a_path_that_no_file_system_takes(tmp_path):
    for data in (str(tmp_path / ("x" * 300)), "a\0b", "x" * 5000):
        refused(data, "data must be a path or a name")
        with pytest.raises(ValueError, match="data must be a path or a name"):
            pairs(data)


def test_the_summary_says_what_was_found(tmp_path):
    draw_tree(tmp_path, {"Train/cat": 6, "Train/dog": 4, "TEST/cat": 2})
    (tmp_path / "Train" / "cat" / "notes.txt").touch()
    (tmp_path / "Train" / "x.jpg").touch()
    (tmp_path / "labels.csv").touch()
    assert summary(str(tmp_path), "test", (), 0.1, 0) == (
        f"data: {tmp_path}\n"
        "  train: 8 images of the 10 of train (Train), 2 classes: cat 5, dog 3\n"
        "  val: 2 images of the 10 of train (Train), 2 classes: cat 1, dog 1\n"
        "  test: 2 images (TEST), 1 class: cat 2\n"
        "    none of dog\n"
        "  left out: 1 image beside the class folders, 1 .txt, 1 .csv"
    )


# ------------------------------------------------------------------ shards, files, the hub


def test_shards_beside_folders(tmp_path):
    draw_tree(tmp_path, {"train/a": 2, "train/b": 2})
    write_shard(tmp_path / "train-0.tar", [(f"{i}.jpg", b"", i) for i in range(2)])
    refused(tmp_path, "holds the shard train-0.tar beside images in the folder train", f"--data folder:{tmp_path}")
    assert kind_of(f"shards:{tmp_path}")[0] == "shards" and kind_of(f"folder:{tmp_path}")[0] == "folder"
    assert len(sources(f"folder:{tmp_path}", "test")["train"]) == 4
    assert len(sources(f"shards:{tmp_path}", "test")["train"]) == 2


def test_shards_in_folders_and_by_name(tmp_path):
    images = [(f"{i}.jpg", b"", i) for i in range(2)]

    def shards(name: str, *files: str) -> Path:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            write_shard(tmp_path / name / file, images)
        return tmp_path / name

    for root in (
        shards("a", "Train/0.tar", "VALID/0.TAR"),
        shards("b", "x-train-0.tar", "x-Validation-0.tar", ".x.tar"),
    ):
        assert sources(str(root), "test").keys() == {"train", "test"}
    root = shards("c", "x-train-0.tar", "extra-0.tar", "other.tar")
    refused(root, "extra-0.tar says no split", "--task.splits train=NAME", "train=part-*.tar")
    assert sources(str(root), "test", ("train=x-train-*.tar", "val=extra-*")).keys() == {"train", "test"}
    refused(shards("d", "valid-0.tar", "validation-0.tar"), "are named valid and validation, which all say val")
    refused(shards("e", "train-0.tar", "val/0.tar"), "train-0.tar and others in the folder val")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([("0.jpg", b"", 2)], "val has images of class 2, the last of the training split is 1"),
        ([("0.jpg", b"", -1)], "a label is a class, from 0 on, got -1"),
        ([("0.jpg", b"", 0), ("0.png", b"", 0)], "two images of one name"),
    ],
)
def test_labels_of_shards(tmp_path, images, words):
    write_shard(tmp_path / "train-0.tar", [(f"{i}.jpg", b"", i) for i in range(2)])
    write_shard(tmp_path / "val-0.tar", images)
    refused(tmp_path, words)


def test_a_mistyped_folder_asks_no_hub(tmp_path, monkeypatch):
    """With one slash it looks like owner/name; the hub's library would try for 24 seconds."""
    monkeypatch.chdir(tmp_path)
    draw_tree(tmp_path, {"data/images/a": 2})

    def asked(name):
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr(hub, "hub_answers", asked)
    began = time.perf_counter()
    for data in ("data/imags", "dta/images", "./data/imags", "Data/images"):
        refused(data, "there is no folder", "did you mean", data)
    refused("data/imags", "did you mean images?", "--data hf:data/imags")
    refused(str(tmp_path / "daat"), "did you mean data?")
    refused("data/images.tar", "there is no folder")
    refused("folder:data/imags", "there is no folder 'data/imags'", "did you mean images?")
    (tmp_path / "set.zip").touch()
    refused("set.zip", "set.zip is a file; name a folder")
    assert time.perf_counter() - began < 1
    assert kind_of("uoft-cs/cifar10") == ("hub", "uoft-cs/cifar10") and kind_of("hf:data/imags") == (
        "hub",
        "data/imags",
    )


def test_a_hub_out_of_reach_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "hub_answers", lambda name: False)
    refused("someone/pictures", "there is no folder 'someone/pictures'", "the Hugging Face hub", "cannot be reached")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y_train": np.array([0, 2])}, "y_train must be from 0 to 1"),
        ({"off_train": np.array([0, 5])}, "off_train must rise"),
        ({"off_train": np.array([0, 5, 3])}, "off_train must rise"),
        ({"off_train": np.array([0, 4, 8])}, "off_train must rise from 0 to 9"),
        ({"off_train": np.array([1, 4, 9])}, "off_train must rise from 0 to 9"),
        ({"y_train": np.array([0.9, 1.0])}, "y_train must be a row of whole numbers, got float64"),
        ({"y_train": np.array([[0, 1]])}, "y_train must be a row of whole numbers"),
        ({"y_train": np.array([-1, 1])}, "y_train must be from 0 to 1"),
    ],
)
def test_arrays_that_contradict(tmp_path, change, words):
    arrays = {"jpeg_train": np.zeros(9, np.uint8), "off_train": np.array([0, 4, 9]), "y_train": np.array([0, 1])}
    np.savez(tmp_path / "set.npz", **{**arrays, "classes": np.array(["a", "b"]), **change})
    refused(tmp_path / "set.npz", words)
    (tmp_path / "bad.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:300])
    refused(tmp_path / "bad.npz", "bad.npz must be a .npz file as numpy writes it")


# ------------------------------------------------------------------ images and masks


def make_pairs(root: Path, values: np.ndarray, images: str = "images", masks: str = "masks", end: str = ".png") -> Path:
    for folder, suffix, content in ((images, ".jpg", np.zeros((*values.shape, 3), np.uint8)), (masks, end, values)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(10):
            Image.fromarray(content).save(root / folder / f"{index}{suffix}")
    return root


def halves(low: int, high: int) -> np.ndarray:
    values = np.full((16, 16), low, np.uint8)
    values[:, 8:] = high
    return values


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spelled=st.fixed_dictionaries({split: st.sampled_from(names) for split, names in SPELLINGS.items()}),
    kinds=st.tuples(st.sampled_from(["images", "Images", "imgs"]), st.sampled_from(["masks", "Labels", "annotations"])),
    junk=st.sampled_from(["__MACOSX", ".cache"]),
)
def test_any_spelling_of_the_folders_of_pairs(layout, spelled, kinds, junk):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for split in NAMES:
            for kind, end in zip(kinds, (".JPG", ".png"), strict=True):
                folder = layout.format(split=spelled[split], kind=kind)
                draw_tree(root, {folder: 2}, end)
                draw_tree(root, {f"{folder}/{junk}": 1}, end)
        assert {split: len(files) for split, files in pairs(name).items()} == dict.fromkeys(NAMES, 2)


@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_masks_of_0_and_255(tmp_path, end):
    """They would be one class and much that is not counted; in a JPEG, any number of classes."""
    root = make_pairs(tmp_path, halves(0, 255), end=end)
    one = Segmentation(data=str(root))
    words = "have the values 0 and 255, which is not counted: a single class" if end == ".png" else "it is a JPEG"
    for ask in (one.number_of_classes, one.found):
        with pytest.raises(ValueError, match=rf"{words}.*--task\.mask-values 0 255"):
            ask()
    if end == ".png":
        with pytest.raises(ValueError, match="a single class"):
            next(Segmentation(data=str(root), classes=2).batches("train", 2))
    said = Segmentation(data=str(root), mask_values=(0, 255))
    assert said.number_of_classes() == 2 and "0 50.0%, 1 50.0%" in said.found()
    assert np.array_equal(np.asarray(said.pairs("train").mask(0)), halves(0, 1))


def test_classes_that_never_occur(tmp_path):
    root = make_pairs(tmp_path, halves(38, 75))
    with pytest.raises(
        ValueError,
        match=r"have the values 38 and 75, but never 0, .*--task\.mask-values 38 75; if "
        r"they are classes and some are missing: --task\.classes 76",
    ):
        Segmentation(data=str(root)).number_of_classes()  # fmt: skip
    assert "in none of the training masks: class 0, 1" in Segmentation(data=str(root), classes=76).found()
    with pytest.raises(
        ValueError, match=r"masks/0\.png cannot be read: it has the value 38; --task.mask-values are 1 and 75"
    ):
        Segmentation(data=str(root), mask_values=(1, 75)).found()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_as_people_saw_them(tmp_path, orientation):
    """A photo with every orientation beside a mask as displayed: all pixels have their label."""
    shown = np.zeros((24, 24), np.uint8)
    shown[:16, :8], shown[16:, :8] = 250, 120
    stored = Image.fromarray(shown)
    for step in {1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
                 4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
                 7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270]}[orientation]:  # fmt: skip
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGB").save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(shown).save(tmp_path / "mask.png")
    stored.save(tmp_path / "own.png", exif=exif)
    for mask in ("mask.png", "own.png"):
        image, target = Pairs([(tmp_path / "photo.png", tmp_path / mask)]).read(0)
        assert np.array_equal(np.asarray(image.convert("L")), np.asarray(target))
    image, target = Pairs([(tmp_path / "photo.png", tmp_path / "own.png")], exif=False).read(0)
    assert np.array_equal(np.asarray(target), np.asarray(stored))


def test_sizes_that_differ_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError,
        match=r"a\.jpg is \(20, 30\) pixels wide and high, its mask .*a\.png \(30, 20\); its "
        r"EXIF turned it: --task\.no-exif",
    ):
        Pairs([(tmp_path / "a.jpg", tmp_path / "a.png")]).read(0)  # fmt: skip
    assert Pairs([(tmp_path / "a.jpg", tmp_path / "a.png")], exif=False).read(0)[0].size == (30, 20)


def test_pairs_that_are_ambiguous(tmp_path):
    values = halves(0, 1)
    for change, words in (
        (lambda root: (root / "labels").mkdir(), "labels and masks: say which is meant, --task.masks labels"),
        (lambda root: (root / "imgs").mkdir(), "the folders images and imgs"),
        (lambda root: (root / "images" / "0.webp").touch(), "have one name"),
        (lambda root: make_pairs(root, values, "images/train", "masks/train"), "beside 10 images that are in none"),
        (lambda root: make_pairs(root, values, "train/images", "train/masks"), "named as splits, beside the folders"),
    ):
        with tempfile.TemporaryDirectory() as name:
            change(make_pairs(Path(name), values))
            with pytest.raises(ValueError, match=words):
                pairs(name)
    make_pairs(tmp_path, values, "train/images", "train/masks")
    make_pairs(tmp_path, values, "test/images", "test/elsewhere")
    with pytest.raises(ValueError, match=r"test/images has no masks: there is none of .*splits leaves a split out"):
        pairs(str(tmp_path))
    assert pairs(str(tmp_path), ("train=train",)).keys() == {"train"}


def test_broken_pairs_are_left_out_and_listed(tmp_path):
    root = make_pairs(tmp_path, halves(0, 1))
    broken = [root / "images" / "3.jpg", root / "masks" / "5.png"]
    for path in broken:
        path.write_text("none")
    with pytest.raises(ValueError, match=r"5\.png cannot be read"):
        Segmentation(data=str(root)).number_of_classes()
    one = Segmentation(data=str(root), broken="skip")
    with pytest.warns(UserWarning, match="2 of 10 images are left out"):
        facts = one.facts()
    assert sum(facts[split] for split in NAMES) == 8 and facts["broken files"] == ", ".join(map(str, broken))
