"""Small image folders that tests make for themselves, and the smallest model for them."""

from __future__ import annotations

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
