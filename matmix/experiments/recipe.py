"""How to train: length, learning rate, decay, and which parameters have a rate of their own."""

from __future__ import annotations

import dataclasses
import math
import re
from fnmatch import fnmatchcase
from typing import Literal

from matmix.ranges import Amount, Chance, Count, Rate, Share, Whole
from matmix.settings import Settings

Schedule = Literal["cosine", "power", "constant", "rsqrt", "onecycle", "halving"]
Decayed = Literal["matrices", "unmarked", "all"]
Kept = Literal["better", "not_worse"]


UNFIT = {
    "adahessian": "takes second derivatives, for which the backward pass keeps no graph here",
    **dict.fromkeys(("adan", "adanw", "cadan", "cadanw"), "needs three betas, and a recipe has two"),
}
"""Optimisers of timm that cannot be trained with, and why; docs/add-a-task.md lists them from here."""
ELSEWHERE = {"bnb": "bitsandbytes", "fused": "APEX"}
"""How the names of those begin that need a GPU, and the library that they are from."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters by name, and what they have of their own: see `Recipe.groups`."""

    patterns: tuple[str, ...]
    settings: dict[str, float]

    @classmethod
    def read(cls, text: str) -> Group:
        """From `"dt_bias blocks.*.A_log lr=0.001 weight_decay=0"`.

        Raises:
            ValueError: for anything else; the message has the text, and what it should look like.
        """
        words = text.split()
        pairs = [word.partition("=") for word in words if "=" in word]
        patterns = tuple(word for word in words if "=" not in word)
        try:
            settings = {name: float(value) for name, _, value in pairs}
        except ValueError:
            settings = {}
        fine = set(settings) <= {"lr", "weight_decay"} and all(0 <= value < math.inf for value in settings.values())
        if not (patterns and settings and fine and len(settings) == len(pairs)):
            raise ValueError(
                "each of Recipe.groups must be names of parameters, then lr=NUMBER, weight_decay=NUMBER or both, "
                f"such as 'dt_bias *.A_log lr=0.001 weight_decay=0', got {text!r}"
            )
        return cls(patterns, settings)

    def names(self, parameter: str) -> bool:
        """Whether a name of `named_parameters()` is meant: by all of it, or by its last part alone."""
        # What is parametrised or pruned has the name that it had before.
        plain = re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", parameter).removesuffix("_orig")
        return any(
            fnmatchcase(name, pattern)
            for pattern in self.patterns
            for name in (plain, *([] if "." in pattern else [plain.rpartition(".")[2]]))
        )


@dataclasses.dataclass(frozen=True)
class Recipe(Settings):
    """How to train: linear warm-up, then what `schedule` says. One step is one update of the weights.

    `batch_size` counts the examples of one step over all devices and all `accumulate` parts.
    """

    steps: Count = 1000
    batch_size: Count = 64
    lr: Rate = 1e-3
    """The highest learning rate, at the end of the warm-up."""
    lr_end: Amount = 0.0
    """Where "cosine", "power" and "onecycle" end, as a share of `lr`."""
    warmup: Share = 0.05
    """Share of the schedule in which the learning rate rises to `lr`."""
    warmup_start: Share = 0.0
    """Where the rise begins, as a share of `lr`."""
    schedule: Schedule = "cosine"
    """After the warm-up: "cosine", half of one; "power", (1 - t)^power over the rest, linear with power=1; "constant";
    "rsqrt", lr * sqrt(warm-up / step). "onecycle" is torch's OneCycleLR with straight lines, warm-up included: the
    first of the betas goes from 0.95 to 0.85 and back while the rate rises and falls. "halving" stays for two periods
    of `halve_every` steps and is halved at the beginning of each further one."""
    power: Amount = 0.0
    """Of schedule="power"."""
    halve_every: Whole = 0
    """Steps of a period, of schedule="halving": an epoch, say."""
    schedule_steps: Whole = 0
    """Length of the schedule, where it is not that of the training; 0 = `steps`. Past its end the rate stays."""
    optimizer: str = "adamw"
    """"adamw" and "radam" are torch's; any other is timm's of that name ("lamb", "lion", ...), with its defaults except
    `betas`. Refused are those of `UNFIT`, and where their libraries or a GPU are missing timm's "bnb..." and
    "fused..."."""
    weight_decay: Amount = 0.05
    decayed: Decayed = "matrices"
    """What weight decay acts on: tensors with two axes or more that `matmix.no_weight_decay` does not name; or all that
    it does not name ("unmarked"), biases and norms too; or every parameter ("all")."""
    groups: tuple[str, ...] = ()
    """Parameters with a rate or decay of their own: "dt_bias *.A_log lr=0.001 weight_decay=0". A name is that of a
    parameter, or its last part, with * and ?; the first group that names a parameter has it. `lr` is what `Recipe.lr`
    is to the others: the schedule moves both in proportion. It goes before what a model says of its own parameters
    (`matmix.optim_settings`)."""
    betas: tuple[Chance, Chance] = (0.9, 0.99)
    eps: Amount = 0.0
    """In the denominator of adaptive steps; 0 = the optimiser's own, 1e-8 for "adamw"."""
    clip: Amount = 1.0
    """Largest norm of the gradient; 0 = no clipping."""
    ema: Chance = 0.0
    """Decay, a step, of a running average of the weights, which is what is evaluated and kept then; 0 = none."""
    accumulate: Count = 1
    checkpointing: bool = False
    """Keep of each block of the model its input alone, and compute it again in the backward pass: the same gradients
    for less memory and about a third more time."""
    compile: bool = False
    """Run the model's forward through `torch.compile`, in training and in evaluation: faster steps after a first one of
    seconds to minutes, equal up to rounding (see `matmix.compiled`)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: Count = 10
    eval_every: Count = 100
    patience: Whole = 0
    """Stop after so many evaluations in a row without a better score; 0 = never."""
    kept: Kept = "better"
    """Which evaluation takes the place of the best one so far. "not_worse", as in the Time Series Library: one that is
    as good does too, and so does one whose score is not a number, and after it the next one, however bad."""
    stop_at: float = 0.0
    """Stop after an evaluation that scores this or better; 0 = never."""
    checkpoint_every: Count = 500
    eval_batch_size: Count = 256

    def __post_init__(self) -> None:
        if self.optimizer in UNFIT:
            raise ValueError(
                f"Recipe.optimizer must be 'adamw', 'radam' or another of timm's, got {self.optimizer!r}, which "
                f"{UNFIT[self.optimizer]}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"Recipe.batch_size={self.batch_size} must divide by accumulate={self.accumulate}")
        if (self.schedule == "power") != bool(self.power):
            raise ValueError(
                f"Recipe.power must be above 0 with schedule='power', and 0 with any other, got power={self.power} "
                f"with schedule={self.schedule!r}"
            )
        if (self.schedule == "halving") != bool(self.halve_every):
            raise ValueError(
                f"Recipe.halve_every must be at least 1 with schedule='halving', and 0 with any other, got "
                f"halve_every={self.halve_every} with schedule={self.schedule!r}"
            )
        if self.schedule in ("constant", "rsqrt", "halving") and self.lr_end:
            raise ValueError(f"Recipe.lr_end must be 0 with schedule={self.schedule!r}, got {self.lr_end}")
        if self.schedule in ("rsqrt", "onecycle") and self.rise < 2:
            raise ValueError(
                f"Recipe.warmup must be at least 2 steps with schedule={self.schedule!r}, got warmup={self.warmup}, "
                f"{self.rise} of {self.span} steps"
            )
        if self.warmup_start and not self.rise:
            raise ValueError(f"Recipe.warmup_start={self.warmup_start} needs a warm-up, got warmup={self.warmup}")
        self.parsed_groups()

    @property
    def span(self) -> int:
        """Steps of the schedule, and `rise`: those of its warm-up."""
        return self.schedule_steps or self.steps

    @property
    def rise(self) -> int:
        return round(self.warmup * self.span)

    def parsed_groups(self) -> list[Group]:
        return [Group.read(text) for text in self.groups]

    def lr_at(self, step: int, lr: float | None = None) -> float:
        """Learning rate of update `step` (0 is the first) where the highest is `lr`, or the recipe's own."""
        peak, rise = self.lr if lr is None else lr, self.rise
        if self.schedule == "onecycle":
            up, down = self._cycle(step)
            return peak * (self.warmup_start + (1 - self.warmup_start) * up - (1 - self.lr_end) * down)
        if step < rise:
            if self.warmup_start:
                return peak * (self.warmup_start + (1 - self.warmup_start) * (step + 1) / rise)
            return peak * (step + 1) / rise
        if self.schedule == "constant":
            return peak
        if self.schedule == "rsqrt":
            return peak * math.sqrt(rise / (step + 1))
        if self.schedule == "halving":
            return peak * 0.5 ** max(0, step // self.halve_every - 1)
        progress = min(1.0, (step - rise) / max(1, self.span - rise))
        left = (1 - progress) ** self.power if self.power else 0.5 * (1 + math.cos(math.pi * progress))
        return peak * (self.lr_end + (1 - self.lr_end) * left)

    def beta_at(self, step: int) -> float:
        """The first of the betas in update `step`."""
        if self.schedule != "onecycle":
            return self.betas[0]
        up, down = self._cycle(step)
        return 0.95 - 0.1 * (up - down)

    def _cycle(self, step: int) -> tuple[float, float]:
        """How much of the way up and of the way down is done, as OneCycleLR counts: the top is step rise - 1, the end
        the last step."""
        top, last = self.rise - 1, self.span - 1
        return min(1.0, step / top), min(1.0, max(0.0, (step - top) / max(1, last - top)))
