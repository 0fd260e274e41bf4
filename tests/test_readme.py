"""The README holds: its code runs, its table is the registry's, its commands exist."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import matmix
from matmix.experiments.cli import main

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
    run = "import contrast, matmix, matmix.testing; assert 'contrast' in matmix.list_mixers();"
    run += "matmix.testing.check_mixer('contrast')"
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_table_is_the_registry() -> None:
    """In a process of its own, as a user runs it: other tests of this process register mixers too."""
    shown = re.search(r"<!-- mixers -->\n(.*?)<!-- /mixers -->", README, re.S)
    assert shown is not None
    run = "from matmix.mixers.registry import markdown_table; print(markdown_table())"
    table = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True).stdout
    assert shown.group(1).strip() == table.strip(), "regenerate with `matmix list --markdown`"


def test_specs_in_the_text_build() -> None:
    x = torch.randn(1, 16, 64)
    assert matmix.create_mixer("attention(head_dim=16)", 64)(x).shape == x.shape
    assert matmix.create_mixer('heads("attention", "ssd")', 64)(x).shape == x.shape
    assert len(matmix.create_mixers("ssd*3, attention", 4, 64)) == 4


def test_image_models_build() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[2], names)
    assert names["model"](torch.randn(1, 3, 256, 256)).shape == (1, 10)


COMMANDS = sorted({line.split("#")[0].strip() for line in README.splitlines() if line.startswith("matmix ")})


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
