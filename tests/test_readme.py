"""The README holds: its code runs, its table is the registry's, its commands exist."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import matmix
from matmix.experiments.cli import main
from tests.forked import run_script

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_interface_example_runs() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    x, y, matrix = names["x"], names["y"], names["M"]
    assert y.shape == x.shape
    assert type(matrix).__name__ + "(2x1x128x128" in BLOCKS[0]


def test_custom_mixer_is_short_and_lawful(tmp_path: Path) -> None:
    """The example is its own file, as a user would write it, in a process of its own: the registry stays clean here."""
    (tmp_path / "contrast.py").write_text(BLOCKS[1])
    body = [line for line in BLOCKS[1].splitlines() if line.strip() and not line.startswith(("#", "from", "import"))]
    assert len(body) <= 20
    (tmp_path / "checks.py").write_text(
        "import contrast, matmix, matmix.testing\nassert 'contrast' in matmix.list_mixers()\n"
        "matmix.testing.check_mixer('contrast')\n"
    )
    status, said = run_script(tmp_path / "checks.py", tmp_path)
    assert status == 0, said


def test_table_is_the_registry(tmp_path: Path) -> None:
    """In a process of its own, as a user runs it: other tests of this process register mixers too."""
    shown = re.search(r"<!-- mixers -->\n(.*?)<!-- /mixers -->", README, re.S)
    assert shown is not None
    (tmp_path / "table.py").write_text("from matmix.mixers.registry import markdown_table\nprint(markdown_table())\n")
    status, table = run_script(tmp_path / "table.py", tmp_path)
    assert status == 0 and shown.group(1).strip() == table.strip(), "regenerate with `matmix list --markdown`"


def test_specs_in_the_text_build() -> None:
    x = torch.randn(1, 16, 64)
    assert matmix.create_mixer("attention(head_dim=16)", 64)(x).shape == x.shape
    assert matmix.create_mixer('heads("attention", "ssd")', 64)(x).shape == x.shape
    assert len(matmix.create_mixers("ssd*3, attention", 4, 64)) == 4


def test_image_models_build() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[2], names)
    assert names["model"](torch.randn(1, 3, 256, 256)).shape == (1, 10)


COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("matmix ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_command(command, capsys)


def check_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names a subcommand and options that exist."""
    words = shlex.split(command)
    options = [word for word in words if word.startswith("--")]
    named = list(itertools.takewhile(lambda word: not word.startswith("--"), words[1:]))  # the options follow from them
    plugin = words[words.index("--import") :][:2] if "--import" in words else []
    if plugin and Path(plugin[1]).exists():  # not the file that the reader is shown how to write
        named += plugin
    with pytest.raises(SystemExit) as done:
        main([*named, "--help"])
    assert not done.value.code
    shown = capsys.readouterr().out
    for option in options:
        assert option in shown, f"{option} is not in the help of matmix {shlex.join(named)}"


# What makes a command short: its steps, its examples and their size, never another way through it.
SHORTER = {
    "matmix study quickstart --seeds 1": "--mixers identity",  # CI runs it whole
    "matmix train imagefolder": "--steps 2 --recipe.batch-size 4",
    "matmix train imagenet": "--steps 1 --recipe.batch-size 2 --task.repeats 1 --task.img-size 64",
    "matmix evaluate imagenet": "--task.img-size 64",
    "matmix study imagefolder": "--seeds 1 --recipe.steps 2 --recipe.batch-size 4",
    "matmix train listops": "--steps 2 --task.max-depth 3 --task.min-length 3 --task.max-length 12 "
    "--task.train-examples 99 --task.val-examples 9 --task.test-examples 9",
    "matmix train text": "--steps 2",
    "matmix train retrieval": "--steps 2",
    "matmix train pathfinder": "--steps 2 --task.img-size 16 --task.examples 100 --recipe.batch-size 8",
    "matmix train mqar": "--steps 2 --recipe.batch-size 8 --task.train-examples 99 --task.eval-examples 9",
    "matmix train mad": "--steps 2 --task.train-examples 128 --task.eval-examples 9",
    "matmix train state_tracking": "--steps 2 --recipe.batch-size 8 --task.eval-examples 9",
    "matmix train lm": "--steps 2",
    "matmix train mlm": "--steps 2 --task.vocabulary 60 --out RUN",
    "matmix train glue": "--steps 2 --data TSV",
    "matmix train speech": "--steps 2 --task.length 320 --task.sample-rate 1000 --task.words folders",
    "matmix forecast own.csv": "--steps 2",
    "matmix train forecast": "--steps 2 --recipe.batch-size 8",
    "matmix study lra-mini": "--seeds 1 --tasks parity --mixers delta_rule",
}
# Days, and hours on files that are not here; their parts have tests of their own.
TOO_LONG = ("matmix study lra --tasks", "matmix study forecast")


@pytest.mark.slow
def test_commands_run(tmp_path: Path) -> None:
    """Every command in the order of the README, in one folder that holds what its reader has by then."""
    import vision
    from tests.sequence import written as files
    from tests.sequence.series import tables
    from tests.vision.folders import make_folder

    make_folder(tmp_path / "FOLDER")
    shutil.copy(next((tmp_path / "FOLDER").rglob("*.jpg")), tmp_path / "IMAGE")
    (tmp_path / "contrast.py").write_text(BLOCKS[1])
    for split, index in itertools.product(("train", "val"), range(1000)):
        place = tmp_path / "IMAGENET" / split / f"n{index:08}"
        place.mkdir(parents=True)
        for number in range(2 if split == "train" else 1):  # one of them is held out for validation
            os.link(tmp_path / "IMAGE", place / f"{number}.jpg")
    torch.save(vision.create_model("caformer_s18").state_dict(), tmp_path / "FILE")
    files.reviews(tmp_path / "REVIEWS")
    days = [f"2024-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29)]
    rows = (f"{day} 12:00,{number % 7}" for number, day in enumerate(days))
    (tmp_path / "own.csv").write_text("\n".join(["date,sold", *rows]))
    tables.write(tmp_path / "measured.csv", rows=1200)
    (tmp_path / "input.txt").write_text(10 * files.text(tmp_path / "short.txt").read_text())
    files.pack(tmp_path / "lra_release.gz", sorted(files.papers(tmp_path / "papers").iterdir()), "tsv_data")
    for number in range(8):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text("\n".join(files.sentences(99, number)))
    files.glue(tmp_path / "TSV", "sst2")
    files.recordings(tmp_path / "speech_commands_v0.02")
    folders = {"imagenet": "IMAGENET", "text": "REVIEWS"}
    starts = (*SHORTER, *TOO_LONG)
    assert {start for start in starts if not any(line.startswith(start) for line in COMMANDS)} == set()
    for command in (line for line in dict.fromkeys(COMMANDS) if not line.startswith(TOO_LONG)):
        shorter = " ".join(more for start, more in SHORTER.items() if command.startswith(start))
        words = shlex.split(f"{command} {shorter}".replace("--image FILE", "--image IMAGE"))
        words = [folders.get(words[2], word) if word == "FOLDER" else word for word in words]
        run = [sys.executable, "-m", "matmix.experiments.cli", *words[1:]]
        environment = {**os.environ, "MATMIX_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode in (0, command.startswith("matmix data")), (
            f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    for written in (
        "hydra.png",
        "field.png",
        "state.png",
        "forecast.csv",
        "runs/hydra/result.json",
        "runs/quickstart/report/index.html",
    ):
        assert (tmp_path / written).stat().st_size, written
