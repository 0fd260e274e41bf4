"""Recipe.compile: runs through torch.compile, to the same end as eager ones."""

from __future__ import annotations

import dataclasses
import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from matmix import create_mixer
from matmix.compiled import Compiled, compiling
from matmix.experiments.run import RunConfig, RunError, execute
from matmix.experiments.task import Recipe
from matmix.ops.sizes import LengthError
from sequence.tasks.digits import Digits
from tests.experiments.killing import outputs, run
from tests.experiments.steps import VQ

SMALL = {"patch": 4, "dim": 8, "depth": 1}
# With the usual eps, Adam makes a step of full length of rounding where a gradient is 0.
QUICK = {"steps": 4, "batch_size": 32, "log_every": 2, "eval_every": 2, "eval_batch_size": 179, "eps": 0.01}
OPTIONS = {
    "a loss of its own": {},
    "everything": {"accumulate": 2, "ema": 0.5, "checkpointing": True, "precision": "bf16"},
}


def graphs() -> int:
    """Programs that dynamo has made since its last reset."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.fixture
def without_inductor(monkeypatch, request):
    """The compiler's front and autograd's part of it; its kernels take half a minute."""
    whole, backend = torch.compile, getattr(request, "param", "aot_eager")
    monkeypatch.setattr(torch, "compile", lambda *args, **options: whole(*args, backend=backend, **options))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_end(folder: Path, config: RunConfig) -> None:
    """A compiled run, and an eager one of the same settings."""
    results = {}
    for compiled in (False, True):
        one = dataclasses.replace(config, recipe={**config.recipe, "compile": compiled})
        results[compiled] = execute(one, folder / str(compiled))
        assert results[compiled].status == "finished", results[compiled].error
    assert any("torch.compile" in note for note in results[True].notes) and not results[False].notes
    assert results[True].parameters == results[False].parameters and results[True].macs == results[False].macs
    tolerance = 1e-3 if config.recipe["precision"] == "no" else 2e-2
    assert results[True].test == pytest.approx(results[False].test, rel=tolerance)
    for name in ("final", "best"):
        eager, found = (load_file(folder / way / f"{name}.safetensors") for way in ("False", "True"))
        assert eager.keys() == found.keys()
        for key, value in eager.items():
            torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "name"),
    [("attention(head_dim=4)", "everything"), (VQ, "a loss of its own")],
)
def test_a_compiled_run_ends_as_an_eager_one(tmp_path, without_inductor, mixer, name):
    same_end(tmp_path, RunConfig("digits", mixer, 0, {**SMALL, "norm": "batch"}, {**QUICK, **OPTIONS[name]}))
    # Training, validation, and its last batch of another size: none runs outside of a program.
    assert graphs() >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mixer", ["attention(head_dim=4)", "global_filter", "hydra", VQ])
def test_a_run_through_inductor_ends_as_an_eager_one(tmp_path, mixer, name):
    if mixer == VQ and name == "everything":
        pytest.skip("a block that notes what its loss is made of is not computed again in a program")
    same_end(tmp_path, RunConfig("digits", mixer, 0, {**SMALL, "norm": "batch"}, {**QUICK, **OPTIONS[name]}))


class Mean(nn.Module):
    """Rows of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.mixer, self.out = (
            nn.Embedding(5, 8),
            create_mixer("attention(head_dim=4)", 8, (16,)),
            nn.Linear(8, 3),
        )

    def forward(self, x, mask=None):
        return self.out(self.mixer(self.inside(x), mask=mask).mean(1))


@pytest.mark.parametrize("without_inductor", ["eager"], indirect=True)
@pytest.mark.parametrize("mixer", ["attention(head_dim=4)", pytest.param("hydra", marks=pytest.mark.slow)])
def test_rows_of_any_length_are_two_programs(without_inductor, mixer):
    model = Mean()
    model.mixer = create_mixer(mixer, 8, (16,))
    shapes = {}
    for training in (True, False):
        before = graphs()
        program = Compiled(model.train(training), shapes)
        for length in (9, *range(3, 13)):
            x = torch.randint(5, (4, length))
            mask = torch.arange(length) < torch.tensor([[length], [2], [length], [1]])
            with torch.set_grad_enabled(training):
                torch.testing.assert_close(program(x, mask=mask), model(x, mask=mask), rtol=1e-4, atol=1e-5)
        assert graphs() - before == 2
    assert shapes == {"train [2, 2]": [[4, 9], [4, 9]], "eval [2, 2]": [[4, 9], [4, 9]]}


@pytest.mark.parametrize("without_inductor", ["eager"], indirect=True)
def test_the_program_of_a_batch_does_not_hang_on_those_before(without_inductor):
    """What a resumed run meets first is what another one meets last."""
    model, shapes = Mean().eval(), {"eval [2]": [[4, 9]]}
    for lengths in ((5, 9, 7), (9, 7, 5)):
        torch.compiler.reset()
        program, made = Compiled(model, shapes), []
        for length in lengths:
            before = graphs()
            program(torch.randint(5, (4, length)))
            made.append(graphs() - before)
        assert made == [1, 1, 0]


def test_a_program_of_open_sizes_does_not_sort_its_strides(monkeypatch):
    """Inductor could not (pytorch/pytorch#172204); the slow law `compiles_lengths_by_inductor` holds what it makes."""
    from torch._inductor import config

    whole, seen = torch.compile, []

    def backend(graph, inputs):
        seen.append(config.strict_output_strides)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *args, **options: whole(*args, backend=backend, **options))
    torch.compiler.reset()
    program = Compiled(nn.Linear(3, 3), {})
    for length in (2, 4, 5, 2):
        program(torch.randn(1, length, 3))
    assert seen == [False, True] and not config.strict_output_strides
    torch.compiler.reset()


class Branches(nn.Linear):
    """Asks for a number."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else x


def test_what_cannot_be_compiled_is_told_by_the_name_of_the_setting(without_inductor, tmp_path):
    with pytest.raises(ValueError, match=r"Recipe\.compile=True: Branches cannot be compiled \(UserError: .+\)"):
        Compiled(Branches(2, 2), {})(torch.ones(1, 2))
    config = RunConfig("digits", VQ, 0, SMALL, {**QUICK, "compile": True, "checkpointing": True})
    assert "Recipe.compile=True: Encoder cannot be compiled" in execute(config, tmp_path).error


@pytest.mark.parametrize("without_inductor", ["eager"], indirect=True)
def test_what_a_model_refuses_is_its_own_error(without_inductor):
    fixed = Compiled(create_mixer("global_filter", 8, (4, 4)), {})
    fixed(torch.randn(2, 16, 8))
    with pytest.raises(LengthError, match="resize_"):
        fixed(torch.randn(2, 12, 8))


def test_a_model_does_not_run_again_where_its_program_failed(without_inductor):
    """Out of memory, say: a second run would draw and move buffers once more, and last."""
    model, ran = Mean(), []
    program = Compiled(model, {})
    model.register_forward_pre_hook(lambda *_: ran.append(1))

    def fails(*_):
        raise RuntimeError("out of memory")

    program._program = fails
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        program(torch.zeros(1, 3, dtype=torch.long))
    assert not ran


def test_a_program_of_the_backward_pass_that_cannot_be_made():
    from torch._dynamo.exc import BackendCompilerFailed

    told = r"Recipe\.compile=True: Mean cannot be compiled \(BackendCompilerFailed"
    with pytest.raises(ValueError, match=told), compiling(Mean()):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler of C++"), None)
    with pytest.raises(KeyError), compiling(Mean()):
        raise KeyError("of the data")


def test_runs_made_before_there_was_the_setting_are_the_same_runs(tmp_path):
    plain, compiled = (RunConfig("digits", "identity", 0, SMALL, {**QUICK, "compile": way}) for way in (False, True))
    assert "compile" not in plain.to_json()["recipe"] and compiled.to_json()["recipe"]["compile"] is True
    assert plain.key != compiled.key and plain.key == RunConfig("digits", "identity", 0, SMALL, QUICK).key
    for one in (plain, compiled):
        assert RunConfig.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert "--recipe.compile" in compiled.command(tmp_path) and "compile" not in plain.command(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(plain.to_json()))
    with pytest.raises(RunError, match=r"recipe\.compile is False there and True here"):
        execute(compiled, tmp_path)
    with pytest.raises(ValueError, match=r"Recipe\.compile must be True or False, got 'yes'"):
        Recipe(compile="yes")


@dataclasses.dataclass(frozen=True)
class Compiles(Digits):
    """A task that asks for it by default."""

    def recipe(self):
        return dataclasses.replace(super().recipe(), compile=True)


def test_a_task_that_compiles_by_default_does_not_change_runs_that_did_not(monkeypatch):
    monkeypatch.setattr("matmix.experiments.config.task_class", lambda name: Compiles)
    eager = RunConfig("digits", "identity", 0, SMALL, {"compile": False})
    assert RunConfig.from_json(eager.to_json()) == eager and not eager.make_recipe().compile
    assert RunConfig("digits", "identity", 0, SMALL).make_recipe().compile


@pytest.mark.slow
def test_a_killed_run_ends_the_same(tmp_path):
    """Rows in length buckets, through Inductor: killed between and at once, it goes on through the same programs."""
    config = {
        "task": "listops", "mixer": "attention(head_dim=4, rotary=True)", "seed": 1,
        "options": {
            "length": 32, "min_length": 4, "max_length": 30, "max_depth": 3, "max_args": 3, "train_examples": 64,
            "val_examples": 16, "test_examples": 8, "dim": 8, "depth": 1, "dropout": 0.1, "buckets": True,
            "cache": str(tmp_path / "cache"),
        },
        "recipe": {
            "steps": 20, "batch_size": 8, "log_every": 4, "eval_every": 10, "checkpoint_every": 3, "compile": True,
            "ema": 0.5,
        },
    }  # fmt: skip
    slowly = partial(run, config=config, patience=900)  # a compiler on a busy machine
    assert slowly(tmp_path / "whole") == 0
    for die in (("step", 12), ("step", 1)):
        assert slowly(tmp_path / "again", die=die) == -signal.SIGKILL
    assert slowly(tmp_path / "again") == 0
    assert outputs(tmp_path / "again") == outputs(tmp_path / "whole")
