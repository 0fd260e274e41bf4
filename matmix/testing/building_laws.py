"""The laws of building and moving a mixer: without memory, under other defaults, by copies and files."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from matmix.mixers.base import Mixer
from matmix.ops.marks import no_weight_decay
from matmix.testing.cases import MixerCase
from matmix.testing.compare import same
from matmix.testing.mixer_laws import traced_law


def _tensors(mixer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that no file holds too."""
    return {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}


def _equals(mixer: Mixer, plain: Mixer, x: Tensor, what: str) -> None:
    same(mixer(x), plain(x), what)
    marked, kept = no_weight_decay(plain), no_weight_decay(mixer)
    assert kept == marked, f"{what}: weight decay spares {sorted(kept)}, not {sorted(marked)}"


@traced_law
def built_on_meta(case: MixerCase) -> None:
    """Built without memory (``torch.device("meta")``), then given some and loaded, or loaded with ``assign=True``, a
    mixer is the plain one: what is not in its ``state_dict`` is no tensor that its constructor made."""
    plain, x = case.build(), case.tokens()
    state = plain.state_dict()
    for assign in (False, True):
        with torch.device("meta"):
            mixer = case.factory(case.dim, case.grid).to(x.dtype).eval()
        there = [name for name, value in _tensors(mixer).items() if not value.is_meta]
        assert not there, f"built on the meta device, {', '.join(there)} has memory"
        if not assign:
            mixer.to_empty(device=case.device)
            with torch.no_grad():
                for value in _tensors(mixer).values():
                    value.fill_(float("nan") if value.is_floating_point() or value.is_complex() else 0)
        mixer.load_state_dict(state, assign=assign)
        _equals(mixer, plain, x, f"built on the meta device and loaded (assign={assign})")


@traced_law
def default_device(case: MixerCase) -> None:
    """What runs stays where the tokens are, whatever the default device; ``resize_`` works without memory."""
    mixer, x = case.build(), case.tokens()
    expected, dense = mixer(x), mixer.matrix(x).to_dense()
    with torch.device("meta"):
        same(mixer(x), expected, "forward beside a default device")
        same(mixer.matrix(x).to_dense(), dense, "to_dense beside a default device")
        if mixer.traits.recurrent:
            _, state = mixer.prefill(x[:, :1])
            mixer.step(x[:, 0], mixer.init_state(case.batch)), mixer.step(x[:, 0], state)
        there = case.factory(case.dim, case.grid).resize_(tuple(n + 1 for n in case.grid))
    assert all(value.is_meta for value in _tensors(there).values()), "resize_ without memory makes some"


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """A default dtype for what is made inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@traced_law
def default_dtype(case: MixerCase) -> None:
    """Under a default dtype floating parameters have that dtype, and outputs are finite and of it; what is computed
    does not hang on the default."""
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        x = case.tokens(dtype)
        with default(dtype):
            mixer = case.factory(case.dim, case.grid).to(case.device).eval()
            other = [n for n, v in _tensors(mixer).items() if v.is_floating_point() and v.dtype != dtype]
            assert not other, f"with {name} as default, {', '.join(other)} is not {name}"
            out = mixer(x)
        assert out.dtype == dtype, f"with {name} as default, {name} tokens become {out.dtype}"
        assert bool(torch.isfinite(out).all()), f"with {name} as default, an output is not finite"
        same(mixer(x), out, f"outputs with float32 and with {name} as default")


@traced_law
def moved(case: MixerCase) -> None:
    """Copies, pickles, ``assign=True`` and dtypes there and back change neither outputs nor marks, and parameters
    carry no attribute, since none of these would keep it."""
    plain, x = case.build(), case.tokens()
    for name, parameter in plain.named_parameters():
        assert not vars(parameter), f"the parameter {name} carries {', '.join(vars(parameter))}: its module should"
    _equals(copy.deepcopy(plain), plain, x, "a deep copy")
    if "<locals>" not in type(plain).__qualname__:  # pickle finds classes by their name
        file = io.BytesIO()
        torch.save(plain, file)
        file.seek(0)
        _equals(torch.load(file, weights_only=False), plain, x, "a pickle")
    assigned = case.build(seed=case.seed + 1)
    assigned.load_state_dict({k: v.clone() for k, v in plain.state_dict().items()}, assign=True)
    _equals(assigned, plain, x, "loaded with assign=True")
    single = copy.deepcopy(plain).float()
    _equals(copy.deepcopy(single).double().float(), single, x.float(), "float64 and back")


@traced_law
def stored(case: MixerCase) -> None:
    """What ``state_dict`` holds is contiguous and shares no memory, as safetensors wants it, after ``resize_`` too."""
    mixer = case.factory(case.dim, case.grid)  # case.build() moves all to another dtype, and so apart
    for what in ("as built", "after resize_"):
        seen: dict[int, str] = {}
        for name, value in mixer.state_dict().items():
            assert value.is_contiguous(), f"{what}: {name} {tuple(value.shape)} has strides {value.stride()}"
            first = seen.setdefault(value.untyped_storage().data_ptr(), name) if value.numel() else name
            assert first == name, f"{what}: {name} shares memory with {first}"
        mixer.resize_(tuple(n + 1 for n in case.grid))
