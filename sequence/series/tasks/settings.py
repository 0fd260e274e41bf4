"""What all tasks of time series have: a model with its mixer, and the protocol."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal

import torch

from matmix.experiments.recipe import Kept
from matmix.experiments.task import Recipe
from matmix.ranges import Whole
from matmix.settings import Settings
from matmix.spec import Spec, hint, parse_spec, unknown_option
from sequence.series.models import SeriesModel, create_series_model
from sequence.series.models.base import list_series_models, series_model_class
from sequence.series.tasks.scripts import Script

Protocol = Literal["strict", "published"]
DEFAULT = "default"
"""The mixer of a study that stands for the one that a model was published with."""


@dataclasses.dataclass(frozen=True)
class SeriesSettings(Settings):
    """Fields of every task of time series."""

    architecture: str = "itransformer"
    """One of the time-series models, as a spec: "patchtst(depth=3, heads=4)". What it does not say is as in the
    published script for these data, where there is one, else the model's default."""
    protocol: Protocol = "strict"
    """"strict": every window counts once, nothing is drawn anew in an evaluation, and nothing of validation or test is
    known before it is asked for. "published": as the Time Series Library has it, its lotteries included, so that
    numbers compare."""
    epochs: Whole = 0
    """Passes over the training windows; 0 = as in the script."""

    def __post_init__(self) -> None:
        self.spec()

    @property
    def published_protocol(self) -> bool:
        return self.protocol == "published"

    @property
    def kept(self) -> Kept:
        """Of the recipe: as published an epoch that is as good as the best one takes its place."""
        return "not_worse" if self.published_protocol else "better"

    def spec(self) -> Spec:
        """The model's name and what is said of it.

        Raises:
            ValueError: for anything but one known model with named options.
        """
        try:
            found = parse_spec(self.architecture)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.architecture: {error}") from None
        if len(found) != 1 or found[0].args:
            raise ValueError(
                f"{type(self).__name__}.architecture must be one name with named options, such as 'patchtst(depth=3)', "
                f"got {self.architecture!r}"
            )
        if found[0].name not in list_series_models():
            raise ValueError(
                f"{type(self).__name__}.architecture: there is no time-series model {found[0].name!r}"
                f"{hint(found[0].name, list_series_models())}"
            )
        known = self.known_options(found[0].name)
        for option, _ in found[0].options:
            if option not in known:
                raise ValueError(unknown_option(found[0].name, option, known))
        return found[0]

    def known_options(self, name: str = "") -> list[str]:
        """What a model, or this one, can be told."""
        return list(inspect.signature(series_model_class(name or self.spec().name)).parameters)

    def script(self) -> Script:
        """Sizes and training of this model on these data."""
        raise NotImplementedError

    def training(self, windows: int, batch_size: int = 0) -> Recipe:
        """The recipe of the script over so many training windows: an evaluation an epoch, the rate halved from the
        third on, and no more after three evaluations that were no better (worse, as published). With 0 the batch is
        the script's."""
        script = self.script()
        batch_size = batch_size or script.batch_size
        each = -(-windows // batch_size)
        epochs = self.epochs or script.epochs
        return Recipe(
            steps=epochs * each, batch_size=batch_size, eval_batch_size=batch_size, lr=script.lr, warmup=0.0,
            schedule="halving", halve_every=each, weight_decay=0.0, betas=(0.9, 0.999), clip=0.0, patience=3,
            kept=self.kept, eval_every=each, checkpoint_every=each, log_every=min(50, each),
        )  # fmt: skip

    def series_model(self, mixer: str, seed: int, **shape: Any) -> SeriesModel:
        """The model with its mixer, "" and "default" for its own; its weights follow from the seed, those outside of
        the mixers whatever the mixer. Under the published protocol it does what the published code does."""
        spec = self.spec()
        as_published = {"published": True} if self.published_protocol and "published" in self.known_options() else {}
        options = {**as_published, **self.script().sizes, **dict(spec.options), **shape}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_series_model(spec.name, mixer=mixer or DEFAULT, **options)
