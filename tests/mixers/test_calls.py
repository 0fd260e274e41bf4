"""What calls leave behind on a mixer, over all recurrent ones; and that methods of a mixer's own are seen by those who
look at forwards."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matmix import list_mixers, mixer_info
from matmix.inspect import record
from matmix.mixers import Mixer
from matmix.testing import MixerCase, factory_of

NAMES = [n for n in list_mixers() if mixer_info(n).cls.__module__.startswith("matmix.")]


def _mixer(name: str) -> Mixer:
    info = mixer_info(name)
    factory, dim = factory_of(info)
    grid = (12,) if 1 in info.cls.traits.dims else (3, 4)
    return MixerCase(factory, dim, grid, 2).build(torch.float32).eval()


RECURRENT = [n for n in NAMES if _mixer(n).traits.recurrent]


class Stepping(nn.Module):
    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.mixer.step(x, self.mixer.init_state(2))
        return out + self.mixer.step(x, state)[0]


def _stepped(mixer: Mixer) -> Mixer:
    x = torch.randn(2, mixer.dim, dtype=next(mixer.parameters(), torch.zeros(())).dtype)
    Stepping(mixer)(x)
    return mixer


@pytest.mark.parametrize("name", RECURRENT)
def test_steps_leave_nothing_on_a_mixer(name: str) -> None:
    mixer = _mixer(name)
    before = set(vars(mixer))
    _stepped(mixer)
    assert set(vars(mixer)) == before


@pytest.mark.parametrize("name", RECURRENT)
def test_states_are_checked_as_what_they_are_after_a_mixer_has_changed(name: str) -> None:
    mixer = _stepped(_mixer(name))
    _stepped(copy.deepcopy(mixer))
    file = io.BytesIO()
    torch.save(mixer, file)
    file.seek(0)
    _stepped(torch.load(file, weights_only=False))
    mixer.load_state_dict(_mixer(name).state_dict())
    _stepped(mixer)
    mixer.resize_((7,))
    _stepped(mixer)
    _stepped(mixer.double())


def test_a_state_that_hangs_on_the_grid_is_checked_after_resize() -> None:
    class Window(Mixer):
        traits = mixer_info("identity").cls.traits

        def init_state(self, batch: int) -> Tensor:
            assert self.grid is not None
            return torch.zeros(batch, *self.grid)

        def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return x, state

    mixer = Window(4, (3,))
    mixer.step(torch.randn(2, 4), mixer.init_state(2))
    mixer.resize_((5,))
    mixer.step(torch.randn(2, 4), mixer.init_state(2))
    with pytest.raises(ValueError, match="state must be like that of init_state"):
        mixer.step(torch.randn(2, 4), torch.zeros(2, 3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_steps_are_traced_by_jit() -> None:
    """As attributes that come with a step are not; see the first test for the other mixers."""
    model, x = Stepping(_mixer("gla")), torch.randn(2, _mixer("gla").dim)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, (x,))(x), model(x))


OWN: dict[str, Any] = {"index": torch.zeros(2, 12, dtype=torch.int64), "special": None, "mask": None}
"""What methods take besides tokens: add what a new one takes."""


@pytest.mark.parametrize("name", NAMES)
def test_methods_of_its_own_that_mix_tokens_go_through_mix(name: str) -> None:
    mixer = _mixer(name)
    x = torch.randn(2, 12, mixer.dim)
    for word, method in inspect.getmembers(mixer, inspect.ismethod):
        parameters = inspect.signature(method).parameters
        if word.startswith("_") or hasattr(Mixer, word) or "x" not in parameters:
            continue
        with torch.no_grad(), record(mixer) as found:
            out = method(x, **{one: OWN[one] for one in parameters if one != "x"})
        assert found or out.shape != x.shape, f"{word} mixes tokens and is not recorded"
