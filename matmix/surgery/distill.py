"""distill: a student with other mixers learns from the model that it was made of, in three stages.

The loop is a plain one: a batch, the teacher on it, a loss, a step of AdamW.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters.discovery import arguments_of, called
from matmix.adapters.held import holding
from matmix.arguments import checking_arguments
from matmix.checksums import sums
from matmix.cost import evaluating, frozen
from matmix.files import Damaged
from matmix.folders import check_ours, claim, mark, names_in
from matmix.ops.marks import grouped, no_weight_decay, optim_settings
from matmix.ops.seed import fork_seed
from matmix.ops.signals import interruptible
from matmix.ranges import shown
from matmix.surgery.alignment import Pair, by_matrices, by_outputs, divergence, listening, logits_of, pairs, stands_in
from matmix.surgery.recipe import DistillRecipe, Stage
from matmix.surgery.refuse import refuse_wrappers
from matmix.surgery.select import Where
from matmix.training import after_step, auxiliary_losses

Batches = Iterable[Any] | Callable[[int], Any]
Loss = Callable[[Any, Any, Any], Tensor]  # of the student's output, the teacher's, and the batch
Progress = Callable[[dict[str, Any]], None]
KIND, CHECKPOINT, HISTORY = "distillation", "distill.pt", "history.jsonl"


@dataclass
class Distilled:
    """What ``distill`` returns."""

    student: nn.Module
    sites: list[str]
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Stage -> pairs of a step, counted from 1 within it, and the loss of that step."""

    def __str__(self) -> str:
        lines = [f"distilled at {', '.join(self.sites)}"]
        for name, entries in self.history.items():
            if entries:
                lines.append(f"{name}: {entries[0][1]:.4g} to {entries[-1][1]:.4g} in {entries[-1][0]} steps")
        return "\n".join(lines)


@checking_arguments(leave=("where", "recipe", "batches"))
def distill(
    teacher: nn.Module,
    student: nn.Module,
    batches: Batches,
    recipe: DistillRecipe | None = None,
    *,
    where: Where = "all",
    inputs: Callable[[Any], Any] | None = None,
    loss: Loss | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Teach the student what the teacher does: its matrices, what its sites give, what it predicts.

    ::

        student = copy.deepcopy(teacher)
        surgery.replace(student, "hydra(expand=1)", where="attn")
        surgery.distill(teacher, student, lambda step: loader_at(step), DistillRecipe(outputs=Stage(500, lr=2e-3)))

    The stages are those of MOHAWK (arXiv 2408.10189). In the first two each replaced site gets the teacher's inputs,
    and only the replaced modules learn; in the third the whole student runs. Distances are relative ones (to the
    teacher's norm), so that sites count alike; MOHAWK's are not. The teacher runs in eval mode and is not changed; the
    student is trained in place, and has its mode and its ``requires_grad`` back afterwards.

    Args:
        teacher, student: with sites of the same names (``surgery.find``); neither compiled nor distributed.
        batches: a function of the step, counted from 0 over all stages; or an iterable, which begins anew when it is
            used up. A run that is resumed asks for the same steps, or passes over those it had: give a function
            where an order is drawn.
        recipe: steps, learning rates and so on of each stage.
        where: which of the replaced sites count in the first two stages, in the words of ``surgery.select``.
        inputs: from a batch to the model's input: a tensor, a tuple of arguments or a dict of them by name; where
            absent the batch itself is it, and of a batch that is labelled too, ``lambda batch: batch[0]``.
        loss: of the third stage, ``loss(student_output, teacher_output, batch)``, such as the task's own; where absent
            the divergence of the predictions over the last axis of the logits.
        folder: for ``history.jsonl`` and a checkpoint, from which a call with the same recipe goes on: bit for bit on
            a CPU. Ctrl-C then waits for the step and leaves one.
        progress: called after each step with a dict of ``step``, ``steps`` (of all stages), the loss by the name of its
            stage, ``samples_per_second`` and ``seconds_left``, as a trainer does
            (``matmix.experiments.progress.watch`` draws a bar of it).

    Returns:
        The losses by stage.

    Raises:
        ValueError: for models that have no replaced site in common or that share weights, a stage that could train
            nothing, a folder of another recipe.
        FloatingPointError: for a loss that is not finite, with its stage and step; the checkpoint before it stays.
    """
    recipe = DistillRecipe() if recipe is None else recipe
    if not isinstance(recipe, DistillRecipe):
        raise TypeError(f"recipe must be a DistillRecipe, got {shown(recipe)}")
    for model in (teacher, student):
        refuse_wrappers(model)
    _apart(teacher, student)
    sites = pairs(teacher, student, where)
    run = _Run(teacher, student, sites, recipe, inputs or (lambda batch: batch), loss, progress)
    if folder is not None:
        run.open(Path(folder))
    with ExitStack() as stack:
        asked = stack.enter_context(interruptible())
        stack.enter_context(evaluating(teacher))
        stack.enter_context(_training(student))
        stack.enter_context(holding(stands_in(student, [pair.student for pair in sites])))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        feed = Feed(batches, run.done)
        for name, stage in recipe.stages():
            run.stage(name, stage, feed, asked)
    return Distilled(student, [pair.name for pair in sites], run.history)


class Feed:
    """Batches by their step; it passes over those of the steps that are done."""

    def __init__(self, batches: Batches, done: int) -> None:
        self._at = batches if callable(batches) else None
        self._all: Any = batches
        self._passing = done
        if self._at is None and not isinstance(batches, Iterable):
            raise TypeError(f"batches must be an iterable or a function of the step, got {type(batches).__name__}")
        if isinstance(batches, Sequence) and not batches:
            raise ValueError("batches must not be empty")
        self._next: Iterator[Any] | None = None

    def __call__(self, step: int) -> Any:
        if self._at is not None:
            return self._at(step)
        if isinstance(self._all, Sequence):
            return self._all[step % len(self._all)]
        while self._passing:
            self._passing -= 1
            self._following()
        return self._following()

    def _following(self) -> Any:
        if self._next is None:
            self._next = iter(self._all)
        for batch in self._next:
            return batch
        again = iter(self._all)
        if again is self._next:
            raise ValueError("batches is an iterator and is used up: give a list, a loader or a function of the step")
        self._next = again
        for batch in self._next:
            return batch
        raise ValueError("batches must not be empty")


class _Run:
    """One distillation: where it stands, and how a step is made."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        sites: list[Pair],
        recipe: DistillRecipe,
        inputs: Callable[[Any], Any],
        loss: Loss | None,
        progress: Progress | None,
    ) -> None:
        self.teacher, self.student, self.sites, self.recipe = teacher, student, sites, recipe
        self.inputs, self.loss, self.progress = inputs, loss, progress
        self.history: dict[str, list[tuple[int, float]]] = {name: [] for name, _ in recipe.stages()}
        self.done = 0  # steps of all stages
        self.stands: list[dict[str, Any]] = []  # the checksum of the checkpoint in the folder
        self.saved: dict[str, Any] | None = None  # the optimizer's state of a checkpoint within a stage
        self.folder: Path | None = None
        self.began, self.samples, self.first = time.perf_counter(), 0, 0

    # ------------------------------------------------------------------ a stage and a step

    def stage(self, name: str, stage: Stage, feed: Feed, asked: Callable[[], bool]) -> None:
        before = 0
        for other, one in self.recipe.stages():
            if other == name:
                break
            before += one.steps
        if self.done >= before + stage.steps:
            return
        trained = self._trained(name, stage)
        optimizer = torch.optim.AdamW(_groups(self.student, trained, stage), lr=stage.lr, betas=stage.betas)
        if self.saved is not None:
            optimizer.load_state_dict(self.saved)
            self.saved = None
        with frozen(self.student, trained):
            for step in range(self.done - before, stage.steps):
                for group in optimizer.param_groups:
                    group["lr"] = stage.lr_at(step, group.get("initial_lr"))
                with fork_seed(self.recipe.seed, f"{name}.{step}"):
                    batch = feed(self.done)
                    loss, samples = self._loss(name, batch)
                    if not loss.requires_grad:
                        raise ValueError(
                            f"stage {name!r}: {_NOTHING[name]}, at {self._names()}: leave it out ({name}=None)"
                        )
                    value = loss.item()
                    if value != value or value in (float("inf"), float("-inf")):
                        raise FloatingPointError(f"stage {name!r}, step {step + 1}: the loss is {value}")
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                if stage.clip is not None:
                    nn.utils.clip_grad_norm_(trained, stage.clip)
                optimizer.step()
                after_step(self.student)
                self.done += 1
                last = step + 1 == stage.steps
                if step == 0 or last or (step + 1) % self.recipe.log_every == 0:
                    self.history[name].append((step + 1, value))
                stop = asked()
                if last or stop or self.done % self.recipe.checkpoint_every == 0:
                    self._save(None if last else optimizer.state_dict())
                self._tell(name, value, samples)
                if stop:
                    where = "" if self.folder is None else f"; the same call with {self.folder} goes on from there"
                    raise KeyboardInterrupt(f"stopped after step {step + 1} of stage {name!r}{where}")
            optimizer.zero_grad(set_to_none=True)

    def _loss(self, name: str, batch: Any) -> tuple[Tensor, int]:
        """The loss of a batch, and the number of its samples."""
        given = self.inputs(batch)
        args, kwargs = arguments_of(given)
        samples = next((t.size(0) for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), 0)
        if name == "predictions":
            with torch.no_grad():
                goal = called(self.teacher, given, "batches")
            with auxiliary_losses(self.student) as auxiliary:
                made = self.student(*args, **kwargs)
                if self.loss is not None:
                    told = self.loss(made, goal, batch)
                    if not isinstance(told, Tensor) or told.dim():
                        raise ValueError(f"loss must give a tensor of one number, got {shown(told)}")
                    return told + auxiliary(), samples
                return divergence(logits_of(made), logits_of(goal), self.recipe.temperature) + auxiliary(), samples
        with torch.no_grad(), listening(self.teacher, self.sites) as heard:
            called(self.teacher, given, "batches")
        silent = {pair.name for pair in self.sites} - {one.pair.name for one in heard}
        if silent:
            raise ValueError(f"stage {name!r}: the teacher did not call {', '.join(sorted(silent))}")
        if name == "matrices":
            losses = by_matrices(heard)
            return torch.stack(losses).mean(), samples
        with auxiliary_losses(self.student) as auxiliary:
            losses = by_outputs(heard)
            return torch.stack(losses).mean() + auxiliary(), samples

    def _trained(self, name: str, stage: Stage) -> list[nn.Parameter]:
        parts = [self.student] if stage.train == "all" else [pair.student.module for pair in self.sites]
        every = {id(p): p for part in parts for p in part.parameters() if p.requires_grad}
        if not every:
            raise ValueError(f"stage {name!r}: train={stage.train!r} has no parameter that takes a gradient")
        return list(every.values())

    def _names(self) -> str:
        return ", ".join(pair.name for pair in self.sites)

    def _tell(self, name: str, value: float, samples: int) -> None:
        if self.progress is None:
            return
        self.samples += samples
        spent = time.perf_counter() - self.began
        left = spent / (self.done - self.first) * (self.recipe.steps - self.done)
        self.progress(
            {
                "step": self.done,
                "steps": self.recipe.steps,
                name: value,
                "samples_per_second": self.samples / spent,
                "seconds_left": left,
            }
        )

    # ------------------------------------------------------------------ the folder

    def open(self, folder: Path) -> None:
        """Take up what the folder holds, or make it.

        Raises:
            ValueError: for the folder of another recipe, or of other sites, or with files that are not ours, or a
                checkpoint that is damaged.
        """
        self.folder = folder
        claim(folder, KIND, _is_distillation, "folder")
        if not (folder / CHECKPOINT).is_file():
            return
        self.stands = [sums(folder, [CHECKPOINT])[CHECKPOINT]]
        noted = (check_ours(folder, KIND, name="folder") or {}).get("checkpoints", self.stands)
        if self.stands[0] not in noted:
            raise Damaged(folder / CHECKPOINT, "a checkpoint as it was saved", "it does not have its checksum")
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        mine, theirs = _flat(self.recipe.to_json()), _flat(state["recipe"])
        for key in dict.fromkeys([*mine, *theirs]):
            if key not in ("log_every", "checkpoint_every") and mine.get(key) != theirs.get(key):
                raise ValueError(
                    f"{folder} holds a distillation with {key}={theirs.get(key)!r}, this one has {mine.get(key)!r}: "
                    f"take another folder"
                )
        names = [pair.name for pair in self.sites]
        if state["sites"] != names:
            raise ValueError(f"{folder} holds a distillation at {', '.join(state['sites'])}, this one is at {names}")
        self.student.load_state_dict(state["student"])
        self.done = self.first = state["done"]
        self.saved = state["optimizer"]
        self.history = {name: [(int(step), value) for step, value in e] for name, e in state["history"].items()}

    def _save(self, optimizer: dict[str, Any] | None) -> None:
        """The checkpoint and the history, each all or nothing. ``optimizer`` is None at the end of a stage."""
        if self.folder is None:
            return
        state = {
            "recipe": self.recipe.to_json(),
            "sites": [pair.name for pair in self.sites],
            "student": self.student.state_dict(),
            "optimizer": optimizer,
            "done": self.done,
            "history": {name: [list(entry) for entry in entries] for name, entries in self.history.items()},
        }
        draft = self.folder / f".{CHECKPOINT}"
        with open(draft, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        fresh = sums(self.folder, [draft.name])[draft.name]
        mark(self.folder, KIND, checkpoints=[*self.stands, fresh])  # one of them holds wherever this process is killed
        os.replace(draft, self.folder / CHECKPOINT)
        self.stands = [fresh]
        lines = [
            json.dumps({"stage": name, "step": step, "loss": value})
            for name, entries in self.history.items()
            for step, value in entries
        ]
        draft = self.folder / f".{HISTORY}"
        draft.write_text("".join(f"{line}\n" for line in lines))
        os.replace(draft, self.folder / HISTORY)


def _is_distillation(folder: Path) -> bool:
    """Whether nothing stands in a folder without a marker but what a distillation writes, drafts included."""
    return names_in(folder) <= {name for file in (CHECKPOINT, HISTORY) for name in (file, f".{file}")}


_NOTHING = {
    "matrices": "no parameter that is trained moves the student's matrices",
    "outputs": "no parameter that is trained moves what the student's sites give",
    "predictions": "no parameter that is trained moves the loss",
}


def _apart(teacher: nn.Module, student: nn.Module) -> None:
    if teacher is student:
        raise ValueError(
            "teacher and student must be two models, got one: copy.deepcopy(teacher) before the replacement"
        )
    held = {id(p) for p in teacher.parameters()}
    shared = [name for name, p in student.named_parameters() if id(p) in held and p.requires_grad]
    if shared:
        raise ValueError(
            f"the student shares weights with the teacher, such as {shared[0]}: copy.deepcopy(teacher) first"
        )


def _groups(student: nn.Module, trained: list[nn.Parameter], stage: Stage) -> list[dict[str, Any]]:
    """Parameters with weight decay, without, and with settings of their own, in the order of the model."""
    chosen, spared, own = {id(p) for p in trained}, no_weight_decay(student), optim_settings(student)
    named = [(name, p) for name, p in student.named_parameters() if id(p) in chosen]
    return grouped(
        ((p, p.dim() >= 2 and name not in spared, own.get(name, {})) for name, p in named), stage.weight_decay
    )


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in training mode; then every part in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
