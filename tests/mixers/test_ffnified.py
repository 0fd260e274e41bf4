"""FFNet's FFNified attention."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matmix import load_published
from matmix.mixers.ffnified import FFNified
from matmix.ops.reparam import BranchedConv
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture

SOURCE = "ysj9909/FFNet"


def _state(fixture: Fixture) -> dict[str, torch.Tensor]:
    """Drawn weights, and the counters of the batch norms, which fixtures leave out."""
    counters = [name for name, kind in fixture.data["buffers"].items() if kind == "integer"]
    return fixture.state() | {name: torch.zeros((), dtype=torch.long) for name in counters}


def _load(name: str, branches: str) -> tuple[Fixture, FFNified, torch.Tensor]:
    fixture = load_fixture(f"vision/{name}")
    x = fixture.input()
    kernel = fixture.config["ks1"]
    mixer = FFNified(x.shape[1], tuple(x.shape[2:]), kernel=kernel, branches=branches).double().eval()
    return fixture, load_published(mixer, _state(fixture), source=SOURCE), x.flatten(2).mT


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("ffnet_token_mixer_k7", "pair"),
        ("ffnet_token_mixer_k7_fused", "pair"),
        ("ffnet_seg_token_mixer_k9", "strips"),
    ],
)
def test_published_output(name: str, branches: str) -> None:
    fixture, mixer, tokens = _load(name, branches)
    atol = fixture.data["tolerance"]["float64_atol"]
    shape = fixture.data["output"]["shape"]
    fixture.check(mixer(tokens).mT.reshape(shape), atol=atol, rtol=0)
    fixture.check(mixer.fuse_()(tokens).mT.reshape(shape), atol=atol, rtol=0)


def test_published_fused_weights() -> None:
    fixture, mixer, tokens = _load("ffnet_token_mixer_k7_fused", "pair")
    plain = mixer(tokens)
    fused = mixer.fuse_().state_dict()
    derived = fixture.data["derived"]
    assert set(fused) == set(derived)
    for name, entry in derived.items():
        values = torch.tensor(entry["values"], dtype=torch.float64)
        torch.testing.assert_close(fused[name].flatten(), values, rtol=1e-9, atol=1e-10)
    assert sum(p.numel() for p in mixer.parameters()) == fixture.data["num_params_fused"]
    # and into a mixer that was built without branches, as a fused checkpoint
    published = {name: v.view(derived[name]["shape"]) for name, v in fused.items()}
    other = FFNified(6, (9, 8), kernel=7, branches="plain").double()
    other.fuse_()
    torch.testing.assert_close(load_published(other, published, source=SOURCE)(tokens), plain)


def test_published_series() -> None:
    """Several variates, as in FFNet's forecasting model; the fused mixer gives the same."""
    fixture = load_fixture("vision/ffnet_ts_token_mixer")
    x = fixture.input()  # (B, variates, width, L)
    mixer = FFNified(18, (10,), kernel=7, branches="plain", variates=3).double().eval()
    load_published(mixer, _state(fixture), source=SOURCE)
    assert sum(p.numel() for p in mixer.parameters()) == fixture.data["num_params"]
    atol = fixture.data["tolerance"]["float64_atol"]
    fixture.check(mixer(x.flatten(1, 2).mT).mT.unflatten(1, (3, 6)), atol=atol, rtol=0)
    fixture.check(mixer.fuse_()(x.flatten(1, 2).mT).mT.unflatten(1, (3, 6)), atol=atol, rtol=0)
    assert sum(p.numel() for p in mixer.parameters()) == fixture.data["num_params"] - 12


def test_published_channel_mixer_convolution() -> None:
    """FFNet's channel mixer begins with the same pair of branches."""
    fixture = load_fixture("vision/ffnet_channel_mixer_k7")
    state, x = _state(fixture), fixture.input()
    conv = BranchedConv(8, {"conv": (7, 7), "conv1": (3, 3)}).double().eval()
    conv.load_state_dict({k.removeprefix("conv."): v for k, v in state.items() if k.startswith("conv.")})
    hidden = F.gelu(F.conv2d(conv(x), state["fc1.weight"], state["fc1.bias"]))
    fixture.check(F.conv2d(hidden, state["fc2.weight"], state["fc2.bias"]), atol=4.4e-10, rtol=0)


def _plain(mixer: FFNified, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The formula in training, with PyTorch's own batch norm for every branch; running statistics are left alone."""

    def norm(bn: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(image, None, None, bn.weight, bn.bias, True, 0.1, bn.eps)

    def conv(part: BranchedConv, image: torch.Tensor) -> torch.Tensor:
        branches = [getattr(part, name) for name in part.names]
        return sum(norm(b.bn, F.conv2d(image, b.c.weight, None, 1, "same", 1, len(b.c.weight))) for b in branches)

    query = norm(mixer.fc.bn, mixer.fc.c(x).mT.unflatten(-1, grid))
    return conv(mixer.conv2, F.gelu(conv(mixer.conv1, query))).flatten(2).mT


@pytest.mark.parametrize("branches", ["pair", "strips"])
@pytest.mark.parametrize("masked", [False, True])
def test_training(branches: str, masked: bool) -> None:
    """With the batch's statistics: outputs, gradients and the shown matrix, also where a mask picks the positions."""
    mixer = FFNified(5, (6, 7), kernel=5, branches=branches).double().train()
    x, weight = torch.randn(2, 3, 42, 5, dtype=torch.float64)
    mask = torch.ones(3, 42, dtype=torch.bool) if masked else None
    expected = _plain(mixer, x, (6, 7))
    out = mixer(x, mask=mask)
    torch.testing.assert_close(out, expected)
    parameters = list(mixer.parameters())
    wanted, got = (torch.autograd.grad((y * weight).sum(), parameters) for y in (expected, out))
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-9)
    projected = mixer.project(x, mixer._context(x, None, mask))
    torch.testing.assert_close(mixer.merge(projected.matrix.to_dense() @ projected.values, None), expected)


def test_running_statistics() -> None:
    """They follow the batches as PyTorch's do, with a mask as if padding were not there."""
    mixer = FFNified(4, (9,), kernel=3, branches="pair").double().train()
    trimmed, padded = copy.deepcopy(mixer), copy.deepcopy(mixer)
    bn = nn.BatchNorm1d(4).double()
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    bn(mixer.fc.c(x).flatten(0, 1))
    mixer(x)
    for name, value in bn.state_dict().items():
        torch.testing.assert_close(mixer.state_dict()[f"fc.bn.{name}"], value)
    mask = torch.arange(9) < 6
    out = padded(x, mask=mask.expand(3, -1))
    torch.testing.assert_close(out[:, mask], trimmed(x[:, mask], grid=(6,)))
    for name, value in trimmed.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("kernel", [1, 3, 7, 9])
@pytest.mark.parametrize("grid", [(11,), (4, 5)])
def test_fused_is_the_same(kernel: int, grid: tuple[int, ...]) -> None:
    """For every kernel and form, fused equals unfused after training steps, and taking the branch off gives it back."""
    for branches in ("plain", "strips") if kernel < 3 else ("plain", "strips", "pair"):
        mixer = FFNified(3, grid, kernel=kernel, branches=branches).double().train()
        x = torch.randn(4, math.prod(grid), 3, dtype=torch.float64)
        mixer(x)
        mixer.eval()
        expected, size = mixer(x), sum(p.numel() for p in mixer.parameters())
        fused = copy.deepcopy(mixer).fuse_()
        torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
        assert sum(p.numel() for p in fused.parameters()) < size
        torch.testing.assert_close(copy.deepcopy(fused).fuse_()(x), expected, rtol=1e-12, atol=1e-12)
        if branches == "pair":
            small, _ = mixer.conv1.conv1.folded()
            margin = (kernel - 3) // 2
            rest = fused.conv1.weight - F.pad(small, (margin,) * (2 * len(grid)))
            torch.testing.assert_close(rest, mixer.conv1.conv.folded()[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("branches", ["pair", "plain"])
@pytest.mark.parametrize("variates", [None, 2])
def test_laws(branches: str, variates: int | None) -> None:
    def build(dim: int, grid: tuple[int, ...]) -> FFNified:
        return FFNified(dim, grid, kernel=5, branches=branches, variates=variates)

    check_mixer(build, laws=["product", "gradients", "mask_trim", "mask_content", "length", "small", "keeps"])


def test_compiles_in_training() -> None:
    mixer = FFNified(5, (4, 6)).train()
    x = torch.randn(2, 24, 5)
    twin = copy.deepcopy(mixer)
    out = torch.compile(mixer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(out, twin(x))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(mixer.state_dict()[name], value, msg=name)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="kernel must be a positive odd integer, got 4"):
        FFNified(4, (3, 5), kernel=4)
    with pytest.raises(ValueError, match="branches must be"):
        FFNified(4, (3, 5), branches="triple")
    with pytest.raises(ValueError, match="variates must be a positive divisor of dim=4"):
        FFNified(4, (3, 5), variates=3)
    with pytest.raises(ValueError, match="grid of 2 axes"):
        FFNified(4, (3, 5)).resize_((15,))
    with pytest.raises(ValueError, match="more than one position"):
        FFNified(4, (1,), kernel=3, branches="pair").train()(torch.randn(1, 1, 4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(FFNified(4, (3, 5)).train())
    with pytest.raises(TypeError, match="SyncBatchNorm"):
        converted.matrix(torch.randn(2, 15, 4))
    with pytest.raises(TypeError, match="SyncBatchNorm"):
        converted(torch.randn(2, 15, 4), mask=torch.ones(2, 15, dtype=torch.bool))
