"""Bad command lines: a right one of each command, with words damaged, run in this process.

What computes for long is put aside (`quick`): training, worker processes, clusters, the drawing of reports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from matmix.experiments.cli import main
from tests.campaigns.clear import Tally, unclear_text
from tests.campaigns.damage import ODD, bent_text

SMALL = "--task.dim 8 --task.depth 1"
LINES = (
    "list", "list --tasks", "list --markdown", "list --import own.py",
    "show pooling --out a.png --dim 8 --length 4 --seed 1",
    "show hydra(expand=1) --out pictures/a.svg --dim 8 --grid 2 3 --import own.py",
    f"train digits --mixer pooling {SMALL} --steps 1 --out one --quiet",
    f"train digits --mixer twice {SMALL} --seed 2 --recipe.lr 1e-3 --recipe.betas 0.8 0.9 --import own.py",
    "train recall --mixer attention --task.length 24 --recipe.steps 1 --recipe.no-compile --no-resume --threads 2",
    "train digits --mixer identity --surgery.level module --surgery.where all --surgery.base pooling",
    f"evaluate digits --mixer identity {SMALL} --weights weights.safetensors --split val",
    "evaluate digits --mixer identity --task.dim 8 --task.depth 1 --weights weights.safetensors --source own/code",
    "study grid.toml --seeds 1 --jobs 1 --out grid", "study grid.json --mixers identity pooling --tasks digits",
    f"study digits --mixers identity pooling {SMALL} --seeds 2 --reference identity --margin 0.01",
    "study grid.py --reference identity --threads 1 --minutes 1 --import own.py",
    "study grid.toml --slurm 2 --slurm-cluster local --slurm-settings timeout_min=10 mem_gb=2 --out there",
    "study grid.toml --ray auto --gpus 0.5 --memory 2 --runtime-env runtime.json", "study grid.toml --worker",
    "study quickstart --mixers identity --seeds 1 --tasks digits --track tensorboard",
    "study replace --models dlinear(kernel=5) --data data.csv --level module --settings lookback=12 horizon=4"
    " --training lr=1e-3 --tune lr=1e-3 lr=1e-4,weight_decay=0 --mixers default identity",
    "study mqar-suites --suite figure2 --lengths 64 --dims 8 --rates 0.001 --states 4 --mixers identity",
    "report study --pictured 2 --import own.py", "report study --nemenyi",
    "verify study", "verify run", "verify run/config.json",
    "data", "data lra --check folder", "data series --check .",
    "cost pooling --dim 8 --length 4", "cost hydra(expand=1) --dim 8 --grid 2 3",
    "cost timm:test_vit --img-size 32", "cost hf:bert(num_hidden_layers=1,hidden_size=16,num_attention_heads=2)"
    " --length 4", "sites timm:test_vit --img-size 32 --import own.py",
    "explain timm:test_vit --out a.png --json a.json --layers 0 --samples 1 --max-heads 1 --quiet --classes toeplitz",
    "explain timm:test_vit --out a.png --inputs images.npy --where all --tolerance 0.1 --max-tokens 128 --max-rows 2",
    "picture cam --model metaformer_s18(depths=(1,1,1,1),dims=(8,8,8,8),mixers='pooling') --image image.png"
    " --out a.png --img-size 32 --classes 3 --target 1",
    "picture spectra --model metaformer_s18(depths=(1,1,1,1),dims=(8,8,8,8),mixers='pooling') --image image.png"
    " --out a.png --img-size 32",
    "picture state --study study --out a.png --split test --metric accuracy", "picture mad --study study --out a.png",
    "picture forecasts --study study --out a.png", "picture learned --study study --out a.png",
    "forecast data.csv --horizon 2 --lookback 6 --out b.csv --plot b.png --model dlinear(kernel=3) --steps 1 --quiet",
    "forecast data.csv --horizon 2 --lookback 6 --out b.csv --model itransformer(dim=8,depth=1,heads=2,hidden=8)"
    " --mixer identity --test 1 --season 3 --quantiles 0.1 0.9 --save kept --steps 1 --batch-size 4 --lr 0.01",
    "forecast data.csv --horizon 2 --lookback 6 --out b.csv --gaps fill --freq D --steps 1",
    "save-pretrained --run run --out saved --weights best",
)  # fmt: skip
PLACES = (
    ".", "folder", "absent", "absent/x.png", "notes.txt", "notes.txt/x.png", "empty.toml", "empty.json", "loop", "run",
    "study", "broken.json", "image.png", "data.csv", "own.py", "grid.toml", "weights.safetensors", "folder/x", "x.gif",
    "runtime.json", "pipe", "pipe.json", "pipe.toml", "pipe.py", "pipe.csv", "raises.py", "no.such.module", "n" * 300,
)  # fmt: skip
POSITIONAL = ("source", "folder")
"""How commands call what stands first; it has no option that could be near."""
SECONDS = 60


class Line(NamedTuple):
    """A damaged command line, and the words near the damage: an answer names one of them."""

    words: list[str]
    near: set[str]


def lines(seed: int) -> Iterator[Line]:
    """Endless; every right line in turn."""
    draw = random.Random(seed)
    while True:
        for text in draw.sample(LINES, len(LINES)):
            line = Line(re.findall(r"(?:[^\s(]|\([^)]*(?:\([^)]*\)[^)]*)*\))+", text), set())
            for _ in range(draw.choice((1, 1, 1, 2))):
                line = _damaged(draw, line)
            yield line


def _damaged(draw: random.Random, line: Line) -> Line:
    words, count = list(line.words), len(line.words)
    if not words:
        return line
    at = draw.randrange(count)
    way, other = draw.randrange(9), draw.randrange(count)
    values = [place for place in range(1, count) if not words[place].startswith("--")]
    if way == 0:
        del words[at]
    elif way == 1:
        words.insert(at, words[at])
    elif way == 2:
        words[at], words[other] = words[other], words[at]
    elif way in (3, 4, 5) and values:
        at = draw.choice(values)
        words[at] = draw.choice((draw.choice(ODD), draw.choice(PLACES), draw.choice(line.words)))
    elif way == 6:
        words.insert(at + 1, draw.choice((*ODD, *PLACES, "--unknown", "--no-quiet", "--recipe.stepz", "--out")))
    elif way == 7 and at + 1 < count:
        words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]
    else:
        words[at] = bent_text(draw, words[at])
    near = {word for place in (at, other if way == 2 else at) for text in (line.words, words)
            for word in text[max(0, place - 2) : place + 3]}  # fmt: skip
    flags = [word for word in words[:at] if word.startswith("--")]  # an option of several values may be far before
    return Line(words, line.near | near | set(flags[-1:]))


def count_lines(seed: int, number: int, folder: Path) -> Tally:
    """Run that many, each in a copy of the folder, and count how they end."""
    tally, before = Tally(), Path.cwd()
    for line, _ in zip(lines(seed), range(number), strict=False):
        here = folder.parent / "here"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(folder, here, symlinks=True, copy_function=shutil.copy2, ignore=lambda *_: {"pipe"})
        os.chdir(here)
        for name in ("pipe", "pipe.json", "pipe.toml", "pipe.py", "pipe.csv"):
            os.mkfifo(name)
        _run(line, tally)
    os.chdir(before)
    return tally


def _run(line: Line, tally: Tally) -> None:
    text = f"matmix {shlex.join(line.words)}"[:400].encode(errors="backslashreplace").decode()
    out, error = io.StringIO(), io.StringIO()
    status: Any = None
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            main(line.words)
    except SystemExit as end:
        status = end.code
    except BaseException as escaped:
        if isinstance(escaped, KeyboardInterrupt):
            raise
        tally.refused(escaped, text)
        return
    finally:
        signal.alarm(0)
    said = error.getvalue()
    if status == 0 or (status == 1 and (out.getvalue() or said).strip() and "Traceback" not in said):
        tally.right += 1
        return
    if not line.words and "usage: matmix" in out.getvalue():
        tally.clear += 1
        return
    told = "\n".join(row for row in said.splitlines() if not row.startswith("imports "))
    why = "" if status == 2 else f"exit status {status}"
    why = why or ("" if told.startswith("matmix: ") else "not a message of the command")
    why = why or unclear_text(re.sub(r"`[^`]*--help`", "--help", told), _names(line))
    if why:
        command = line.words[0] if line.words else ""
        tally.wrong(f"{why}: {command[:20]!r}: {re.sub(r'[0-9]+', '0', told)[:60]!r}", f"{text}\n       {told[:400]!r}")
    else:
        tally.clear += 1


def _late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def _names(line: Line) -> list[str]:
    """How a message may call the words near the damage: as they are, in quotes, an option without its group."""
    found = set()
    for word in line.near:
        for one in {word, *word.split("="), *re.findall(r"\w+", word)}:
            bare = one.lstrip("-")
            found |= {one, repr(one)[1:-1][:40], bare, bare.rpartition(".")[2], bare.replace("-", "_")}
            found |= {bare.rpartition(".")[2].replace("-", "_")}
    if {"", ".", "./"} & found:  # this folder, with all that is in it
        found |= {"''", '""', *os.listdir()}
    return sorted(found - {""}) + list(POSITIONAL)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Within, commands do all but what takes long."""
    import submitit

    from matmix.experiments import plugins, report, runner, trainer
    from matmix.experiments.report import collect
    from matmix.mixers import registry

    class Executor(submitit.AutoExecutor):  # type: ignore[misc]
        def submit(self, *_: Any) -> Any:
            return type("Job", (), {"job_id": 1})()

        @contextlib.contextmanager
        def batch(self, **_: Any) -> Iterator[None]:
            yield

    def no_report(folder: Path, **_: Any) -> Path:
        collect(folder)
        return Path(folder) / "report"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MATMIX_DATA", "absent")
        patch.setattr(
            trainer, "fit", lambda *_: {"step": 1, "test": {"accuracy": 0.5}, "parameters": 1, "best_step": 1}
        )
        for name in ("run_in_workers", "run_what_is_free", "run_on_ray", "_run_here"):
            patch.setattr(runner, name, lambda *_: None)
        patch.setattr("submitit.AutoExecutor", Executor)
        patch.setattr(report, "write_report", no_report)
        # What a file of the campaign registers is gone with it.
        patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
        imported = len(plugins.IMPORTED)
        yield
        del plugins.IMPORTED[imported:]


def fill(folder: Path) -> None:
    """The files that right command lines name."""
    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from matmix.experiments.study import Study, StudyTask
    from sequence.tasks.digits import Digits
    from tests.experiments.synthetic import write_study

    folder.mkdir()
    grid = Study("grid", (StudyTask("digits", {"dim": 8, "depth": 1}),), ("identity", "pooling"), seeds=(0,))
    levels = {"digits": {"identity": 0.5, "pooling": 0.6}}
    write_study(folder / "study", grid, levels)
    shutil.copytree(next((folder / "study").rglob("config.json")).parent, folder / "run")
    (folder / "grid.json").write_text(json.dumps(grid.to_json()))
    (folder / "grid.toml").write_text('name = "grid"\nmixers = ["identity", "pooling"]\nseeds = [0]\n[[tasks]]\n'
                                      'task = "digits"\noptions = {dim = 8, depth = 1}\n')  # fmt: skip
    (folder / "grid.py").write_text(
        "from matmix.experiments.study import Study, StudyTask\n"
        'study = Study("grid", (StudyTask("digits", {"dim": 8}),), ("identity",), (0,))\n'
    )
    (folder / "own.py").write_text(
        "from matmix.mixers.pooling import Pooling\nfrom matmix.mixers.registry import register\n"
        'own = type("Twice", (Pooling,), {"__module__": __name__})\n'
        'register("twice", matrix="Toeplitz", cost="L", source="own")(own)\n'
    )
    (folder / "raises.py").write_text("raise ValueError('this module must not be imported')\n")
    Image.new("RGB", (32, 32), "red").save(folder / "image.png")
    np.save(folder / "images.npy", np.zeros((2, 3, 160, 160), "float32"))
    save_file(Digits(dim=8, depth=1).model("identity", 0).state_dict(), folder / "weights.safetensors")
    rows = [f"2024-01-{day:02},{day % 5},{day % 3}" for day in range(1, 29)]
    (folder / "data.csv").write_text("\n".join(["date,a,b", *rows, ""]))
    (folder / "folder").mkdir()
    (folder / "notes.txt").write_text("notes\n")
    (folder / "empty.toml").touch()
    (folder / "empty.json").touch()
    (folder / "broken.json").write_text('{"name": ')
    (folder / "runtime.json").write_text('{"env_vars": {"A": "1"}}')
    (folder / "loop").symlink_to("loop")
