"""Tasks whose data fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.utils._pytree import tree_map

from matmix.experiments.task import Batch, Split, Task, examples
from matmix.sampling import once, order


class TensorTask(Task):
    """A task with all of its examples as tensors; a subclass gives them in `splits()`.

    Beside that it writes `recipe`, `model`, `loss` and `metrics`; batches, their order and the facts follow.
    """

    @abstractmethod
    def splits(self) -> dict[str, tuple[Any, Any]]:
        """Inputs and targets (x, y) of "train", "val" and "test": tensors, or nests of tensors (tuples, dicts), whose
        first axis counts the examples. Asked for once by each object, so it may compute or read; where several
        objects share what is costly, cache it (`functools.cache`) in a function of the settings."""

    def data(self, split: Split) -> tuple[Any, Any]:
        """What `splits()` has for a split."""
        found: dict[str, tuple[Any, Any]] | None = self.__dict__.get("_splits")
        if found is None:
            found = self.splits()
            for name, pair in found.items():
                try:
                    examples(pair)
                except ValueError as error:
                    raise ValueError(f"{type(self).__name__}.splits()[{name!r}]: {error}") from None
            object.__setattr__(self, "_splits", found)  # frozen: what it was made from cannot change
        if split not in found:
            raise ValueError(f"{type(self).__name__}.splits() has no {split!r}, but {', '.join(found)}")
        return found[split]

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
        names: tuple[Split, ...] = ("train", "val", "test")
        return {name: examples(self.data(name)) for name in names}
