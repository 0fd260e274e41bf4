"""Named studies of sequence mixers: their settings exist, their controls are what they are called."""

import pytest
import torch

from matmix.cost import state_bytes
from matmix.experiments.registry import list_tasks
from matmix.experiments.study import find_study, list_studies
from matmix.mixers import create_mixer
from sequence.regimes import REGIMES
from sequence.studies.controls import WINDOWS, controls, window
from sequence.studies.equal_state import SIZED, equal_state
from sequence.studies.lra import lra
from sequence.studies.mqar import mqar


@pytest.mark.parametrize("name", list_studies())
def test_settings_of_named_studies_exist(name: str) -> None:
    study = find_study(name)()
    assert {task.task for task in study.tasks} <= set(list_tasks())
    assert study.runs() and study.note


def test_states_of_equally_many_bytes() -> None:
    """Of every mixer that can be sized, within 10 %; what cannot is refused, and stays as it is in the study."""
    for dim, size in ((64, 16_384), (128, 65_536)):
        for name in SIZED:
            spec = equal_state(name, size, dim)
            assert state_bytes(create_mixer(spec, dim), torch.zeros(1, 3, dim)) == pytest.approx(size, rel=0.1), spec
    assert equal_state("retention(heads=4, out_gate=False)", 4096, 64).startswith("retention(heads=4, out_gate=False, ")
    for spec, size, message in (("attention(causal=True)", 4096, "state of a set size"), ("s6", 10, "must be near")):
        with pytest.raises(ValueError, match=message):
            equal_state(spec, size, 64)
    study = mqar(dims=(64,), lengths=(64,), rates=(1e-3,), states=(4096, 16_384))
    assert [task.label.rpartition(" ")[2] for task in study.tasks] == ["S=4096", "S=16384"]
    specs = {run.config.mixer for run in study.runs() if run.mixer == "ssd"}
    assert specs == {equal_state("ssd", size, 64) for size in (4096, 16_384)}
    assert {run.config.mixer for run in study.runs() if run.mixer.startswith("attention")} == {"attention(causal=True)"}


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_is_a_study_with_its_own_arms(regime: str) -> None:
    study = lra(regime)
    runs = study.runs()
    assert study.tasks and runs
    for task in study.tasks:
        found = REGIMES[regime](task.label)
        arms = {arm.name: arm for arm in task.rows(study.mixers)}
        assert arms["attention"].spec in (found.attention, found.mixer)
        assert {"identity", "bag"} <= set(arms) and arms["bag"].options["position"] == "none"
    assert all(run.config.options["regime"] == regime for run in runs if run.mixer != "bag")
    with pytest.raises(ValueError, match=r"regime is unknown.*nystrom"):
        lra("nystroem")


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_a_window_hears_as_many_tokens_as_it_says(depth: int) -> None:
    """Counted: what of the input has any influence on the middle output of so many layers, in any of 32 examples, since
    one activation or another is at 0 on the only way from the ends."""
    torch.manual_seed(0)
    for tokens in WINDOWS:
        arm = window(tokens, depth)
        assert abs(arm.window - tokens) <= depth
        layers = [create_mixer(arm.spec, dim=8).double() for _ in range(depth)]
        x = torch.randn(32, 2 * tokens + 3, 8, dtype=torch.float64, requires_grad=True)
        y = x
        for layer in layers:
            y = y + layer(y)
        (gradient,) = torch.autograd.grad(y[:, tokens].sum(), x)
        assert int((gradient.abs().sum((0, 2)) > 0).sum()) == arm.window
    assert [arm.name for arm in controls(depth, 100)] == ["identity", "bag", "window-16", "window-64"]
