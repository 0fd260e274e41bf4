"""Small image folders that tests make for themselves, and the smallest model for them."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY = "metaformer_s18(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))"
COLOURS = {"blue": (30, 40, 200), "green": (30, 200, 40), "red": (200, 40, 30)}

SETTINGS: dict[str, Any] = {"architecture": TINY, "img_size": 32, "shrink": 0}
QUICK: dict[str, Any] = {
    "steps": 8, "batch_size": 8, "log_every": 2, "eval_every": 4, "checkpoint_every": 3, "eval_batch_size": 16,
}  # fmt: skip


def make_folder(root: Path, counts: dict[str, int] | None = None, *, mode: str = "RGB", size=(40, 36)) -> Path:
    """JPEG files of noise around one colour a class: `counts` images of each class in every split."""
    random = np.random.default_rng(0)
    for split, count in (counts or {"train": 8, "val": 3, "test": 3}).items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(random.normal(colour, 40, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{index}.jpg", quality=90)
    return root


def break_file(path: Path) -> Path:
    """Cut a JPEG in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def draw_tree(root: Path, images: dict[str, int], ending: str = ".jpg") -> Path:
    """Empty files with names of images, so many in each folder: enough where only names count."""
    for folder, count in images.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / folder / f"{index}{ending}").touch()
    return root


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and ends there."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _unknown_dds() -> bytes:
    content = bytearray(_saved(Image.new("RGB", (8, 8)), "DDS"))
    content[80:88] = (4).to_bytes(4, "little") + b"ABCD"  # a compression that Pillow does not have
    return bytes(content)


def _half(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 36), np.uint8)
    content = _saved(Image.fromarray(pixels), kind)
    return content[: len(content) // 2]


DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404 Not Found</html>",
    "half a JPEG": lambda: _half("JPEG"),
    "half a PNG": lambda: _half("PNG"),
    "half a GIF": lambda: _half("GIF"),
    "half a TIFF": lambda: _half("TIFF"),
    "half a WebP": lambda: _half("WEBP"),
    "half a BMP": lambda: _half("BMP"),
    "half an AVIF": lambda: _half("AVIF"),
    "a DDS of no known compression": _unknown_dds,
    "a bomb": lambda: _png(60_000, 60_000),
    "a head alone": lambda: _png(8, 8),
    "16 bits": lambda: _saved(Image.fromarray(np.full((40, 36), 40_000, np.uint16)), "PNG"),
    "floats": lambda: _saved(Image.fromarray(np.zeros((40, 36), np.float32)), "TIFF"),
}
"""Contents of files that are no image of 8 bits, each broken in its own way."""


REPLACED: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe": lambda path: os.mkfifo(path),
}
"""What may stand in the place of a file, once the folder has been read."""


def damage(path: Path, how: str) -> Path:
    if how in DAMAGED:
        path.write_bytes(DAMAGED[how]())
    else:
        path.unlink()
        REPLACED[how](path)
    return path


def write_shard(path: Path, images: list[tuple[str, bytes, int]]) -> Path:
    """A WebDataset shard of images with their names, contents and labels."""
    with tarfile.open(path, "w") as tar:
        for name, content, label in images:
            for file, data in ((name, content), (f"{Path(name).with_suffix('')}.cls", str(label).encode())):
                info = tarfile.TarInfo(file)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path
