"""ListOps of the Long Range Arena (Tay et al. 2020, 2011.04006): the value of nested lists of 500 to 2,000 tokens.

    matmix train listops --mixer "attention(rotary=True)"                      drawn once, as published, in minutes
    matmix train listops --recipe s4                                           a published regime with its own mixer
    matmix train listops --mixer hydra --data lra_release/listops-1000         the released files, or another folder
    matmix train listops --mixer hydra --task.max-depth 4 --task.max-args 5 --task.min-length 10 \
        --task.max-length 60 --task.length 64 --task.train-examples 10000      short lists, for quick studies
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from matmix.experiments.task import Recipe, Split
from matmix.ranges import Count, Seed, Several, Whole
from sequence.data import listops_sets
from sequence.data.faults import bad
from sequence.data.labelled import Labelled
from sequence.data.listops import CLASSES, TOKENS, Shape
from sequence.data.vocabulary import Vocabulary
from sequence.tasks.classes import TokenTask


@dataclasses.dataclass(frozen=True)
class ListOps(TokenTask):
    """The value, 0 to 9, of a nested list such as [MAX 2 9 [MIN 4 7 ] 0 ].

    Ids are the special tokens, then the 15 tokens in the order 0 to 9, X (which closes a list), [MAX, [MED, [MIN, [SM.
    The lists are those of the published generator; for the released files name their folder in `data`. Lists of the
    release before 2021 were read without brackets: such scores cannot be compared.
    """

    data: str = ""
    """Folder with basic_train.tsv, basic_val.tsv and basic_test.tsv, or the packed release; empty: drawn."""
    max_depth: Count = 10
    max_args: Several = 10
    min_length: Whole = 500
    """Drawn lists are longer than that,"""
    max_length: Count = 2000
    """and shorter than that, in tokens, brackets included."""
    train_examples: Count = 96_000
    val_examples: Count = 2_000
    test_examples: Count = 2_000
    data_seed: Seed = 0
    """Draws the lists, whatever the seed of the run."""
    longer: tuple[Several, ...] = ()
    """Further tests on lists that are longer than all of training, up to so many times `max_length`, and a level deeper
    for each doubling. They need positions that reach so far: `--task.position sinusoidal`, or none."""

    classes: ClassVar[int] = CLASSES
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < self.min_length + 2:
            raise ValueError(
                f"ListOps.max_length must be at least min_length + 2 = {self.min_length + 2}, for lengths between the "
                f"two, got {self.max_length}"
            )
        if len(set(self.longer)) < len(self.longer):
            raise ValueError(f"ListOps.longer must be different factors, got {self.longer}")
        if self.data and self.longer:
            raise ValueError("ListOps.longer is for lists that are drawn; leave out --data, or longer")

    def lra_name(self) -> str:
        return "listops"

    def plain_recipe(self) -> Recipe:
        """About 1.7 epochs; what a run costs and reaches is said by the regimes."""
        return Recipe(
            steps=5000, batch_size=32, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.1, log_every=50,
            eval_every=500, eval_batch_size=32,
        )  # fmt: skip

    def shape(self) -> Shape:
        """Which lists are drawn."""
        return Shape(self.max_depth, self.max_args, self.min_length, self.max_length)

    def tests(self) -> tuple[str, ...]:
        return (*super().tests(), *(f"test@{factor}x" for factor in self.longer))

    def labelled(self, split: Split) -> Labelled:
        if split not in ("train", "val", "test"):
            factor = self.longer[self.tests().index(split) - len(super().tests())]
            return listops_sets.longer(self.shape(), factor, self.test_examples, self.data_seed, self.cache)
        found = self._sets().splits[split]
        longest, room = int(found.rows.lengths.max()), self.room()
        if longest > room:
            facts, row = self._sets().entry.facts, int(found.rows.lengths.argmax()) + 1
            whole = self.data and "left out as damaged" not in facts  # then rows are lines, behind the header
            raise bad(
                facts["files"][split] if self.data else f"listops, row {row} of {split}", row + 1 if whole else 0,
                f"{longest} tokens",
                f"up to {room}, as --task.length {self.length} says; a list that is cut has another value",
            )  # fmt: skip
        return found

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(TOKENS, self.special_tokens())

    def _sets(self) -> listops_sets.Sets:
        if self.data:
            return listops_sets.from_files(self.data, self.broken, self.cache)
        counts = (("train", self.train_examples), ("val", self.val_examples), ("test", self.test_examples))
        return listops_sets.generated(self.shape(), counts, self.data_seed, self.cache)

    def facts(self) -> dict[str, Any]:
        found = self._sets()
        facts: dict[str, Any] = {split: labelled.facts(CLASSES) for split, labelled in found.splits.items()}
        facts |= {"vocabulary": len(self.vocabulary()), "checksum": found.entry.digest, **found.entry.facts}
        return {**facts, **self.regime_facts()}

    def found(self) -> str:
        found = self._sets()
        sizes = ", ".join(f"{len(labelled.rows):,} {split}" for split, labelled in found.splits.items())
        longest = max(int(labelled.rows.lengths.max()) for labelled in found.splits.values())
        left = found.entry.facts.get("left out as damaged")
        return (
            f"listops: {sizes}, up to {longest:,} tokens, {'from ' + self.data if self.data else 'drawn'}"
            + (f"; {left} damaged rows left out" if left else "") + f"; prepared in {found.entry.folder}"
        )  # fmt: skip
