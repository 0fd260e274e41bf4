"""Where images come from. A source is one of timm's readers: `reader[i]` is an open file and the number of a class.

========================  =========================================================================================
a folder                  a split in each of its folders (`train`, `Valid`, `test_set`, see `vision.data.folders`), with
                          a folder a class in each; or the classes themselves
a folder of .tar files    WebDataset shards: images with a `.cls` or `.json` (`{"label": 3}`) of the same name, in
                          folders as above or with the split in their name (`imagenet1k-train-0001.tar`)
a .npz file               JPEG bytes end to end: `jpeg_train`, offsets `off_train`, labels `y_train`, and `classes`
an `owner/name`           data set of the Hugging Face hub, downloaded once by `datasets`
========================  =========================================================================================

`folder:`, `shards:` or `hf:` in front says which of them is meant where that is open. A path whose first folder is
there, or has nearly its name, is taken for one that is mistyped, and no hub is asked.

Images are files of any format that Pillow decodes, by their ending in any case; what else lies there is left out, and
counted in `matmix train`'s first lines. As in timm and torchvision they are taken as stored: an orientation in EXIF
does not turn them, and of files with several frames the first counts.

Every source has random access, so the order of training can depend on the seed and the step alone. That is why shards
are read by an index (made once, from the tar headers) and not as streams, which timm's loader shuffles by what happens
to be in its buffer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Literal

from matmix.arguments import checking_arguments
from matmix.experiments.task import Split
from matmix.ranges import Place
from matmix.spec import close_names
from vision.data.arrays import JpegArrays
from vision.data.class_folders import FolderClasses, class_splits
from vision.data.decoding import shown
from vision.data.folders import check_splits, holds_images, listed, split_of, subfolders, where_missing
from vision.data.hub import open_hub
from vision.data.shards import TarShards, shards_in, shards_of
from vision.data.source import Source

Kind = Literal["folder", "shards", "npz", "hub"]
KINDS: dict[str, Kind] = {"folder:": "folder", "shards:": "shards", "hf:": "hub"}


@checking_arguments()
def kind_of(data: Place) -> tuple[Kind, str]:
    """What `data` names, and the path or name of it, found without asking a hub.

    Raises:
        ValueError: for what is not there, or a folder of shards and images.
    """
    for prefix, said in KINDS.items():
        if data.startswith(prefix) and not os.path.exists(data):
            name = data[len(prefix) :]
            if said != "hub" and not os.path.isdir(Path(name).expanduser()):
                raise ValueError(f"data: there is no folder {shown(name)!r}: {where_missing(Path(name).expanduser())}")
            return said, name
    path = Path(data).expanduser()
    if os.path.isdir(path):
        return _kind_of_folder(path), data
    if os.path.exists(path):
        if path.suffix.lower() == ".npz" and path.is_file():
            return "npz", data
        raise ValueError(
            f"data: {shown(path)} is a file; name a folder (of images, or of .tar shards) or a .npz file; "
            "it must be one of them"
        )
    hub = re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not data.startswith(".")
    if not hub or os.path.exists(path.parts[0]) or _mistyped(path.parts[0]):
        raise ValueError(
            f"data: there is no folder, .npz file or Hugging Face data set (owner/name) {shown(data)!r}: "
            + where_missing(path)
            + (f". If the hub's is meant: --data hf:{data}" if hub else "")
        )
    return "hub", data


def _mistyped(name: str) -> bool:
    """Whether a folder here has nearly this name, more nearly than the names that an error offers: the hub has many."""
    here = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    close = close_names(name, here)
    return any(SequenceMatcher(None, name.casefold(), other.casefold()).ratio() >= 0.75 for other in close)


@cache
def _kind_of_folder(path: Path) -> Kind:
    """Shards or images; both in one folder leave open which are the data."""
    shards, others = shards_in(path), subfolders(path)
    inner = [folder for folder in others if split_of(folder.name) and shards_in(folder)]
    if not shards and not inner:
        return "folder"
    images = [folder for folder in others if (not shards_in(folder) or subfolders(folder)) and holds_images(folder)]
    if images:
        tar = (shards or shards_in(inner[0]))[0]
        raise ValueError(
            f"data: {shown(path)} holds the shard {shown(tar.relative_to(path))} beside images in "
            f"{listed([folder.name for folder in images])}. Say which are the data: --data shards:{shown(path)} or "
            f"--data folder:{shown(path)}"
        )
    return "shards"


@checking_arguments()
def open_source(data: Place, split: Split, splits: Sequence[str] = ()) -> Source | None:
    """The images of a split; None where the data set has no such split.

    Raises:
        ValueError: for data that are not there or can be read in two ways, a class without images, or classes that
            `train` does not have.
    """
    kind, name = kind_of(data)
    path = Path(name).expanduser()
    if kind == "npz":
        if splits:
            raise ValueError(f"splits: the arrays of {name} say their split in their names; leave it out")
        return JpegArrays.open(path, split)
    if kind == "hub":
        return open_hub(name, split, check_splits(splits).get(split))
    if kind == "shards":
        shards = shards_of(path, tuple(splits)).get(split)
        return TarShards(shards) if shards else None
    folders = class_splits(path, tuple(splits))[0]
    if split not in folders:
        return None
    source = FolderClasses(folders[split], None if split == "train" else folders.get("train"), tuple(splits))
    source.origin = "" if folders[split] == path else folders[split].name
    return source
