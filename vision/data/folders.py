"""What is in a folder of images: which of its folders are splits, which files are images, and what is left out.

A folder is a split by its name, in any case: `train`, `training`, `val`, `valid`, `validation`, `dev`, `test`,
`testing`, also with `set`, `split`, `data` or `images` behind it (`Training_Set`, `test-images`) and a year
(`train2017`). Where that leaves two readings (`val` beside `valid`, splits beside classes, `seg_train` beside
`seg_test`) nothing is guessed: the error names the option that settles it.

Hidden files and folders, and what systems leave behind (`__MACOSX`, `Thumbs.db`, ...), count as not there. Links are
followed, but into each real folder once, and into none from two splits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from matmix.experiments.task import Split
from matmix.spec import close_names
from vision.data.decoding import shown

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
UNDIVIDED = ("none",)  # the value of `splits` for folders that are classes, whatever they are called
LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "@eadir", "$recycle.bin", "lost+found"}
LEFT_BEHIND |= {"system volume information", "__pycache__"}
NO_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
"""Formats that Pillow has a name for but decodes with other programs, or that are no images."""

_BEHIND = r"(?:set|split|data|images|imgs)?(?:(?:19|20)\d\d)?"
_SPLITS = {split: re.compile(rf"(?:{'|'.join(names)}){_BEHIND}") for split, names in NAMES.items()}
_WORDS = {word: split for split, names in NAMES.items() for word in names}


def split_of(name: str) -> Split | None:
    """The split that a folder's name says."""
    word = re.sub(r"[\W_]+", "", name.casefold())
    return next((split for split, known in _SPLITS.items() if known.fullmatch(word)), None)


def splits_within(name: str) -> set[Split]:
    """The splits that words of a longer name say: those of "seg_train" or "TestImages2"."""
    words = re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name)
    return {_WORDS[word.casefold()] for word in words if word.casefold() in _WORDS}


@cache
def image_endings() -> frozenset[str]:
    """Endings of the images that Pillow decodes here (what other packages have taught it included), in lower case."""
    Image.init()
    decoded = {end for end, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in NO_PHOTOS}
    return frozenset(decoded) | frozenset(get_img_extensions(as_set=True))


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_left_behind(name: str) -> bool:
    """Hidden, or put there by a system: nothing that a person means as data."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


@dataclass
class Files:
    """The images below a folder, in order, and how many files of other kinds there are."""

    images: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


@contextmanager
def listing(folder: Path | str) -> Iterator[None]:
    """What a file system says against reading a folder is an error of the data, with its name."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"data: the folder {shown(folder)} cannot be read: {error.strerror or error}") from error


def subfolders(folder: Path) -> list[Path]:
    with listing(folder), os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if not is_left_behind(e.name) and os.path.isdir(e.path))


def files_in(folder: Path) -> Files:
    """The files right in a folder."""
    with listing(folder), os.scandir(folder) as entries:
        return _sorted_out(e.path for e in entries if not is_left_behind(e.name) and not os.path.isdir(e.path))


def files_below(top: Path, owners: dict[str, Path] | None = None) -> Files:
    """The files in a folder and in those below it, each real folder once: a link that leads in a circle ends there.

    Args:
        owners: by real path, the folder that a folder belongs to; shared by several calls, they may not meet.

    Raises:
        ValueError: for a folder that cannot be read, or that belongs to another one.
    """
    owners = {} if owners is None else owners
    circle = os.path.realpath(top) + os.sep
    owners.setdefault(os.path.realpath(top), top)
    pending, paths = [str(top)], []
    while pending:
        here = pending.pop()
        with listing(here), os.scandir(here) as entries:
            for entry in entries:
                if is_left_behind(entry.name):
                    continue
                if not os.path.isdir(entry.path) if entry.is_symlink() else not entry.is_dir():
                    paths.append(entry.path)
                    continue
                real = os.path.realpath(entry.path)
                owner = owners.get(real)
                if circle.startswith(real + os.sep) or owner == top:
                    continue
                if owner is not None:
                    raise ValueError(
                        f"data: {shown(entry.path)} is also below {shown(owner)}, by a link; its images belong to one"
                    )
                owners[real] = top
                pending.append(entry.path)
    return _sorted_out(paths)


def holds_images(folder: Path) -> bool:
    return bool(files_below(folder).images)


def _sorted_out(paths: Iterable[str]) -> Files:
    found, kinds = Files(), image_endings()
    for path in sorted(paths):
        if ending(path) in kinds:  # also a link to nowhere: it is named when it is read
            found.images.append(path)
        else:
            found.left[ending(path) or "no ending"] += 1
    return found


# ------------------------------------------------------------------ splits


def check_splits(splits: Sequence[str]) -> dict[Split, str]:
    """The option `splits` by split; empty for names that are found, and for `UNDIVIDED`."""
    if tuple(splits) in ((), UNDIVIDED):
        return {}
    found: dict[Split, str] = {}
    for word in splits:
        split, _, name = word.partition("=")
        if split not in NAMES or not name or split in found:
            raise ValueError(
                f"splits must be 'none' or train=NAME val=NAME test=NAME, each at most once, got {splits!r}"
            )
        found[split] = name
    return found


def splits_option(**named: Sequence[str]) -> str:
    """The option that says which folder is which split, as it is typed."""
    words = [f"{split}={names[0]}" for split, names in named.items() if names] or [f"{split}=NAME" for split in NAMES]
    return "--task.splits " + " ".join(words)


def split_folders(
    root: Path,
    splits: Sequence[str] = (),
    holds: Callable[[Path], bool] = holds_images,
    *,
    other: str = "classes",
) -> tuple[dict[Split, Path], list[Path]]:
    """The folders of a data set's splits, and those beside them that are left out.

    No split is found where no name is that of one: the folders are then something else, such as classes.

    Args:
        splits: () finds them by name; ("train=NAME", ...) says their names and leaves out all others; `UNDIVIDED`.
        holds: whether a folder holds any data.
        other: what the folders are if they are no splits, for the words of an error; "" = they must be.

    Raises:
        ValueError: where the names leave two readings, or `splits` names a folder that is not there.
    """
    folders = subfolders(root)
    names = [folder.name for folder in folders]
    wanted = check_splits(splits)
    if tuple(splits) == UNDIVIDED:
        return {}, []
    if wanted:
        for split, name in wanted.items():
            if name not in names:
                raise ValueError(f"splits: {split}={name}: {shown(root)} has no such folder{close_or_all(name, names)}")
        return {split: root / name for split, name in wanted.items()}, [
            f for f in folders if f.name not in wanted.values()
        ]
    by_split = {split: [name for name in names if split_of(name) == split] for split in NAMES}
    by_split = {split: found for split, found in by_split.items() if found}
    for split, found in by_split.items():
        if len(found) > 1:
            raise ValueError(
                f"data: {shown(root)} has {listed(found)}, which all say {split}; say which is meant, as in "
                f"{splits_option(**by_split)}"
            )
    others = [folder for folder in folders if split_of(folder.name) is None]
    if not by_split:
        said = {split: [name for name in names if split in splits_within(name)] for split in NAMES}
        if sum(map(bool, said.values())) > 1:
            alike = sorted({name for found in said.values() for name in found})
            raise ValueError(
                f"data: {shown(root)} has {listed(alike)}: are they splits or {other or 'others'}? Say "
                f"which: {splits_option(**said)}{_or_none(other)}"
            )
        return {}, []
    classes = [folder.name for folder in others if holds(folder)]
    if classes:
        raise ValueError(
            f"data: {shown(root)} has {listed([n for found in by_split.values() for n in found])}, named as splits, "
            f"beside {listed(classes)}. Say which folders are the splits, the others are left out: "
            f"{splits_option(**by_split)}{_or_none(other)}"
        )
    found_splits = {split: root / found[0] for split, found in by_split.items()}
    apart({split: {os.path.realpath(folder): folder} for split, folder in found_splits.items()}, by_split)
    return found_splits, others


def _or_none(other: str) -> str:
    return f"; or --task.splits none where all of them are {other}" if other else ""


def apart(places: Mapping[Split, Mapping[str, Path]], names: Mapping[Split, Sequence[str]]) -> None:
    """Refuse a place of two splits; by a link, what one tests on would be what one trains on.

    Args:
        places: of each split, the folders or files of its images by their real paths.
        names: what the splits are called, for the option that allows it.

    Raises:
        ValueError: for the first place that is in two splits.
    """
    seen: dict[str, tuple[Split, Path]] = {}
    for split, inner in places.items():
        for real, path in inner.items():
            other, first = seen.setdefault(real, (split, path))
            if other != split:
                raise ValueError(
                    f"data: {shown(first)} and {shown(path)} are one {'folder' if os.path.isdir(real) else 'file'} or "
                    f"hold one, by a link. If that is meant, say so: {splits_option(**names)}"
                )


def listed(names: Sequence[str], most: int = 6, word: str = "folder") -> str:
    """Names in a sentence."""
    said = [shown(name) for name in names]
    if len(said) > most:
        said = [*said[:most], f"{len(said) - most} more"]
    text = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    return f"the {word}{'s' * (len(said) > 1)} {text}" if word else text


def close_or_all(name: str, known: Sequence[str]) -> str:
    """The end of an error about a name that is not there."""
    close = close_names(name, known)
    if close:
        return f" (did you mean {' or '.join(map(shown, close))}?)"
    return f" (it has {listed(known, most=8, word='')})" if known else " (it is empty)"


def where_missing(path: Path) -> str:
    """Of a path that is not there: how far it goes, and which close names are there."""
    above = path.absolute()
    while not os.path.isdir(above) and above != above.parent:  # unlike Path's, it never raises
        missing, above = above.name, above.parent
    try:
        names = sorted(entry.name for entry in above.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"{shown(above)} cannot be read: {error.strerror}"
    return f"{shown(above)} has no {shown(missing)!r}{close_or_all(missing, names)}"


def several(count: int, thing: str) -> str:
    """A number of things."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def counted(left: Counter[str], images: int = 0) -> str:
    """Numbers of files by kind, the most first."""
    words = [several(images, "image")] if images else []
    return ", ".join([*words, *(f"{count:,} {kind}" for kind, count in left.most_common(8))])


def only(left: Counter[str], images: int = 0) -> str:
    """What a folder holds that is not what was looked for."""
    return f"only {counted(left, images)}" if left or images else "nothing at all"
