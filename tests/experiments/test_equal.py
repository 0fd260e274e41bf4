"""Arms at equal budgets: one number of the model is set for each arm, and nothing else."""

from dataclasses import asdict

import pytest

from matmix.experiments.cli import main
from matmix.experiments.config import RunConfig
from matmix.experiments.costs import costs
from matmix.experiments.equal import CLOSE, equal_arms
from matmix.experiments.study import Study, StudyArm, StudyTask

FORM = "depth=1, num_heads=2, embed_dim=16, patch_size=8"
TASKS = {
    "encoder": (
        StudyTask("digits", {"patch": 4, "dim": 16, "depth": 1}, arms=(StudyArm("bag", "identity"),)),
        "mlp_ratio=0.0625",
    ),
    "timm": (
        StudyTask(
            "cifar10", {"architecture": f"timm:vit_tiny_patch16_224({FORM})", "data": "synthetic", "img_size": 32},
            surgery={"level": "module"},
        ),
        "mlp_ratio=0.0625",
    ),
}  # fmt: skip


def budgets(study: Study, budget: str) -> dict[str, int]:
    (task,) = study.tasks
    found = {}
    for arm in task.rows(study.mixers):
        config = RunConfig(task.task, arm.spec, 0, {**task.options, **arm.options}, surgery=task.surgery)
        made = config.make_task()
        found[arm.name] = costs(made, config.make_model(made))[budget]
    return found


@pytest.mark.parametrize("budget", ["parameters", "macs"])
@pytest.mark.parametrize("kind", TASKS)
def test_all_arms_come_to_the_budget_of_the_reference(kind: str, budget: str) -> None:
    task, by = TASKS[kind]
    reference = "default" if task.surgery else "attention"
    mixers = (reference, "identity", "pooling", "dense")
    study = Study("alike", (task,), mixers, reference=reference)
    said: list[str] = []
    alike = equal_arms(study, budget, by, say=said.append)
    before, after = budgets(study, budget), budgets(alike, budget)
    for mixer in mixers:
        assert abs(after[mixer] - before[reference]) <= CLOSE * before[reference]
        assert any(f"{mixer} has {after[mixer]:,}" in line for line in said)
    assert abs(before["identity"] - before[reference]) > CLOSE * before[reference]
    assert after[reference] == before[reference] and after.get("bag") == before.get("bag")
    for arm in alike.tasks[0].arms:
        assert len(arm.options) == (0 if arm.name == "bag" else 1)
    assert ("the parameters of" if budget == "parameters" else "the multiply-accumulates of") in alike.note
    assert Study.from_json(asdict(alike)) == alike


@pytest.mark.parametrize(
    ("mixers", "by", "said"),
    [(("attention", "identity"), "mlp_ratio=0", "by must be the name of a number .* 'mlp_ratio=0'"),
     (("attention", "identity"), "2", "by must be the name of a number .* '2'"),
     (("attention", "identity"), "mlp_width", "by must be a setting of digits, got 'mlp_width'"),
     (("attention", "identity"), "vocabulary", "by must be a setting of digits, got 'vocabulary'"),
     (("attention", "identity"), "dim=64", "its nearest to"),
     (("identity", "pooling"), "dim", "'attention' is no arm of digits")],
)  # fmt: skip
def test_what_cannot_be_made_equal_is_said(mixers: tuple[str, ...], by: str, said: str) -> None:
    study = Study("alike", (TASKS["encoder"][0],), mixers, reference="attention")
    with pytest.raises(ValueError, match=said):
        equal_arms(study, "parameters", by)


def test_a_number_that_nothing_grows_with_is_said() -> None:
    study = Study("alike", (StudyTask("recall", {"dim": 8, "depth": 1}),), ("attention", "identity"))
    with pytest.raises(ValueError, match="with eval_examples=2, and no more with a larger one"):
        equal_arms(study, "parameters", "eval_examples")


def test_by_without_equal_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["study", "digits", "--mixers", "identity", "--by", "dim"])
    assert "say --equal parameters or --equal macs" in capsys.readouterr().err
