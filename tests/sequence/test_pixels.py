"""The tasks pathfinder and image: what their readers give, what they refuse, and that they train."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from matmix.experiments.run import RunConfig, execute, read_metrics
from matmix.sampling import stream
from sequence.data import cifar, pathfinder, pathfinder_release, pathfinder_sets
from sequence.data.check import lra
from sequence.data.faults import BadData
from sequence.data.pathfinder_trace import Fit, find_discs
from sequence.data.pictures import cut
from sequence.tasks.image import Image
from sequence.tasks.pathfinder import Pathfinder
from tests.sequence import written

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return written.pathfinder(tmp_path_factory.mktemp("release"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "cache"))


def told(folder: Path, part: str) -> dict[str, list[str]]:
    """What the check says of a part, by status."""
    found: dict[str, list[str]] = {}
    for finding in lra(folder):
        if finding.part == part:
            found.setdefault(finding.status, []).append(finding.text)
    return found


# ------------------------------------------------------------------ pathfinder


def test_release_is_read_in_order(root) -> None:
    """Tables by number, 0 before 10; ranges and tokens are those of the pixels, splits the published ones."""
    drawn = pathfinder.draw(pathfinder.published(16), seed=1, indices=range(60))
    order = [*range(0, 60, 2), *range(1, 60, 2)]
    for data in (root, root / "pathfinder16", root / "pathfinder16" / "curv_baseline"):
        task = Pathfinder(img_size=16, data=str(data), split="order")
        found, numbers = task.pictures("train")
        assert (found.images == drawn.images[order]).all() and (found.labels == drawn.labels[order]).all()
        assert numbers.tolist() == list(range(48)) and task.pictures("test")[1].tolist() == list(range(54, 60))
    random = Pathfinder(img_size=16, data=str(root))
    parts = torch.utils.data.random_split(range(60), [48, 6, 6], generator=torch.Generator().manual_seed(42))
    for split, part in zip(("train", "val", "test"), parts, strict=True):
        assert random.pictures(split)[1].tolist() == list(part.indices)
    reals, signed, tokens = (
        next(Pathfinder(img_size=16, data=str(root), **options).batches("val", 4))
        for options in ({}, {"mean": 0.5, "std": 0.5}, {"inputs": "tokens", "black_is_padding": True})
    )
    pixels = torch.from_numpy(found.images[list(parts[1].indices)[:4]]).flatten(1)
    assert torch.equal(tokens.x, pixels.long()) and torch.equal(tokens.mask, pixels > 0)
    torch.testing.assert_close(reals.x, pixels.unsqueeze(-1) / 255)
    torch.testing.assert_close(signed.x, reals.x * 2 - 1)
    assert reals.x.shape == (4, 256, 1) and reals.mask is None


def test_what_is_damaged_is_named(tmp_path) -> None:
    root = written.pathfinder(tmp_path / "release", 20)
    level = root / "pathfinder16" / "curv_baseline"
    table, whole = level / "metadata" / "10.npy", (level / "metadata" / "10.npy").read_text()
    lines = whole.splitlines(keepends=True)
    Pillow.new("L", (8, 8)).save(level / "imgs" / "small.png")
    (level / "imgs" / "cut.png").write_bytes((level / "imgs/10/sample_0.png").read_bytes()[:60])
    (level / "imgs" / "empty.png").write_bytes(b"")
    wrong = {
        "imgs/10 sample_1.png 1 2 1.0\n": "line 2: label '2'; allowed: 0 or 1",
        "imgs/10 sample_1.png\n": "line 2: 2 columns",
        "../imgs sample_1.png 1 0\n": "a path below the folder",
        "imgs gone.png 1 0\n": "gone.png: No such file",
        "imgs small.png 1 0\n": "8 x 8 pixels; allowed: 16 x 16",
        "imgs cut.png 1 0\n": "allowed: a whole png file",
        "imgs empty.png 1 0\n": "the file is empty",
    }
    for line, words in wrong.items():
        table.write_text("".join([lines[0], line, *lines[2:]]))
        with pytest.raises(BadData, match=words) as error:
            Pathfinder(img_size=16, data=str(root)).found()
        assert "10.npy" in str(error.value)
        assert any(words in text for text in told(root, "pathfinder")["damaged"])
        skipping = Pathfinder(img_size=16, data=str(root), broken="skip")
        assert skipping.facts()["left out as damaged"] == 1 and "1 damaged ones left out" in skipping.found()
    table.write_bytes(b"imgs \xff\n")
    with pytest.raises(BadData, match="0xff at 5 is no text"):
        Pathfinder(img_size=16, data=str(root)).found()
    with pytest.raises(BadData, match="has no pathfinder32/curv_contour_length_14/metadata"):
        Pathfinder(data=str(root)).found()
    assert not list((tmp_path / "cache").glob(".*partial"))


def test_what_only_the_release_has(tmp_path) -> None:
    """One picture without bytes, which everybody leaves out; and tables as the generator itself saves them."""
    root = written.pathfinder(tmp_path / "release", 20)
    level = root / "pathfinder16" / "curv_baseline"
    table = level / "metadata" / "0.npy"
    rows = [line.split() for line in table.read_text().splitlines()]
    rows[3][1] = "sample_172.png"
    (level / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    with table.open("wb") as file:
        np.save(file, np.array(rows))
    facts = Pathfinder(img_size=16, data=str(root)).facts()
    assert (
        facts["left out, empty in the release"] == 1
        and sum(facts[s]["examples"] for s in ("train", "val", "test")) == 19
    )
    (found,) = told(root, "pathfinder")["note"]
    assert "20 sound rows; the published file has 200,000" in found
    assert "missing" in told(tmp_path, "pathfinder")


def test_the_packed_release_is_that_of_its_inner_folder(root, tmp_path) -> None:
    """Also where another copy stands outside; nothing but the pictures is left, and a fault is named in the archive."""
    other = written.pathfinder(tmp_path / "other", 20)

    def pack(name: str, *copies: tuple[Path, str]) -> str:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            for folder, inside in copies:
                tar.add(folder / "pathfinder16", f"{inside}/pathfinder16")
        return str(tmp_path / name)

    inner = "lra_release/lra_release"
    data = pack("whole.gz", (other, "lra_release"), (root, inner))
    packed, whole = (Pathfinder(img_size=16, data=one, split="order").pictures("train")[0] for one in (data, str(root)))
    assert (packed.images == whole.images).all() and (packed.labels == whole.labels).all()
    with pytest.raises(BadData, match=r"holds no pathfinder32/curv_contour_length_14; allowed: lra_release\.gz"):
        Pathfinder(data=data).found()
    (other / "pathfinder16" / "curv_baseline" / "imgs" / "0" / "sample_0.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"damaged\.gz:curv_baseline/metadata/0\.npy, line 1"):
        Pathfinder(img_size=16, data=pack("damaged.gz", (other, inner))).found()
    (tmp_path / "cut.gz").write_bytes(Path(data).read_bytes()[:5000])
    with pytest.raises(BadData, match=r"cut\.gz is damaged or cut short"):
        Pathfinder(img_size=16, data=str(tmp_path / "cut.gz")).found()


def test_the_copy_with_strange_labels_is_recognised(tmp_path) -> None:
    for strangers in (False, True):
        root = written.pathfinder(tmp_path / str(strangers), 100, 128, strangers=strangers)
        task = Pathfinder(img_size=128, contour_length=6, data=str(root))
        if not strangers:
            assert task.facts()["train"]["examples"] == 80
            continue
        with pytest.raises(BadData, match=r"labels do not belong to the pictures.*allowed: the inner one"):
            task.found()
        assert "labels do not belong" in told(root, "pathfinder")["damaged"][0]
        taken = dataclasses.replace(task, broken_copy="take")
        assert taken.facts()["val"]["examples"] == 10
    # Where the tracer finds nothing, it says nothing.
    assert not Fit(0.02, 0.02, 300).broken and Fit(0.3, 0.3, 300).broken and not Fit(0.3, 0.3, 50).broken
    assert not Fit(0.6, 0.1, 300).broken


def test_the_inner_copy_comes_first(tmp_path) -> None:
    for inside in ("", "lra_release"):
        (tmp_path / "lra_release" / inside / "pathfinder128/curv_contour_length_14/metadata").mkdir(parents=True)
    for data in (tmp_path, tmp_path / "lra_release", tmp_path / "lra_release" / "lra_release"):
        assert "lra_release/lra_release" in str(pathfinder_release.located(str(data), 128, 14))
    outer = tmp_path / "lra_release" / "pathfinder128"
    assert pathfinder_release.located(str(outer), 128, 14).parent == outer


def test_discs_are_found_where_they_are() -> None:
    for size in (32, 128):
        settings = pathfinder.published(size, 6)
        drawn = pathfinder.draw(settings, seed=2, indices=range(8))
        for image, discs in zip(drawn.images, drawn.discs, strict=True):
            apart = np.abs(find_discs(image, settings.marker_radius)[:, None] - discs).max(-1)
            assert apart.min(0).max() <= 1 and apart.min(1).max() <= 1


def test_drawn_pictures_do_not_depend_on_the_workers(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pathfinder_sets, "TOGETHER", 7)
    settings, found = pathfinder.published(16), []
    for workers in ("0", "2"):
        monkeypatch.setenv("MATMIX_WORKERS", workers)
        found.append(pathfinder_sets.generated.__wrapped__(settings, 30, 5, str(tmp_path / workers)))
    whole = pathfinder.draw(settings, seed=5, indices=range(30))
    for one in found:
        assert (one.images == whole.images).all() and (one.labels == whole.labels).all()
    assert found[0].digest == found[1].digest


def test_further_tests_have_longer_contours(tmp_path) -> None:
    task = Pathfinder(img_size=32, contour_length=6, test_contours=(9,), examples=40)
    assert task.tests() == ("test@shuffled", "test@9")
    found, numbers = task.pictures("test@9")
    longer = pathfinder.draw(pathfinder.published(32, 9), seed=stream(0, 9), indices=range(4))
    assert (found.images[numbers] == longer.images).all()
    assert sum(len(batch.y) for batch in task.batches("test@9", 3)) == 4
    level = written.pathfinder(tmp_path, 20) / "pathfinder16"
    shutil.copytree(level / "curv_baseline", level / "curv_contour_length_9")
    task = Pathfinder(img_size=16, data=str(tmp_path), test_contours=(9,))
    assert (task.pictures("test@9")[1] == task.pictures("test")[1]).all() and len(task.pictures("test@9")[1]) == 2


def test_cut_is_in_order_or_random() -> None:
    assert [part.tolist() for part in cut(23, (0.1, 0.1), None)] == [list(range(19)), [19, 20], [21, 22]]
    parts = cut(23, (0.1,), 3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23)) and len(parts[1]) == 2


# ------------------------------------------------------------------ image


@pytest.mark.parametrize("kind", ["pickled", "parquet", "npz"])
def test_every_format_gives_the_same_pictures(kind: str, tmp_path) -> None:
    plain = cifar.prepared(str(written.cifar(tmp_path / "binary")), "stop", "")
    found = cifar.prepared(str(written.cifar(tmp_path / kind, kind=kind)), "stop", "")
    for split, count in (("train", 40), ("test", 8)):
        assert found[split].images.shape == (count, 32, 32)
        assert (found[split].images == plain[split].images).all() and (found[split].labels == plain[split].labels).all()


def test_grey_is_pillows() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert (cifar.grey(rgb) == np.asarray(Pillow.fromarray(rgb).convert("L"))).all()


@pytest.mark.parametrize("kind", ["binary", "pickled"])
def test_packed_batches(kind: str, tmp_path) -> None:
    import tarfile

    folder = written.cifar(tmp_path / "cifar-10-batches", kind=kind)
    with tarfile.open(tmp_path / "cifar-10.tar.gz", "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):  # the order of the archive is not that of the batches
            tar.add(file, f"cifar-10-batches/{file.name}")
    one, two = (cifar.prepared(str(tmp_path / name), "stop", "") for name in ("cifar-10-batches", "cifar-10.tar.gz"))
    assert (one["train"].images == two["train"].images).all() and (one["test"].labels == two["test"].labels).all()


def test_image_has_the_published_splits_and_scale(tmp_path) -> None:
    data = str(written.cifar(tmp_path))
    task = Image(data=data)
    parts = torch.utils.data.random_split(range(40), [36, 4], generator=torch.Generator().manual_seed(42))
    assert task.pictures("train")[1].tolist() == list(parts[0].indices)
    assert Image(data=data, split="order").pictures("val")[1].tolist() == [36, 37, 38, 39]
    assert task.pictures("test")[1].tolist() == list(range(8))
    images = task.pictures("test")[0].images
    batch = next(task.batches("test", 8))
    expected = (torch.from_numpy(images.copy()).flatten(1).unsqueeze(-1) / 255 - 122.6 / 255) / (61 / 255)
    torch.testing.assert_close(batch.x, expected)
    assert task.model("pooling", 0).blocks[0].mixer.grid == (1024,)
    assert Image(data=data, layout="grid").model("pooling", 0).blocks[0].mixer.grid == (32, 32)


def test_damaged_cifar_is_named(tmp_path) -> None:
    folder = written.cifar(tmp_path / "binary")
    file = folder / "data_batch_3.bin"
    data = bytearray(file.read_bytes())
    data[2 * 3073] = 11
    file.write_bytes(data)
    with pytest.raises(BadData, match=r"data_batch_3.bin, line 3: label '11'; allowed: 0 to 9"):
        Image(data=str(folder)).found()
    assert "line 3: label '11'" in told(folder, "image")["damaged"][0]
    assert "1 damaged pictures left out" in Image(data=str(folder), broken="skip").found()
    file.write_bytes(data[:5000])
    with pytest.raises(BadData, match="line 2: 5,000 bytes; allowed: a multiple of 3073"):
        Image(data=str(folder)).facts()
    file.unlink()
    with pytest.raises(BadData, match=r"has no data_batch_3.bin; allowed: all six files"):
        Image(data=str(folder)).facts()
    pickled = written.cifar(tmp_path / "pickled", kind="pickled")
    (pickled / "test_batch").write_bytes(pickle.dumps(Path(".")))
    with pytest.raises(BadData, match=r"test_batch: UnpicklingError: it names pathlib.*Path"):
        Image(data=str(pickled)).facts()
    with pytest.raises(BadData, match="holds no CIFAR-10; allowed: uoft-cs/cifar10"):
        (tmp_path / "none").mkdir()
        Image(data=str(tmp_path / "none")).facts()
    assert "uoft-cs/cifar10" in told(tmp_path / "none", "image")["missing"][0]


@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="needs shared/data/cifar10 beside the project")
@pytest.mark.slow
def test_real_cifar(tmp_path) -> None:
    task = Image(data=str(DATA / "cifar10"))
    facts = task.facts()
    assert [facts[split]["examples"] for split in ("train", "val", "test")] == [45_000, 5_000, 10_000]
    pixels = task.pictures("train")[0].images / 255
    # S4's constants are those of the whole training set.
    assert pixels.mean() == pytest.approx(122.6 / 255, abs=0.003) and pixels.std() == pytest.approx(61 / 255, abs=0.004)
    assert told(DATA / "cifar10", "image")["found"]


# ------------------------------------------------------------------ both


def tasks(root: Path, data: Path) -> dict[str, tuple]:
    return {
        "pathfinder": (Pathfinder, {"img_size": 16, "data": str(root)}),
        "image": (Image, {"data": str(written.cifar(data, 60))}),
    }


@pytest.mark.parametrize("name", ["pathfinder", "image"])
def test_a_run_beats_the_majority(name: str, root, tmp_path) -> None:
    """End to end on small files in the published formats: the loss falls, and where 40 steps can, the score rises."""
    cls, settings = tasks(root, tmp_path / "cifar")[name]
    settings = {**settings, "dim": 16, "depth": 1}
    recipe = {"steps": 40, "batch_size": 16, "lr": 2e-2, "eval_every": 40, "log_every": 1}
    result = execute(RunConfig(name, "pooling", 0, settings, recipe), tmp_path / "run")
    assert result.status == "finished"
    task = cls(**settings)
    baselines = task.baselines()
    assert baselines["chance"]["accuracy"] == 1 / cls.classes
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if line["split"] == "train"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.02
    if name == "image":  # brightness says the class
        score = [line["accuracy"] for line in read_metrics(tmp_path / "run") if line["split"] == "test"][-1]
        assert score > baselines["most frequent class"]["accuracy"] + 0.2


@pytest.mark.parametrize("name", ["pathfinder", "image"])
def test_batches_follow_from_seed_and_step(name: str, root, tmp_path) -> None:
    cls, settings = tasks(root, tmp_path / "cifar")[name]
    task = cls(**settings)
    first = list(itertools.islice(task.batches("train", 16, seed=5), 8))
    again = next(task.batches("train", 16, seed=5, start=7))
    assert torch.equal(first[7].x, again.x) and torch.equal(first[7].y, again.y)
    parts = [next(task.batches("train", 16, seed=5, rank=rank, world=2)).x for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), first[0].x)


def test_wrong_settings_are_named() -> None:
    for options, words in (
        ({"inputs": "bytes"}, "inputs must be one of 'reals', 'tokens', got 'bytes'"),
        ({"layout": "row"}, "layout must be one of 'sequence', 'grid'"),
        ({"split": "last"}, "split must be one of 'random', 'order'"),
        ({"std": 0.0}, r"std must be a finite number in \(0, "),
        ({"black_is_padding": True}, "black_is_padding=True is for inputs='tokens' only"),
        ({"broken": "go"}, "broken must be one of 'stop', 'skip', got 'go'"),
    ):
        for cls in (Pathfinder, Image):
            with pytest.raises(ValueError, match=words):
                cls(**options)
    for options, words in (
        ({"img_size": 48}, "size must be one of"),
        ({"examples": 5}, r"examples must be a whole number in \[10, "),
        ({"broken_copy": "x"}, "broken_copy must be"),
        ({"test_contours": (14,)}, "other than the training's 14"),
        ({"test_contours": (9, 9)}, "holds different lengths"),
    ):
        with pytest.raises(ValueError, match=words):
            Pathfinder(**options)
