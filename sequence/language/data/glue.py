"""The nine tasks of GLUE (Wang et al. 2018): texts or pairs of texts with a label each.

=============  ====================================================================================================
`owner/name`   a data set of the Hugging Face hub, as nyu-mll/glue has them: a configuration for each task
a folder       with the tsv files as released, in a folder for each task: CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI,
               RTE, WNLI, in each train.tsv and dev.tsv (MNLI: dev_matched.tsv and dev_mismatched.tsv; CoLA also as
               its own release has them: in_domain_train.tsv, in_domain_dev.tsv, out_of_domain_dev.tsv)
=============  ====================================================================================================

A quote in these files is a letter like any other. The labels of GLUE's tests are not public: all published numbers that
are not from its server are of dev.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from matmix.spec import hint
from sequence.data.faults import BadData, apart, bad, byte_lines, decoded, open_binary, shown

HUB = "nyu-mll/glue"


class GlueTask(NamedTuple):
    """One of the nine."""

    folder: str
    texts: tuple[str, ...]
    """Columns of the released files with the text, or the two."""
    label: str
    """Their column with the label."""
    labels: tuple[str, ...]
    """As the files have them, in the order of the hub's numbers; () for a number from 0 to 5."""
    examples: int
    """Of training."""
    metrics: tuple[str, ...]
    """As published; the first is that of tables."""
    hub: tuple[str, ...] = ()
    """Columns of the hub with the texts, where they have other names there."""


YES = ("0", "1")
ENTAILS = ("entailment", "not_entailment")
TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask("CoLA", ("sentence",), "label", YES, 8_551, ("matthews",)),
    "sst2": GlueTask("SST-2", ("sentence",), "label", YES, 67_349, ("accuracy",)),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String"), "Quality", YES, 3_668, ("f1", "accuracy"), ("sentence1", "sentence2")
    ),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", YES, 363_846, ("accuracy", "f1")),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), 5_749, ("spearman", "pearson")),
    "mnli": GlueTask(
        "MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"), 392_702,
        ("accuracy",), ("premise", "hypothesis"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ENTAILS, 104_743, ("accuracy",)),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", ENTAILS, 2_490, ("accuracy",)),
    "wnli": GlueTask("WNLI", ("sentence1", "sentence2"), "label", YES, 635, ("accuracy",)),
}  # fmt: skip
COLA: tuple[str, ...] = ("source", "label", "mark", "sentence")
"""Columns of CoLA's files, which have no header."""
MISMATCHED = "test@mismatched"
"""MNLI's dev set of other kinds of texts than the training's."""
DEV: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "train": (("train.tsv",), ("in_domain_train.tsv",)),
    "dev": (("dev.tsv",), ("dev_matched.tsv",), ("in_domain_dev.tsv", "out_of_domain_dev.tsv")),
    MISMATCHED: (("dev_mismatched.tsv",),),
}
"""Files of each part, in the ways that they are released."""
ON_HUB = {"train": ("train",), "dev": ("validation", "validation_matched"), MISMATCHED: ("validation_mismatched",)}


class Example(NamedTuple):
    """A text or two, and the number of its class, or its score."""

    texts: tuple[str, ...]
    label: float


def glue_task(name: str) -> GlueTask:
    """One of the nine by its name on the hub.

    Raises:
        ValueError: for any other.
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}{hint(name, list(TASKS))}")
    return TASKS[name]


def parts(name: str) -> tuple[str, ...]:
    """What a task has with labels."""
    return ("train", "dev", MISMATCHED) if name == "mnli" else ("train", "dev")


@checking_arguments()
def files_of(data: Place, name: str) -> dict[str, list[Path]]:
    """The released files of each part of a task; {} where `data` is no folder but a data set of the hub.

    Raises:
        BadData: where the folder lacks one; the message says which.
    """
    root, task = Path(data).expanduser(), glue_task(name)
    if not root.is_dir():
        if data.count("/") == 1 and not root.exists() and not Path(root.parts[0]).exists():
            return {}
        raise BadData(f"data: {data} is no folder; allowed: {HUB}, or a folder with {task.folder}/train.tsv")
    folder = root / task.folder if (root / task.folder).is_dir() else root
    found = {}
    for part in parts(name):
        ways = [[folder / file for file in way] for way in DEV[part]]
        whole = [way for way in ways if all(file.is_file() for file in way)]
        if not whole:
            wanted = " or ".join(" with ".join(file.name for file in way) for way in ways)
            raise BadData(f"data: {folder} has no labels for {part} of {name}; allowed: {wanted}")
        found[part] = whole[0]
    apart(found)
    return found


@checking_arguments()
def read(data: Place, name: str, part: str) -> Iterator[Example | BadData]:
    """Every example of a part, or what is wrong with its line."""
    files = files_of(data, name)
    if not files:
        yield from _hub(data, name, part)
        return
    for file in files[part]:
        yield from _tsv(file, glue_task(name))


def _tsv(file: Path, task: GlueTask) -> Iterator[Example | BadData]:
    with open_binary(file) as opened:
        lines = enumerate(byte_lines(opened, file), 1)
        columns, counted = COLA, ""
        if task.folder != "CoLA":
            columns = tuple(decoded(next(lines, (1, b""))[1], file, 1).rstrip("\r\n").split("\t"))
            counted = ", as in the header"
            missing = [column for column in (*task.texts, task.label) if column not in columns]
            if missing:
                raise bad(
                    file, 1, f"the columns are {shown(', '.join(columns))}", f"a header with {', '.join(missing)}"
                )
        where = [columns.index(column) for column in task.texts]
        label = columns.index(task.label)
        for number, line in lines:
            row = decoded(line, file, number).rstrip("\r\n").split("\t")
            if len(row) != len(columns):
                yield bad(
                    file, number, f"{len(row)} columns",
                    f"{len(columns)}{counted}: {', '.join(columns)}; quotes are letters, and do not hide a tab",
                )  # fmt: skip
            else:
                yield _checked(str(file), number, task, [row[at] for at in where], row[label])


def _checked(where: str, line: int, task: GlueTask, texts: list[Any], label: Any) -> Example | BadData:
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            return bad(where, line, f"text {shown(text)}", "a text of at least one letter")
    if task.labels:
        if label not in task.labels:
            return bad(where, line, f"label {shown(label)}", " or ".join(task.labels))
        return Example(tuple(texts), task.labels.index(label))
    try:
        score = float(label)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 5:
        return bad(where, line, f"score {shown(label)}", "a number from 0 to 5")
    return Example(tuple(texts), score)


def _hub(data: str, name: str, part: str) -> Iterator[Example | BadData]:
    import datasets

    task = glue_task(name)
    try:
        found = datasets.load_dataset(data, name)
        split = next(split for split in ON_HUB[part] if split in found)
        rows = found[split]
    except Exception as error:  # what it raises depends on the client that the hub's library is built on
        reason = next(iter(str(error).strip().splitlines()), "")
        raise BadData(
            f"data: {part} of {name} of the hub's data set {data} cannot be opened: {type(error).__name__}: {reason}; "
            f"allowed: {HUB}, or a folder with {task.folder}/train.tsv"
        ) from error
    columns = task.hub or task.texts
    for number, row in enumerate(rows, 1):
        label = row["label"]
        if task.labels and type(label) is int and label in range(len(task.labels)):  # numbers there, words in the files
            label = task.labels[label]
        yield _checked(f"{data} {name} {split}", number, task, [row[column] for column in columns], label)
