"""Norms of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from sequence.layers.norms import ScaleNorm, TokenBatchNorm, make_norm, normed


def test_scale_norm_is_by_its_formula():
    norm = ScaleNorm(eps=0.0).double()
    with torch.no_grad():
        norm.scale.fill_(1.7)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), 1.7 * x * 5**0.5 / x.norm(dim=-1, keepdim=True))
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert isinstance(make_norm("rms", 4), nn.RMSNorm)


def test_batch_norm_measures_the_real_tokens():
    """As PyTorch's over the real tokens alone: outputs, gradients, running averages, the plain mean of `update_bn`."""
    ours, theirs = TokenBatchNorm(5), nn.BatchNorm1d(5)
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 6, 5) * 3 + 1
        mask = torch.rand(4, 6) < 0.6
        if seed == 2:
            ours.momentum = theirs.momentum = None
            ours.reset_running_stats(), theirs.reset_running_stats()
        for repeat in range(2):
            real = (x + repeat)[mask].requires_grad_()
            padded = torch.full_like(x, float("nan")).masked_scatter(mask.unsqueeze(-1), real)
            found, expected = ours(padded, mask)[mask], theirs(real)
            torch.testing.assert_close(found, expected)
            weight = torch.randn_like(found)
            one, two = (torch.autograd.grad((out * weight).sum(), real)[0] for out in (found, expected))
            torch.testing.assert_close(one, two)
            for name, value in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], value)
    assert torch.equal(ours.eval()(x, mask)[mask], ours(x)[mask])  # in evaluation the running averages alone


def test_a_converted_batch_norm_is_refused():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(TokenBatchNorm(5))
    with pytest.raises(TypeError, match="over all processes as it is"):
        normed(converted, torch.randn(2, 5, 5), None)


def batch(masked: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 5, 6, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 6, generator=generator) < 0.7
    mask[4] = False  # a process that has padding alone
    return x, mask if masked else None, weight


def normalised(norm: TokenBatchNorm, masked: bool, share: slice) -> list[torch.Tensor]:
    """Outputs and gradients of some of the samples."""
    x, mask, weight = (None if t is None else t[share] for t in batch(masked))
    leaf = x.requires_grad_()
    out = norm(leaf, mask)
    out = out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)
    gradients = torch.autograd.grad((out * weight).sum(), [leaf, *norm.parameters()])
    return [out.detach(), *gradients]


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for masked in (False, True):
        norm = TokenBatchNorm(4).double()
        found[masked] = [*normalised(norm, masked, slice(0, 4) if rank == 0 else slice(4, 5)), *norm.buffers()]
    torch.save(found, f"{folder}/{rank}")
    distributed.barrier()  # a process that closes its connections while the other still listens can abort that one
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path) -> None:
    """Unequal shares, one of padding alone: outputs, gradients and running averages of the whole batch."""
    multiprocessing.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    for masked in (False, True):
        norm = TokenBatchNorm(4).double()
        out, x_gradient, *parameters = normalised(norm, masked, slice(None))
        a, b = first[masked], second[masked]
        torch.testing.assert_close(torch.cat((a[0], b[0])), out)
        torch.testing.assert_close(torch.cat((a[1], b[1])), x_gradient)
        for one, two, whole in zip(a[2:4], b[2:4], parameters, strict=True):
            torch.testing.assert_close(one + two, whole)
        for one, two, whole in zip(a[4:], b[4:], norm.buffers(), strict=True):
            torch.testing.assert_close(one, whole)
            torch.testing.assert_close(two, whole)
