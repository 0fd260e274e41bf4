"""The commands that run one task: train, evaluate. The settings of the task and its recipe are options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matmix.experiments.cli_options import OfTask, parse, say
from matmix.experiments.config import RunConfig
from matmix.experiments.environment import is_main_process
from matmix.experiments.folder import Result
from matmix.experiments.operation import NO_SURGERY, Surgery
from matmix.experiments.output import complain
from matmix.experiments.plugins import fingerprints
from matmix.experiments.progress import watch
from matmix.experiments.task import check_metric, check_tests
from matmix.ranges import Count, Seed


def train(words: Sequence[str]) -> int:
    """Train one model, or one mixer, on one task. The settings of the task are options; so is the recipe.

    A run that was stopped or killed goes on with the same command; a finished one is not run again.
    """
    name, given, changed = parse(words, _Train, "train", train.__doc__)
    if given.steps is not None:
        changed["steps"] = given.steps
    plugins = fingerprints(given.imports)
    config = RunConfig(
        name, given.mixer, given.seed, asdict(given.task), changed, given.threads, plugins, asdict(given.surgery)
    )
    config.make_model(given.task, begun=True)  # a wrong spec ends here, in one line, and leaves no folder
    check_metric(given.task)
    from matmix.experiments.run import execute  # seconds of imports, which a wrong word need not wait for

    out = given.out or Path("runs") / config.name
    main = is_main_process()
    if main and not given.quiet:
        say(given.task)
    with watch(config.name, quiet=given.quiet or not main) as progress:
        try:
            result = execute(config, out, progress=progress, resume=given.resume, track=given.track)
        except KeyboardInterrupt:
            complain(f"stopped; the checkpoint is in {out}. The same command goes on from there.")
            return 130
        except OSError as error:  # before the run could begin: its folder cannot be made, or written in
            complain(f"failed: {error}")
            return 1
    if main:
        print(_summary(result, out))
    return 0 if result.status == "finished" else 1


def evaluate(words: Sequence[str]) -> int:
    """Score weights from a file, one's own or published ones, on a split of a task."""
    from matmix.compiled import Compiled
    from matmix.experiments.scoring import Scorer
    from matmix.experiments.step import new_accelerator
    from matmix.experiments.weights import load_weights

    name, given, _ = parse(words, _Evaluate, "evaluate", evaluate.__doc__)
    splits = ("val", "test", *check_tests(given.task))
    if given.split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, got {given.split!r}")
    model = given.task.model(given.mixer, 0)
    load_weights(model, given.weights, given.source)
    accelerator = new_accelerator(given.recipe.precision)
    if accelerator.is_main_process:
        say(given.task)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    if given.recipe.compile:
        model = Compiled(model, {})
    scores = Scorer(given.task, accelerator, given.recipe.eval_batch_size)(model, given.split)
    if accelerator.is_main_process:
        text = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
        print(f"{name} {given.split} of {given.weights}: {text}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Train(OfTask):
    mixer: str = ""
    """Spec; a pattern such as "ssd*3, attention" is tiled over the depth. Absent: the mixers of the model itself."""
    surgery: Surgery = NO_SURGERY
    """Puts the mixer into the model after it is built, whatever the model: --surgery.level module."""
    seed: Seed = 0
    """Of the weights, the data order and dropout."""
    steps: Count | None = None
    """Number of updates; short for --recipe.steps."""
    out: Path | None = None
    """Folder of the run. Default: runs/ and a name of task, model, mixer, seed and a few digits of all settings."""
    resume: bool = True
    """Go on from the last checkpoint of an unfinished run."""
    threads: Count = 1
    """Threads of torch on the CPU: part of what a run is, since its last digits depend on them. 1 on every machine,
    unless it is said here: large models are faster with as many as there are cores."""
    track: str = ""
    """Tell a tracker of accelerate what is logged, too: "tensorboard" writes to OUT/tensorboard."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class _Evaluate(OfTask):
    weights: Path
    """File of weights: safetensors (such as best.safetensors of a run), or a torch file of tensors alone."""
    source: str = ""
    """owner/repo of the published code that wrote them; absent: found by the names of the weights."""
    mixer: str = ""
    """Spec of the mixers, where they are not those of the model itself."""
    split: str = "test"
    """val, test, or a further test split of the task, such as test@2x."""


def _summary(result: Result, out: Path) -> str:
    if result.status != "finished":
        where = f"; the traceback is in {out / 'error.txt'}" if result.status == "failed" else ""
        return f"{result.status} at step {result.step}: {result.error}{where}"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in result.test.items())
    speed = f", {1e3 * result.step_seconds:.1f} ms a step" if result.step_seconds else ""
    return f"test {scores} (best of step {result.best_step}{speed}, {result.parameters:,} parameters); in {out}"
