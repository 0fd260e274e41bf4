"""One file to one image, and what is said of a file that is none."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

NOT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the machine has run out of


class BadData(ValueError):
    """What is wrong lies in the data; the words name the file."""


class BrokenImage(BadData):
    """A file that cannot be read as an image of 8 bits a channel."""

    file: str = ""
    """Its name."""

    @classmethod
    def of(cls, file: str, words: str) -> BrokenImage:
        error = cls(shown(words))
        error.file = shown(file)
        return error


@contextmanager
def decoding(name: str, argument: str = "data", what: str = "a whole image of 8 bits a channel") -> Iterator[None]:
    """Whatever is raised while a file is read and decoded comes out as a BrokenImage with the name of the file.

    Decoders raise what they like (AVIF RuntimeError, DDS NotImplementedError, others struct.error or IndexError): no
    list of exceptions holds them all. Memory and open files that run out are no fault of the file and stay themselves.
    """
    try:
        yield
    except BrokenImage:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in NOT_OF_THE_FILE):
            raise
        words = f"{argument}: {name} cannot be read: {_reason(error)}"
        raise BrokenImage.of(name, f"{words}; it must be {what}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # Pillow names the open file object
        return "it is no image, or of no format that Pillow knows here"
    lines = str(error).strip().splitlines()
    known = isinstance(error, (OSError, ValueError, Image.DecompressionBombError))
    return (lines[0] if known else f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read. A pipe or device of that name is refused, where opening would wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    return open(path, "rb")


def shown(name: object) -> str:
    """A name as it can be printed, in one line: file systems also hold names that are no text, or have line ends."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def in_colour(image: Image.Image, mode: str) -> Image.Image:
    """The (first) image of an opened file as RGB or L; alpha channels are dropped, not blended.

    Raises:
        ValueError: for 16 or 32 bits a channel, whose range says nothing about what is black and white.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode!r}, which is no image of 8 bits a channel")
    # A palette may hold transparency: by way of RGBA it does not turn into a colour of its own.
    image = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return image.convert(mode)


def turned(image: Image.Image) -> Image.Image:
    """An image as people see it: turned and mirrored as the orientation in its EXIF says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be read: no viewer turns such an image
        return image
