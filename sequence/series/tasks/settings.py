"""What all tasks of time series have: a model with its mixer, and the protocol."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from matmix.experiments.task import Recipe
from matmix.mixers import Mixer
from matmix.ranges import check, numbers, one_of
from matmix.sampling import stream
from matmix.spec import Spec, parse_spec, unknown_option
from sequence.series.models import SeriesModel, create_series_model
from sequence.series.models.base import series_model_options
from sequence.series.tasks.scripts import Script

Protocol = Literal["strict", "published"]
DEFAULT = "default"
"""The mixer of a study that stands for the one that a model was published with."""


@dataclasses.dataclass(frozen=True)
class SeriesSettings:
    """Fields of every task of time series."""

    model: str = "itransformer"
    """One of the time-series models, as a spec: "patchtst(depth=3, heads=4)". What it does not say is as in the
    published script for these data, where there is one, else the model's default."""
    protocol: Protocol = "strict"
    """"strict": every window counts once, nothing is drawn anew in an evaluation, and nothing of validation or test is
    known before it is asked for. "published": as the Time Series Library has it, its lotteries included, so that numbers
    compare."""
    epochs: int = 0
    """Passes over the training windows; 0 = as in the script."""

    def __post_init__(self) -> None:
        check(self, protocol=one_of("strict", "published"), epochs=numbers(0, whole=True))
        self.spec()

    @property
    def published_protocol(self) -> bool:
        return self.protocol == "published"

    def spec(self) -> Spec:
        """The model's name and what is said of it.

        Raises:
            ValueError: for anything but one known model with named options.
        """
        found = parse_spec(self.model)
        if len(found) != 1 or found[0].args:
            raise ValueError(f"model must be one name with named options, 'patchtst(depth=3)', got {self.model!r}")
        known = series_model_options(found[0].name)
        for option, _ in found[0].options:
            if option not in known:
                raise ValueError(unknown_option(found[0].name, option, known))
        return found[0]

    def script(self) -> Script:
        """Sizes and training of this model on these data."""
        raise NotImplementedError

    def training(self, windows: int, batch_size: int = 0) -> Recipe:
        """The recipe of the script over so many training windows: an evaluation an epoch, the rate halved from the
        third on, and no more after three evaluations that were no better. With 0 the batch is the script's."""
        script = self.script()
        batch_size = batch_size or script.batch_size
        each = -(-windows // batch_size)
        epochs = self.epochs or script.epochs
        return Recipe(
            steps=epochs * each, batch_size=batch_size, eval_batch_size=batch_size, lr=script.lr, warmup=0.0,
            schedule="halving", halve_every=each, weight_decay=0.0, betas=(0.9, 0.999), clip=0.0, patience=3,
            eval_every=each, checkpoint_every=each, log_every=min(50, each),
        )  # fmt: skip

    def series_model(self, mixer: str, seed: int, **shape: Any) -> SeriesModel:
        """The model with its mixer. Outside of the mixers, its weights follow from the seed alone."""
        spec = self.spec()
        options = {**self.script().sizes, **dict(spec.options), **shape}

        def made(mixer: str, index: int) -> SeriesModel:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(seed, index))
                return create_series_model(spec.name, mixer=mixer, **options)

        found = made(DEFAULT, 0)
        if mixer in ("", DEFAULT):
            return found
        other = made(mixer, 1)
        mixers = tuple(f"{name}." for name, module in other.named_modules() if isinstance(module, Mixer))
        mine = {name: value.shape for name, value in other.state_dict().items() if not name.startswith(mixers)}
        shared = {name: value for name, value in found.state_dict().items() if mine.get(name) == value.shape}
        other.load_state_dict(shared, strict=False)
        return other
