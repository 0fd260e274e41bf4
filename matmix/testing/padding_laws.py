"""The laws of padding: what stands at masked positions is not read, in no number, gradient or precision."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.mixers.base import Mixer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close, same
from matmix.testing.mixer_laws import garbage, law, some_mask


def _results(mixer: Mixer, x: Tensor, mask: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradients of tokens and parameters."""
    mixer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    out = mixer(x, mask=mask)
    (out * weight).sum().backward()
    assert x.grad is not None
    grads = {f"the gradient of {name}": p.grad for name, p in mixer.named_parameters() if p.grad is not None}
    return {"forward": out.detach(), "the gradient of the tokens": x.grad} | grads


@law
def padding_is_replaced(case: MixerCase) -> None:
    """NaN, inf and 1e30 at masked positions leave all as zeros there do: outputs, matrix, the gradients of tokens (0 at
    masked ones) and of parameters; in float32, and under autocast to bfloat16."""
    mixer = case.build(torch.float32)
    if mixer.traits.mask is None:
        return
    x, weight, mask = case.tokens(torch.float32), case.tokens(torch.float32, name="weight"), some_mask(case)
    clean, odd = x.masked_fill(~mask.unsqueeze(-1), 0), garbage(x, mask)
    close(mixer.matrix(odd, mask=mask).to_dense(), mixer.matrix(clean, mask=mask).to_dense(), "the matrix")
    for dtype in (torch.float32, torch.bfloat16):
        what = "" if dtype == torch.float32 else ", autocast to bfloat16"
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            expected, got = (_results(mixer, tokens, mask, weight) for tokens in (clean, odd))
        for name, value in expected.items():
            close(got[name], value, f"{name}{what}")
        for name in ("forward", "the gradient of the tokens"):
            same(got[name][~mask], torch.zeros_like(x[~mask]), f"{name} at masked positions{what}")
