"""State tracking: what a sequence of moves comes to, where every move counts and the order may count as well.

    input     start  a   b   c   ...       elements of a group (Merrill et al. 2024, arXiv 2404.08819)
    labels           a   ab  abc ...       products of the prefixes

Parity is the smallest such problem: a model that has learnt it reads rows of any length. A layer whose state only fades
cannot, one layer whose state is turned by one reflection a token can for parity, and for S3 it takes two (arXiv
2411.12537, 2502.10297). So the test is at other lengths than the training, and is scored by position.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import Depth, Several, Whole
from matmix.sampling import stream
from sequence.data.groups import group
from sequence.data.labels import IGNORED
from sequence.data.states import DIGIT, EQUALS, draw_arithmetic, draw_words
from sequence.encoder import Position
from sequence.tasks.tokens import SPLITS, TIMES, TokenTask

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class StateTracking(TokenTask):
    """Say at each token what all tokens up to it come to.

    Problems are "parity", word problems over groups ("Z60", "S3", "S5", "A5", "A4xZ5", any of Zn, Sn, An and their
    products), and "mod5" (or another number): arithmetic modulo 5 without brackets, digits and + - * in turn, where *
    binds first. The elements of a group are drawn evenly, so whoever knows all tokens but one is at chance, 1 / |G|.

    Training rows are new in every step. "val" and "test" have the training length, "test@2x", "test@4x" and "test@8x"
    are longer: by default 128 and 256, 512 (the published test) and 1024 tokens. Published settings (DeltaProduct,
    arXiv 2502.10297) are one layer, dim=128, 8 heads of 32 (`expand_k=2, expand_v=2`), d_conv=None, batches of 2048,
    5,000 steps at 1e-3.
    """

    problem: str = "S3"
    length: Several = 128
    """Tokens of a training row, without the start token; "test@2x" has twice as many."""
    shortest: Whole = 0
    """Each training batch draws a length from here to `length`; 0 = all have `length`."""
    labels: Literal["every", "last"] = "every"
    """A label at each token (each digit), or at the last token alone (the sign = behind the arithmetic)."""
    start: bool = True
    """A token in front that is the same in every row: without it a model cannot tell its first token."""
    curriculum: Whole = 0
    """Steps over which the labels of training rows come in, one place after the other from the first on, evenly; 0 =
    all from the beginning. DeltaProduct's code adds a place whenever an epoch's loss is below 0.3; here it goes by the
    step, so that a run that was stopped goes on exactly."""
    train_examples: Whole = 0
    """Size of a fixed training set; 0 = new examples at every step."""
    depth: Depth = 1
    position: Position = "none"

    def __post_init__(self) -> None:
        try:
            self.classes  # noqa: B018  (it refuses what is no problem)
        except ValueError as error:
            raise ValueError(f"StateTracking.problem must be 'parity', a group or 'mod5': {error}") from None
        if self.eval_examples < 2:
            raise ValueError(f"StateTracking.eval_examples must be at least 2, got {self.eval_examples}")
        if self.shortest > self.length:
            raise ValueError(f"StateTracking.shortest must be from 0 to length={self.length}, got {self.shortest}")
        if self.train_examples and self.shortest:
            raise ValueError("StateTracking: a fixed training set has one length; set shortest=0 or train_examples=0")
        if self.curriculum and self.labels == "last":
            raise ValueError(f"StateTracking.curriculum must be 0 with labels='last', got {self.curriculum}")

    @property
    def modulus(self) -> int:
        """Of the arithmetic; 0 for a group."""
        found = re.fullmatch(r"mod(\d+)", self.problem)
        if found is None:
            return 0
        if not 2 <= int(found[1]) <= 1000:
            raise ValueError(f"arithmetic is modulo 2 to 1000, got {self.problem!r}")
        return int(found[1])

    @property
    def group_name(self) -> str:
        return "Z2" if self.problem == "parity" else self.problem

    @property
    def classes(self) -> int:
        """Values that a row may come to."""
        return self.modulus or group(self.group_name).order

    @property
    def width(self) -> int:
        return self.length + self.start

    @property
    def ids(self) -> int:
        return (DIGIT + self.modulus if self.modulus else self.classes) + self.start

    def recipe(self) -> Recipe:
        return Recipe(
            steps=2000, batch_size=256, lr=2e-3, eval_every=250, log_every=20, weight_decay=0.0, eval_batch_size=128
        )

    def model(self, mixer: str, seed: int) -> nn.Module:
        return self.encoder(mixer, seed, vocabulary=self.ids, grid=(self.width,), head="token", outputs=self.classes)

    # ------------------------------------------------------------------ data

    def tests(self) -> tuple[str, ...]:
        return tuple(TIMES)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        found = super().batches(split, batch_size, seed=seed, start=start, rank=rank, world=world)
        if split != "train" or not self.curriculum:
            return found
        return (self._first(batch, step) for step, batch in enumerate(found, start))

    def _first(self, batch: Batch, step: int) -> Batch:
        """The batch of a step with labels at as many places as the curriculum has come to."""
        places = self.start + 1 + step * self.length // self.curriculum
        labels = batch.y.clone()
        labels[:, places:] = IGNORED
        return batch._replace(y=labels)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for index, name in enumerate(SPLITS):
            count = self.train_examples if name == "train" else self.eval_examples
            if count:
                generator = np.random.default_rng(stream(self.data_seed, index))
                found[name] = self._rows(generator, count, self.length * TIMES.get(name, 1))
        return found

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        length = int(generator.integers(self.shortest, self.length + 1)) if self.shortest else self.length
        return self._rows(generator, count, length)

    def _rows(self, generator: np.random.Generator, count: int, length: int) -> tuple[Tensor, Tensor]:
        if not self.modulus:
            x, y = draw_words(generator, count, length, group(self.group_name))
        elif self.labels == "every":
            x, y = draw_arithmetic(generator, count, length, self.modulus)
        else:
            # The sign stands behind a digit, so such rows have even lengths: an odd one is one token shorter.
            x, y = draw_arithmetic(generator, count, max(1, length - 1 - length % 2), self.modulus)
            x = np.pad(x, ((0, 0), (0, 1)), constant_values=EQUALS)
            y = np.concatenate((y, y[:, -1:]), 1)
        if self.labels == "last":
            y[:, :-1] = IGNORED
        if self.start:
            x = np.pad(x, ((0, 0), (1, 0)), constant_values=self.ids - 1)
            y = np.pad(y, ((0, 0), (1, 0)), constant_values=IGNORED)
        return torch.from_numpy(x), torch.from_numpy(y)

    # ------------------------------------------------------------------ scores

    def metrics(self) -> dict[str, Metric]:
        """Of tokens; of rows that are right throughout; and of tokens in each quarter of the row, which says how far a
        model gets: "accuracy.4/4" of test@4x is of tokens three to four times as far as any in training."""
        from sequence.metrics import RowAccuracy, TokenAccuracy

        found: dict[str, Metric] = {"accuracy": TokenAccuracy(IGNORED)}
        if self.labels == "every":
            found["row_accuracy"] = RowAccuracy(IGNORED)
            found |= {f"accuracy.{part}/4": TokenAccuracy(IGNORED, (part - 1) / 4, part / 4) for part in (1, 2, 3, 4)}
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        names = [name for name in self.metrics() if name != "row_accuracy"]
        labels = self.data("test")[1]
        labels = labels[labels != IGNORED]
        common = labels.bincount(minlength=self.classes).max().item() / len(labels)
        chance = {"chance": dict.fromkeys(names, 1 / self.classes)}
        return chance if not self.modulus else chance | {"most frequent value": {"accuracy": common}}

    def facts(self) -> dict[str, Any]:
        train: Any = self.train_examples or "new examples at every step"
        lengths = {name: x.shape[1] - self.start for name, (x, _) in self._found().items() if name != "train"}
        return {"train": train, "evaluation": self.eval_examples, "values": self.classes, "lengths": lengths}


@torch.no_grad()
def by_position(
    task: StateTracking, model: nn.Module, split: str = "test@4x", batch_size: int = 128
) -> dict[str, Tensor]:
    """Along the row, what share of the rows is right: "accuracy" at each place, "prefix" at all places up to it.

    The second is what arXiv 2502.10297 plots against length. Places without a label (the start token, operators) are
    nan in the first and add nothing to the second.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    rows = []
    for batch in task.batches(split, batch_size):
        said = task.forward(model, batch.map(lambda tensor: tensor.to(device))).argmax(-1).cpu()
        rows.append(torch.where(batch.y == IGNORED, torch.nan, (said == batch.y).double()))
    model.train(training)
    right = torch.cat(rows)
    return {"accuracy": right.mean(0), "prefix": right.nan_to_num(1.0).cummin(1).values.mean(0)}
