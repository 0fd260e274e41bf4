"""What tasks of the Long Range Arena have besides the settings of the encoder: their regime, and where they begin."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from matmix.experiments.folder import read_config
from matmix.experiments.task import Recipe, Task
from matmix.experiments.weights import read_weights
from sequence.encoder import Encoder
from sequence.init_from import finished, load_part, run_below, without
from sequence.regimes import PUBLISHED, REGIMES, Regime, regime
from sequence.tasks.settings import EncoderSettings

OF_THE_HEAD = ("head.", "pooled_norm.", "cls")
"""Names of weights that belong to what is said of a sequence, not to how it is read."""
NO_MATTER = ("regime", "init_from", "data", "cache", "broken", "data_seed", "split_seed")
"""Settings that make no other regime."""


@dataclasses.dataclass(frozen=True)
class RegimeSettings(EncoderSettings, Task):
    """In front of the settings of a task: `class Text(RegimeSettings, ClassSettings, TensorTask)`.

    The task says its name in the regimes, `lra_name`, and a recipe for settings that are nobody's, `plain_recipe`.
    """

    regime: str = ""
    """The published regime that the recipe is from: what `--recipe NAME` sets, with all settings that belong to it."""
    init_from: str = ""
    """Folder of a finished run whose best weights to start from, all but those of its head: a pretraining on the same
    inputs. Or the folder of a study of such runs: then the run of the same mixer and seed."""

    regimes: ClassVar[dict[str, Callable[[str], Regime]]] = REGIMES

    @abstractmethod
    def lra_name(self) -> str:
        """The task as the regimes know it."""

    @abstractmethod
    def plain_recipe(self) -> Recipe:
        """The recipe where no regime is named."""

    def found_regime(self) -> Regime:
        """The regime that is named.

        Raises:
            ValueError: for one that there is not, or not for this task.
        """
        try:
            return regime(self.regime, self.lra_name(), self.regimes)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.regime={self.regime!r}: {error}") from None

    def recipe(self) -> Recipe:
        return self.found_regime().recipe if self.regime else self.plain_recipe()

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """The settings and the recipe of a published regime (see `sequence.regimes`)."""
        if name == "default":
            return self, self.recipe()
        found = regime(name, self.lra_name(), self.regimes)
        return dataclasses.replace(self, regime=name, **found.settings), found.recipe

    def arm(self, mixer: str) -> str:
        """The mixer, or where none is named that of the regime."""
        if not mixer and not self.regime:
            raise ValueError(
                "name the mixer, as in --mixer attention; or a regime, --recipe s4, for the mixer it is of"
            )
        return mixer or self.found_regime().mixer

    def title(self) -> str:
        return self.regime

    def encoder(self, mixer: str, seed: int, **options: Any) -> Encoder:
        """The encoder of these settings, begun at the weights of another run where one is named."""
        arm = self.arm(mixer)
        made = super().encoder(arm, seed, **options)
        if self.init_from:
            start_from(made, run_below(Path(self.init_from), {mixer, arm}, seed))
        return made

    def changed(self) -> list[str]:
        """Settings that are not as the regime has them."""
        whole = dataclasses.replace(type(self)(), regime=self.regime, **self.found_regime().settings)
        names = [field.name for field in dataclasses.fields(self) if field.name not in NO_MATTER]
        return [
            f"{name}={getattr(self, name)!r} instead of {getattr(whole, name)!r}"
            for name in names
            if getattr(self, name) != getattr(whole, name)
        ]

    def published(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Accuracies by model and source, where all that decides a score is as the regime has it; a model that was
        published as being at chance has none."""
        if not self.regime or self.changed() or _deciding(recipe) != _deciding(self.found_regime().recipe):
            return {}
        name = self.lra_name()
        return {
            f"{row.model}, {row.source}": {} if score is None else {"accuracy": score / 100}
            for row in PUBLISHED.get(self.regime, ())
            if name in row.accuracy
            for score in [row.accuracy[name]]
        }

    def regime_facts(self) -> dict[str, Any]:
        """What a reader must know: the regime, and what is not as it has it."""
        facts: dict[str, Any] = {}
        if self.regime:
            facts["regime"] = ", ".join([self.regime, *self.changed()])
        if self.init_from:
            one = (Path(self.init_from) / "config.json").is_file()
            which = f"run {read_config(Path(self.init_from)).key}" if one else "the run of the same mixer and seed"
            facts["begun at"] = f"{self.init_from} ({which})"
        return facts


def _deciding(recipe: Recipe) -> Recipe:
    """The recipe but for when it is logged, scored and saved."""
    return dataclasses.replace(recipe, log_every=1, eval_every=1, checkpoint_every=1, eval_batch_size=1, accumulate=1)


def start_from(model: nn.Module, folder: Path) -> None:
    """Load the best weights of a finished run into a model, all but those of the head, and nothing in part.

    A pixel embedding that has learned to read what is hidden, a second channel, gives its first one.

    Raises:
        ValueError: where the run is not finished or the rest does not fit; the message names every weight.
    """
    finished(folder)
    given = without(read_weights(folder / "best.safetensors"), OF_THE_HEAD)
    wanted = without(model.state_dict(), OF_THE_HEAD)
    name = "embedding.weight"
    if name in given and given[name].shape[1:] == (2,) and wanted[name].shape[1:] == (1,):
        given[name] = given[name][:, :1]
    load_part(model, given, wanted, folder)
