"""Tasks whose data fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.utils._pytree import tree_map

from matmix.experiments.task import SPLITS, Batch, Split, Task, examples
from matmix.sampling import once, order


class TensorTask(Task):
    """A task with all of its examples as tensors; a subclass gives them in `splits()`.

    Beside that it writes `recipe`, `model`, `loss` and `metrics`; batches, their order and the facts follow.
    """

    @abstractmethod
    def splits(self) -> dict[str, tuple[Any, Any]]:
        """Inputs and targets (x, y) of "train", "val" and "test": tensors, or nests of tensors (tuples, dicts), whose
        first axis counts the examples. Whatever else is here ("test@2x") is a further split to test on. Asked for once
        by each object, so it may compute or read; where several objects share what is costly, cache it
        (`functools.cache`) in a function of the settings."""

    def tests(self) -> tuple[str, ...]:
        return tuple(name for name in self._found() if name not in SPLITS)

    def data(self, split: Split) -> tuple[Any, Any]:
        """What `splits()` has for a split."""
        found = self._found()
        if split not in found:
            raise ValueError(f"{type(self).__name__}.splits() has no {split!r}, but {', '.join(found)}")
        return found[split]

    def _found(self) -> dict[str, tuple[Any, Any]]:
        found: dict[str, tuple[Any, Any]] | None = self.__dict__.get("_splits")
        if found is None:
            found = self.splits()
            for name, pair in found.items():
                try:
                    examples(pair)
                except ValueError as error:
                    raise ValueError(f"{type(self).__name__}.splits()[{name!r}]: {error}") from None
            object.__setattr__(self, "_splits", found)  # frozen: what it was made from cannot change
        return found

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        pair = self.data(split)
        if split == "train":
            indices = order(examples(pair), batch_size, seed=seed, start=start, rank=rank, world=world)
        else:
            indices = once(examples(pair), batch_size, rank=rank, world=world)
        return (Batch(*tree_map(lambda tensor, at=at: tensor[at], pair)) for at in indices)

    def facts(self) -> dict[str, Any]:
        return {name: examples(self.data(name)) for name in (*SPLITS, *self.tests())}
