"""How the mixers of a run come into its model: by surgery, after the task has built it.

A run without it gives its mixer to the task, which builds a model around it. With it the task builds its model first,
foreign ones too, and `matmix.surgery` then puts the mixer into the sites: so every model can be an arm of a study.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from matmix.experiments.task import Batch, Recipe, Task, inputs_of
from matmix.experiments.weights import load_weights
from matmix.ops.seed import fork_seed
from matmix.ranges import Whole
from matmix.settings import Settings
from matmix.spec import hint, parse_spec
from matmix.surgery import DistillRecipe, NoMatrix, Report, Site, Stage, distill, find, replace

DEFAULT = "default"
"""The arm of a study that is the model as it is."""
AVERAGED = 8
"""Training batches over which old matrices are averaged, for `mean_matrix` and `init="projected"`."""
INPUT = "input"
ABLATIONS = ("zero", "diagonal", "shuffle_rows", "mean", INPUT)
"""What is done to a trained model: its matrices by `matmix.surgery.ablate`, or its test inputs in a drawn order."""


@dataclasses.dataclass(frozen=True)
class Surgery(Settings):
    """Where a mixer goes and how it begins."""

    level: Literal["", "module", "matrix"] = ""
    """"module": whole mixing modules go, their projections too; "matrix": queries, keys, values and output projection
    stay. "": no surgery, the task builds its model around the mixer."""
    where: tuple[str, ...] = ("all",)
    """Sites, in the words of `matmix.surgery.select`; "all": those that can be replaced at this level."""
    base: str = ""
    """The mixer that the task builds its model with, where it has none of its own."""
    init: Literal["fresh", "projected"] = "fresh"
    """"projected": a fixed or learned matrix begins at the nearest one to the mean of the old matrix; what comes from
    tokens begins fresh, and the run says so."""
    prefix: Literal["joined", "aside"] = "joined"
    """Class tokens are part of the sequence that the mixer sees, or stand aside."""
    keep_causal: bool = True
    """Refuse a mixer that sees later tokens where the old one did not."""
    weights: str = ""
    """File of weights that the model has before the surgery; "{seed}" in it is the seed of the run."""
    distill: Whole = 0
    """Steps in which the replaced modules learn to give what the old ones gave, before the training."""
    ablate: tuple[str, ...] = ()
    """What is done to the trained model, each scored on the test split: zero, diagonal, shuffle_rows, mean, input."""

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        said = [f"{field.name}={given[field.name]!r}" for field in dataclasses.fields(self)
                if given[field.name] != field.default]  # fmt: skip
        if not self.level and said:
            raise ValueError(
                f"Surgery.level must be 'module' or 'matrix' where there is a surgery, got '' with {', '.join(said)}"
            )
        for name in self.ablate:
            if name not in ABLATIONS:
                raise ValueError(f"Surgery.ablate is of {', '.join(ABLATIONS)}, got {name!r}{hint(name, ABLATIONS)}")
        if not self.where:
            raise ValueError("Surgery.where names no site; 'all' is all of them")

    def model(
        self,
        task: Task,
        mixer: str,
        seed: int,
        recipe: Recipe,
        *,
        begun: bool = False,
        notes: list[str] | None = None,
    ) -> nn.Module:
        """The model of a task with the mixer in its sites; other weights follow from the seed, whatever the mixer.

        Args:
            begun: the weights come from a file afterwards, so nothing has to be learnt.
            notes: gets what was done, in sentences.

        Raises:
            ValueError: for a mixer that does not fit, with the name of the site.
        """
        with fork_seed(seed, "surgery"):
            model = task.model(self.base, seed)
            notes = [] if notes is None else notes
            if self.weights:
                file = self.weights.replace("{seed}", str(seed))
                load_weights(model, file)
                notes.append(f"begins with {file}, sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}")
            if mixer in ("", DEFAULT):
                return model
            teacher = copy.deepcopy(model) if self.distill and not begun else None
            report = self._replace(task, model, mixer, seed, recipe, notes)
            learns = any(p.requires_grad for row in report.rows for p in row.part.parameters())
            if teacher is not None and learns:
                stage = DistillRecipe(matrices=None, outputs=Stage(self.distill), predictions=None, seed=seed)
                batches = itertools.islice(task.batches("train", recipe.batch_size, seed=seed), self.distill)
                distill(teacher, model, (inputs(batch) for batch in batches), stage)
                notes.append(f"its new modules learnt from the old ones for {self.distill} steps before the training")
            return model

    def _replace(self, task: Task, model: nn.Module, mixer: str, seed: int, recipe: Recipe, notes: list[str]) -> Report:
        example = task.example()
        sites = self.sites(model, example)
        notes.append(f"{mixer} at {len(sites)} site{'s' * (len(sites) > 1)}: {', '.join(s.name for s in sites)}")

        def put(init: Literal["fresh", "projected"]) -> Report:
            averaged = parse_spec(mixer)[0].name == "mean_matrix" or init == "projected"
            return replace(
                model,
                {site.name: _sized(mixer, site) for site in sites},
                [site.name for site in sites],
                level=self.level or "module",
                init=init,
                seed=seed,
                prefix=self.prefix,
                keep_causal=self.keep_causal or self.level == "matrix",
                example=example,
                batches=list(some_inputs(task, recipe, seed)) if averaged else None,
            )

        try:
            return put(self.init)
        except NoMatrix as error:
            notes.append(f"begins fresh: {error}")
            return put("fresh")

    def sites(self, model: nn.Module, example: Any = None) -> list[Site]:
        """The sites that are replaced, or would be.

        Raises:
            ValueError: where there is none.
        """
        level: Literal["module", "matrix"] = self.level or "module"
        if self.where != ("all",):
            return list(find(model, self.where, example=example))
        found = find(model, example=example)
        fit = [s for s in found if not s.why_not(level) and (level == "matrix" or s.kind != "cross_attention")]
        if not fit:
            raise ValueError(f"{type(model).__name__} has no site that can be replaced at level={level!r}:\n{found}")
        return fit


NO_SURGERY = Surgery()


def inputs(batch: Batch) -> Any:
    """The inputs of a batch as `matmix.surgery` takes them, padding read as tokens: a padded matrix has no mean."""
    args, named = inputs_of(batch.x)
    return named or args


def some_inputs(task: Task, recipe: Recipe, seed: int) -> Iterator[Any]:
    """The first training batches of a run."""
    batches = task.batches("train", min(recipe.batch_size, 64), seed=seed)
    return (inputs(batch) for batch in itertools.islice(batches, AVERAGED))


def _sized(mixer: str, site: Site) -> str:
    """The spec for a site: a mean matrix has as many heads as what it is the mean of."""
    spec = parse_spec(mixer)
    bare = spec[0].name == "mean_matrix" and not spec[0].options and not spec[0].args
    return f"mean_matrix(heads={site.heads})" if bare and site.heads else mixer
