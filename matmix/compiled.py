"""A model's forward as programs of `torch.compile`, for training and evaluation: `Recipe.compile`.

Which program a batch runs through is a function of its sizes and of those of the first batch of its mode, which the
checkpoint of a run keeps: never of what ran before in this process. So a run that was killed goes on through the same
programs, to the same digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_unflatten

Shapes = dict[str, list[list[int]]]
"""The sizes of the first batch, tensor by tensor, of each mode and number of axes: what JSON can hold."""


class Compiled(nn.Module):
    """The forward of a model through `torch.compile`, whole: what the compiler cannot see through is an error.

    The first batch in training, and the first in evaluation, have programs for just their sizes. Batches of other sizes
    share one more for each set of axes that differ from those, in which the sizes along these axes are open: rows of
    any number of lengths are two programs.

    Args:
        model: what runs; it keeps its weights, their names and its eager forward.
        shapes: of the first batches; filled as they come.
    """

    def __init__(self, model: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.model, self.shapes = model, shapes
        self._program = torch.compile(_run, fullgraph=True, dynamic=False)
        self.train(model.training)

    def forward(self, *args: Any, **named: Any) -> Any:
        """What the model gives.

        Raises:
            ValueError: where the model cannot be compiled; the message names the setting. What the model itself raises
                of these inputs (a LengthError, say) is raised as it is.
        """
        axes, (opened, more) = self._open((args, named))
        with compiling(self.model), open_strides() if axes else nullcontext():
            try:
                return self._program(axes, self.model, opened, more)
            except Exception as error:
                if _of_the_compiler(error):
                    # What the model itself refuses, a compiler reports in its words: the model says it in its own.
                    # No program has run then, so this is not a second time, and no training goes on after either error.
                    self.model(*args, **named)
                raise

    def _open(self, inputs: Any) -> tuple[str, Any]:
        """Inputs whose sizes differ from the first ones are marked for the compiler to leave open; and where, in
        words."""
        leaves, nest = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = f"{'train' if self.training else 'eval'} {[tensor.dim() for tensor in tensors]}"
        usual = iter(self.shapes.setdefault(key, [list(tensor.shape) for tensor in tensors]))
        axes: list[str] = []
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            differ = [
                axis for axis, (size, first) in enumerate(zip(leaf.shape, next(usual), strict=True)) if size != first
            ]
            if differ:
                leaves[place] = leaf = leaf.view_as(leaf)  # marks stay with an object, and batches may be data
                torch._dynamo.maybe_mark_dynamic(leaf, differ)
                axes.append(f"{place}:{differ}")
        return " ".join(axes), tree_unflatten(leaves, nest)


def _run(axes: str, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    # The comparison has the compiler keep a program for each value: else which one of several that fit a batch runs
    # would hang on which of them ran last.
    if axes == "":
        return model(*args, **named)
    return model(*args, **named)


def _of_the_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException  # a second of imports

    return isinstance(error, TorchDynamoException)


@contextmanager
def open_strides() -> Iterator[None]:
    """Within, Inductor gives a view that is an output the strides that it has, in place of the order of its strides.

    For the order it sorts them, which it cannot where one is an open length: "cannot determine truth value of
    Relational: 1 < s27", of a transposed view that is kept for the backward pass (pytorch/pytorch#172204 and #185510;
    #185871 would mend it).
    """
    from torch._inductor import config  # seconds of imports

    if not hasattr(config, "strict_output_strides"):  # older ones
        yield
        return
    with config.patch(strict_output_strides=True):
        yield


@contextmanager
def compiling(model: nn.Module) -> Iterator[None]:
    """Within, what the compiler raises is a ValueError that names the setting; programs of a backward pass may be made
    as late as that pass."""
    try:
        yield
    except Exception as error:
        if not _of_the_compiler(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ValueError(
            f"Recipe.compile=True: {type(model).__name__} cannot be compiled ({type(error).__name__}: {reason}); "
            "Recipe.compile=False trains it as it is"
        ) from error


def compile_forward(model: nn.Module, bare: nn.Module, shapes: Shapes) -> nn.Module:
    """What accelerate made of a model, with the forward of the model inside compiled.

    Raises:
        ValueError: for wrappers other than DistributedDataParallel.
    """
    if model is bare:
        return Compiled(bare, shapes)
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"Recipe.compile=True: a model trains alone or in DistributedDataParallel, got {type(model).__name__}"
        )
    model.module = Compiled(bare, shapes)  # gradients travel as before: they are of the same parameters
    return model
