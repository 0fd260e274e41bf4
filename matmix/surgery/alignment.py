"""What a student is held to in each stage of distillation: the teacher's matrices, outputs, predictions.

The sites of both models are met by name. A site of the student gets exactly the call that the teacher's site got, so
that sites do not depend on each other: the error of one is not the input of the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matmix.adapters import Found, Place, discover
from matmix.adapters.discovery import first_tensor
from matmix.adapters.held import holding
from matmix.surgery.select import Where, select


class Pair(NamedTuple):
    """A site of the teacher, and what stands in its place in the student."""

    name: str
    teacher: Found
    student: Found


class Heard(NamedTuple):
    """One call of a site of the teacher, and what it returned."""

    pair: Pair
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def pairs(teacher: nn.Module, student: nn.Module, where: Where = "all") -> list[Pair]:
    """The sites where the student has another mixer, or another matrix, than the teacher.

    Raises:
        ValueError: where there is none, or what was asked for is not among them.
    """
    theirs, mine = ({one.site.name: one for one in discover(model)} for model in (teacher, student))
    common = [name for name in theirs if name in mine]
    if not common:
        raise ValueError(
            f"teacher and student must have a site in common, got {', '.join(theirs) or 'none'} and "
            f"{', '.join(mine) or 'none'}"
        )
    other = [name for name in common if _differ(theirs[name], mine[name])]
    if not other:
        raise ValueError(
            f"the student has the teacher's mixer at each of {', '.join(common)}: replace some first (surgery.replace)"
        )
    chosen = select([theirs[name].site for name in other], where)
    return [Pair(site.name, theirs[site.name], mine[site.name]) for site in chosen]


def _differ(first: Found, second: Found) -> bool:
    return type(first.module) is not type(second.module) or first.site.module_class != second.site.module_class


def stands_in(model: nn.Module, found: Iterable[Found]) -> list[Any]:
    """Attributes around sites that must be otherwise, for the model to call them as modules at all."""
    return [
        setting for one in found for setting in one.adapter.settings(one.site, Place(one.site.name, one.module, model))
    ]


@contextmanager
def listening(model: nn.Module, sites: list[Pair]) -> Iterator[list[Heard]]:
    """Inside, calls of the teacher's sites are noted, in their order."""
    heard: list[Heard] = []
    handles = []
    for pair in sites:

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, pair: Pair = pair) -> None:
            heard.append(Heard(pair, args, kwargs, output))

        handles.append(pair.teacher.module.register_forward_hook(note, with_kwargs=True))
    try:
        with holding(stands_in(model, [pair.teacher for pair in sites])):
            yield heard
    finally:
        for handle in handles:
            handle.remove()


def by_matrices(heard: Iterable[Heard]) -> list[Tensor]:
    """``|S - T|^2 / |T|^2`` in Frobenius norm, of each call: S the student's matrices on the teacher's input, T those
    of the teacher.

    Rows and columns of padding do not count.
    """
    losses = []
    for pair, args, kwargs, _ in heard:
        with torch.no_grad():
            goal = pair.teacher.attended(args, kwargs).matrix.to_dense()
        made = pair.student.attended(args, kwargs).matrix.to_dense()
        made, goal = _same_size(pair, made, goal)
        weight = _real(pair, args, kwargs, goal)
        losses.append(_relative(made, goal, weight))
    return losses


def by_outputs(heard: Iterable[Heard]) -> list[Tensor]:
    """``|s - t|^2 / |t|^2`` of each call: s what the student's site gives for the teacher's input, t what that gave.

    Padded tokens do not count.
    """
    losses = []
    for pair, args, kwargs, output in heard:
        goal, made = first_tensor(output), first_tensor(pair.student.module(*args, **kwargs))
        if goal is None or made is None or goal.shape != made.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (made, goal)]
            raise ValueError(f"{pair.name}: the student's site gives {shapes[0]}, the teacher's gave {shapes[1]}")
        mask = _mask(pair, args, kwargs)
        tokens = mask is not None and goal.shape[:2] == mask.shape
        losses.append(_relative(made, goal, mask.unsqueeze(-1) if tokens and mask is not None else None))
    return losses


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of the distributions over the last axis, a mean over all others."""
    goal = (teacher.detach() / temperature).log_softmax(-1)
    made = (student / temperature).log_softmax(-1)
    return temperature**2 * (goal.exp() * (goal - made)).sum(-1).mean()


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output: the tensor itself, ``output.logits`` or ``output["logits"]``, a tuple's first.

    Raises:
        TypeError: where there are none.
    """
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, dict):
        found = output.get("logits")
    found = first_tensor(output) if found is None else found
    if not isinstance(found, Tensor):
        raise TypeError(f"the output {type(output).__name__} has no logits: give loss=")
    return found


def _relative(made: Tensor, goal: Tensor, weight: Tensor | None) -> Tensor:
    goal = goal.detach()
    apart = made - goal
    if weight is not None:  # what padding holds need not be finite
        apart, goal = (t.masked_fill(~weight, 0) for t in (apart, goal))
    return apart.square().sum() / goal.square().sum().clamp(min=torch.finfo(goal.dtype).tiny)


def _mask(pair: Pair, args: Any, kwargs: Any) -> Tensor | None:
    """Real tokens of a call; None: all, or its mask is one of pairs."""
    return pair.teacher.adapter.read(pair.teacher.site, args, kwargs).mask


def _real(pair: Pair, args: Any, kwargs: Any, goal: Tensor) -> Tensor | None:
    mask = _mask(pair, args, kwargs)
    if mask is None:
        return None
    mask = mask[:, mask.shape[1] - goal.shape[3] :]
    return (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)


def _same_size(pair: Pair, made: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of both of as many heads and tokens.

    A head of the teacher stands for several of the student; of several of the teacher's the mean does, than which no
    matrix is nearer to all. Where prefix tokens stand aside of the student's mixer, they are left out.
    """
    aside = goal.shape[2] - made.shape[2]
    if aside and aside == pair.student.site.prefix and pair.student.site.prefix_as == "aside":
        goal = goal[:, :, aside:, aside:]
    if made.shape[2:] != goal.shape[2:]:
        raise ValueError(
            f"{pair.name}: the student's matrices are {made.shape[2]} x {made.shape[3]}, the teacher's "
            f"{goal.shape[2]} x {goal.shape[3]}: leave out the stage (matrices=None)"
        )
    mine, theirs = made.shape[1], goal.shape[1]
    if mine % theirs == 0:
        goal = goal.repeat_interleave(mine // theirs, 1)
    elif theirs % mine == 0:
        goal = goal.unflatten(1, (mine, -1)).mean(2)
    else:
        raise ValueError(
            f"{pair.name}: the student has {mine} heads, the teacher {theirs}: one must divide the other, or leave out "
            f"the stage (matrices=None)"
        )
    batch = max(made.shape[0], goal.shape[0])  # a matrix without data is one for all samples
    return made.expand(batch, -1, -1, -1), goal.expand(batch, -1, -1, -1)
