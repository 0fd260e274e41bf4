"""Files that are no images: whatever a decoder says, the error names the file, or the file is left out by name."""

from __future__ import annotations

import errno
import io
import struct
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.vision.folders import DAMAGED, REPLACED, damage, write_shard
from vision.data import images as reading
from vision.data.class_folders import FolderClasses
from vision.data.decoding import BadData, BrokenImage, decoding, in_colour
from vision.data.folders import image_endings
from vision.data.images import Images
from vision.data.masks import Pairs
from vision.data.shards import TarShards

ALL = sorted([*DAMAGED, *REPLACED])
PIXELS = np.full((36, 40, 3), (200, 40, 30), np.uint8)


def write_good(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).convert(mode).save(path)
    return path


def check(images, at: int, name: Path | str) -> None:
    """At the broken one reading stops by name; left out, the others remain."""
    with pytest.raises(BrokenImage) as caught:
        images.read(at)
    message = str(caught.value)
    assert message.startswith(f"data: {name} cannot be read: ") and len(message) > len(f"data: {name} cannot be read: ")
    assert "\n" not in message and "object at 0x" not in message and caught.value.__cause__ is not None
    good, broken = reading.readable(images)
    assert broken == [str(name)] and len(good) == len(images) - 1 and at not in good


@pytest.mark.parametrize("how", ALL)
def test_among_classes(tmp_path, how):
    paths = [write_good(tmp_path / name / "0.png") for name in ("blue", "green", "red")]
    images = Images(FolderClasses(tmp_path), range(3))
    damage(paths[1], how)
    check(images, 1, paths[1])
    images.skip_broken()
    assert images.targets.tolist() == [0, 2] and images.broken == [str(paths[1])]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("of", ["image", "mask"])
def test_among_pairs(tmp_path, how, of):
    files = [
        (write_good(tmp_path / "images" / f"{i}.png"), write_good(tmp_path / "masks" / f"{i}.png", "L"))
        for i in range(3)
    ]
    check(Pairs(files), 1, damage(files[1][of == "mask"], how))


@pytest.mark.parametrize("how", sorted(DAMAGED))
def test_in_shards(tmp_path, how):
    good = io.BytesIO()
    Image.fromarray(PIXELS).save(good, "PNG")
    contents = [good.getvalue(), DAMAGED[how](), good.getvalue()]
    shard = write_shard(tmp_path / "train-0.tar", [(f"{i}.png", content, i) for i, content in enumerate(contents)])
    images = Images(TarShards([shard]), range(3))
    check(images, 1, f"{shard}:1.png")


def test_shards_that_are_cut_or_packed(tmp_path):
    import gzip

    shard = write_shard(tmp_path / "train-0.tar", [("0.png", bytes(5000), 0)])
    whole = shard.read_bytes()
    for content in (b"", whole[:3000], gzip.compress(whole), b"text" * 200):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=f"the shard {shard}"):
            TarShards([shard])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DDS", "JPEG2000", "QOI", "TGA"]), st.data()
)
def test_any_bytes_are_an_image_or_broken(kind, data):
    """Flipped bytes and cut files of every usual format."""
    content = bytearray(written(kind))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings(), decoding("x"):
            warnings.simplefilter("ignore")
            patched.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # no head may ask for gigabytes here
            with Image.open(io.BytesIO(content)) as opened:
                in_colour(opened, "RGB")
    except (BrokenImage, MemoryError):
        pass


@cache
def written(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(file, kind)
    return file.getvalue()


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    "error", [RuntimeError("a"), KeyError("a"), struct.error("a"), IndexError(), AssertionError(), Odd("a\nb"),
              NotImplementedError("a"), ZeroDivisionError("a"), EOFError(), UnicodeDecodeError("a", b"a", 0, 1, "b"),
              PermissionError(errno.EACCES, "Permission denied"), OSError("a")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_is_raised_names_the_file(tmp_path, monkeypatch, error):
    monkeypatch.setattr(Image, "open", raising(error))
    source = FolderClasses(write_good(tmp_path / "red" / "0.png").parents[1])
    with pytest.raises(BrokenImage, match=r"red/0\.png cannot be read: .*\w") as caught:
        Images(source, [0]).read(0)
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyboardInterrupt(), SystemExit(), OSError(errno.EMFILE, "Too many open files")]
)
def test_what_is_no_fault_of_the_file_stays_itself(tmp_path, monkeypatch, error):
    """With broken=skip, good files would otherwise be left out where the machine has run out of memory."""
    monkeypatch.setattr(Image, "open", raising(error))
    write_good(tmp_path / "red" / "0.png")
    with pytest.raises(type(error)) as caught:
        Images(FolderClasses(tmp_path), [0]).skip_broken()
    assert caught.value is error
    with pytest.raises(type(error)):
        Pairs([(tmp_path / "red" / "0.png", tmp_path / "red" / "0.png")]).read(0)


def raising(error: BaseException):
    def instead(*arguments, **options):
        raise error

    return instead


def test_nothing_left_is_an_error(tmp_path):
    write_good(tmp_path / "red" / "0.png").write_text("none")
    with pytest.raises(BadData, match=r"none of 1 images can be read; the first: .*red/0\.png cannot be read"):
        Images(FolderClasses(tmp_path), [0]).skip_broken()


def test_names_that_are_no_text(tmp_path):
    path = tmp_path / "red" / "a\nb\udcff.png"
    path.parent.mkdir()
    path.write_text("none")
    with pytest.raises(BrokenImage, match=r"a\\nb\\udcff\.png cannot be read") as caught:
        Images(FolderClasses(tmp_path), [0]).read(0)
    assert str(caught.value).encode() and caught.value.file.isprintable()


# ------------------------------------------------------------------ formats


WRITABLE = {end: Image.EXTENSION[end] for end in sorted(image_endings()) if Image.EXTENSION[end] in Image.SAVE}
BLOCKS = np.kron(np.array([[40, 200], [120, 0]], np.uint8), np.ones((16, 16), np.uint8))


def test_every_format_that_pillow_writes_is_read(tmp_path):
    """By its ending in any case, from folders and from shards."""
    assert {".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm", ".tga", ".jfif"} <= WRITABLE.keys()
    members = []
    for number, (end, kind) in enumerate(WRITABLE.items()):
        image = Image.fromarray(BLOCKS).convert("RGB")
        path = tmp_path / "all" / ("low" if number % 2 else "high") / f"{number}{end.upper() if number % 3 else end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        for mode in ("RGB", "P", "1"):
            try:
                image.convert(mode).save(path, kind)
                break
            except (OSError, ValueError):
                continue
        members.append((path.name, path.read_bytes(), number % 2))
    folder = FolderClasses(tmp_path / "all")
    shards = TarShards([write_shard(tmp_path / "train-0.tar", members)])
    assert len(folder) == len(shards) == len(WRITABLE) and not folder.left and not shards.left
    for source in (folder, shards):
        images = Images(source, range(len(source)))
        for at in range(len(images)):
            found, end = images.read(at), Path(source.filename(at)).suffix.lower()
            error = np.abs(np.asarray(found.convert("L").resize((32, 32)), float) - BLOCKS).mean()
            assert error < (100 if WRITABLE[end] in ("MSP", "XBM") else 20), (
                source.filename(at),
                error,
            )  # those: 1 bit


@pytest.mark.parametrize("end", [".png", ".bmp", ".tif", ".gif", ".tga", ".pgm", ".jp2"])
def test_masks_keep_their_values_in_every_lossless_format(tmp_path, end):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"mask{end}")
    found = Pairs([(tmp_path / "none", tmp_path / f"mask{end}")]).mask(0)
    assert np.array_equal(np.asarray(found), values)


def test_other_kinds_of_images(tmp_path):
    """A wrong ending, an animation's first frame, palettes with transparency, CMYK."""
    red, blue = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    (tmp_path / "red").mkdir()
    red.save(tmp_path / "red" / "a.jpg", "PNG")
    red.save(tmp_path / "red" / "b.gif", save_all=True, append_images=[blue])
    palette = red.convert("P")
    palette.save(tmp_path / "red" / "c.png", transparency=palette.getpixel((0, 0)))
    red.convert("CMYK").save(tmp_path / "red" / "d.jpg")
    red.convert("CMYK").save(tmp_path / "red" / "e.tif")
    red.convert("LA").save(tmp_path / "red" / "f.png")
    images = Images(FolderClasses(tmp_path), range(6))
    for at in range(6):
        pixel = np.asarray(images.read(at))[4, 4]
        assert pixel.argmax() == 0 and (at == 5 or (pixel[0] > 150 and pixel[1:].max() < 60)), (at, pixel)
