"""What every module that we build promises to those who build, move, load and save it."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matmix import fork_seed, no_weight_decay
from matmix.testing import close
from matmix.testing.building_laws import default

Build = Callable[[], nn.Module]


def check_stored(model: nn.Module) -> None:
    """What a file gets is contiguous and in memory of its own; parameters carry nothing besides numbers."""
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        assert value.is_contiguous(), f"{name} {tuple(value.shape)} has strides {value.stride()}"
        assert value.untyped_storage()._cdata not in seen, f"{name} shares memory"
        assert not vars(value), f"{name} carries {vars(value)}"
        seen.add(value.untyped_storage()._cdata)


def check_building(build: Build, x: Tensor, folder: Path) -> None:
    """However a module is built without memory, copied, saved and loaded, it is the plain one, and weight decay spares
    the same parameters."""
    plain = seeded(build)
    state, expected, marked = plain.state_dict(), plain(x).detach(), no_weight_decay(plain)
    check_stored(plain)
    file = folder / "model.safetensors"
    save_file(state, file)

    def same(model: nn.Module, how: str) -> None:
        # Files put tensors at any multiple of 8 bytes, and some kernels round by where their operands lie.
        close(model.eval()(x), expected, how)
        assert no_weight_decay(model) == marked, f"{how}: weight decay spares other parameters"

    for how, made in empty(build):
        if how == "meta device":
            given = copy.deepcopy(made).to_empty(device="cpu")
            with torch.no_grad():
                for value in (*given.parameters(), *given.buffers()):
                    value.fill_(float("nan") if value.is_floating_point() else 0)
            given.load_state_dict(load_file(file))
            same(given, f"{how}, to_empty")
        if how == "empty weights":
            with little_garbage():
                loaded = load_checkpoint_and_dispatch(copy.deepcopy(made), str(file), {"": "cpu"})
            same(loaded, f"{how}, dispatch")
        made.load_state_dict(load_file(file), assign=True)
        same(made, f"{how}, assign")
    other = seeded(build, 1)
    other.load_state_dict(load_file(file))
    same(other, "from a file")
    same(copy.deepcopy(plain), "deepcopy")
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    same(torch.load(buffer, weights_only=False), "pickle")


@contextmanager
def little_garbage() -> Iterator[None]:
    """accelerate collects garbage with every file that it loads, and to look through all that the tests have imported
    takes 0.3 s: what is there before is left out."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seeded(build: Build, seed: int = 0) -> nn.Module:
    """The module in eval mode, off its initial values: an initialisation may hide what stands behind it."""
    with fork_seed(seed, "building"), torch.no_grad():
        model = build().eval()
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def empty(build: Build) -> Iterator[tuple[str, nn.Module]]:
    """The module without memory, made so in each of the ways there are."""
    with torch.device("meta"):
        made = build()
    assert all(value.is_meta for value in (*made.parameters(), *made.buffers()))
    yield "meta device", made
    torch.set_default_device("meta")
    try:
        made = build()
    finally:
        torch.set_default_device(None)
    assert all(value.is_meta for value in (*made.parameters(), *made.buffers()))
    yield "default device", made
    for buffers in (False, True):
        with init_empty_weights(include_buffers=buffers):
            made = build()
        assert all(value.is_meta for value in made.parameters())
        yield "empty weights" if not buffers else "empty weights and buffers", made


def check_dtypes(build: Build, x: Tensor) -> None:
    """Built under a default dtype, all that floats has it; outputs have it too, and do not hang on it afterwards."""
    for dtype in (torch.float64, torch.bfloat16):
        with default(dtype), fork_seed(0, "building"):
            model = build().eval()
            wrong = [n for n, v in model.state_dict().items() if v.is_floating_point() and v.dtype != dtype]
            assert not wrong, f"not {dtype}: {wrong}"
            out = model(x.to(dtype))
        assert out.dtype == dtype and out.isfinite().all()
        assert torch.equal(model(x.to(dtype)), out)
