"""Finished runs as checkpoints: where they lie, what fits them, and as folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result, load_model, read_config
from matmix.experiments.weights import read_weights
from matmix.folders import check_ours, claim
from sequence.init_from import finished, load_part, run_below, without
from sequence.language import MatmixConfig, MatmixForSequenceClassification

if TYPE_CHECKING:
    from sequence.language.settings import ModelSettings

OF_THE_HEAD = ("decoder.", "transform.", "classifier.", "relation.")
"""Weights that say something of what the encoder has read: of hidden words, or of classes."""


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, or of a study of some; else it may be one of transformers."""
    return (folder / "metrics.jsonl").is_file() or (folder / "result.json").is_file() or (folder / "runs").is_dir()


def checkpoint(folder: Path, mixer: str, seed: int, name: str = "") -> Path:
    """The run in a folder, or in that of a study the one of this mixer and seed: one of masked words, or of a task of
    GLUE by its name.

    Raises:
        ValueError: where there is none, or more than one.
    """
    return run_below(folder, {mixer}, seed, lambda config: config.options.get("name", "") == name)


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """What the runs in a folder turn text into ids with.

    Raises:
        ValueError: where they have several.
    """
    places = [folder] if (folder / "config.json").is_file() else sorted(folder.glob("runs/**/seed-*"))
    tasks: dict[Any, ModelSettings] = {}
    for place in places:
        task: Any = read_config(place).make_task()
        tasks[task] = task
    made = {id(found): found for found in (task.tokenizer() for task in tasks.values())}
    if len(made) != 1:
        raise ValueError(f"tokens: the runs in {folder} have {len(made)} tokenizers; name one run")
    return next(iter(made.values()))


def start_from(model: nn.Module, folder: Path, task: ModelSettings) -> None:
    """Load the best weights of a finished run into a classifier, all but those of heads, and nothing in part.

    Raises:
        ValueError: where the run is not finished, or its settings of the model are others; the message names each.
    """
    result = finished(folder)
    _check_settings(read_config(folder), folder, task)
    _check_words(result, folder, task)
    given = without(read_weights(folder / "best.safetensors"), OF_THE_HEAD)
    wanted = without(model.state_dict(), OF_THE_HEAD)
    if not any("pooler." in name for name in given):  # of masked words: no pooler was trained
        wanted = {name: value for name, value in wanted.items() if "pooler." not in name}
    load_part(model, given, wanted, folder)


def from_transformers(
    config: MatmixConfig, folder: Path, tokens: PreTrainedTokenizerFast, named: str
) -> MatmixForSequenceClassification:
    """A classifier of this configuration at the weights of a folder of transformers.

    Raises:
        ValueError: where there is none, or one of another vocabulary, or its encoder is another; it names the fields.
    """
    from sequence.language.settings import SHAPE

    # Without this file transformers 4 guesses a model from the folder's name.
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"init_from: {folder} is neither the folder of a run, nor of a study, nor of transformers")
    try:
        theirs = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from: {folder} cannot be opened: {error}") from None
    if not isinstance(theirs, MatmixConfig):
        raise ValueError(f"init_from: {folder} is a {theirs.model_type!r}; allowed: a model of `matmix train mlm`")
    check_vocabulary(theirs.vocab_size, tokens, folder, named)
    other = [
        f"{name} is {getattr(theirs, name, None)!r} there and {getattr(config, name)!r} here"
        for name in ("mixer", *SHAPE)
        if "dropout" not in name and getattr(theirs, name, None) != getattr(config, name)
    ]
    if other:
        raise ValueError(f"init_from: the model in {folder} is another: {'; '.join(other)}")
    found: MatmixForSequenceClassification = MatmixForSequenceClassification.from_pretrained(folder, config=config)
    return found


def check_vocabulary(size: int, tokens: PreTrainedTokenizerFast, folder: Path, named: str) -> None:
    """Raise a ValueError where a tokenizer has another number of words than a checkpoint."""
    if size != len(tokens):
        raise ValueError(
            f"tokens: {named or 'the tokenizer'} has {len(tokens):,} words, and the checkpoint {folder} {size:,}: take "
            "the tokenizer that it was trained with (tokens='' does)"
        )


def _check_settings(config: RunConfig, folder: Path, task: ModelSettings) -> None:
    from sequence.language.settings import SHAPE

    ours: dict[str, Any] = {name: getattr(task, name) for name in SHAPE if "dropout" not in name}
    other = [
        f"{name} is {config.options.get(name)!r} there and {value!r} here"
        for name, value in ours.items()
        if config.options.get(name) != value
    ]
    if other:
        raise ValueError(f"init_from: the settings of {folder} are others: {'; '.join(other)}")


def _check_words(result: Result, folder: Path, task: ModelSettings) -> None:
    from sequence.language.data.tokenizer import fingerprint

    size, theirs = result.facts.get("vocabulary", 0), result.facts.get("tokenizer")
    check_vocabulary(size, task.tokenizer(), folder, getattr(task, "tokens", ""))
    mine = fingerprint(task.tokenizer())
    if theirs != mine:
        raise ValueError(
            f"tokens: the tokenizer has other words ({mine}) than that of the checkpoint {folder} ({theirs}): take the "
            "one that it was trained with (tokens='' does)"
        )


def save_pretrained(run: Path, folder: Path, weights: str = "best") -> None:
    """A finished run as a folder of transformers: model, configuration and tokenizer.

    `pipeline("fill-mask", folder)` and `AutoModel.from_pretrained(folder)` open it after `import sequence.language`.

    Raises:
        ValueError: for a run of another kind of task, or a folder with files that are not ours (see `matmix.folders`).
    """
    task: Any
    model: Any
    check_ours(folder, "model of transformers")
    task, model = load_model(run, weights)
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{run} is a run of {type(task).__name__}, whose model is none of transformers")
    claim(folder, "model of transformers")
    model.save_pretrained(folder)
    task.tokenizer().save_pretrained(folder)
