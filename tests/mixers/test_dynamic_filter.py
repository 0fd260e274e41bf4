"""DFFormer's dynamic filter."""

import pytest
import torch

from matmix import create_mixer, load_published
from matmix.mixers.dynamic_filter import DynamicFilter
from matmix.ops.fft import interpolate_spectrum
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture

PUBLISHED = ["14x14", "7x7", "8x8", "built14_at_7x9", "d8_gelu_8x8"]


def _load(fixture: Fixture, dtype: torch.dtype) -> tuple[DynamicFilter, torch.Tensor]:
    x, config = fixture.input(dtype=dtype), fixture.config
    size = (config["size"], config["size"])
    mixer = DynamicFilter(
        config["dim"],
        tuple(x.shape[1:3]),
        mlp_ratio=config.get("reweight_expansion_ratio", 0.25),
        act=config.get("act1_layer", "star_relu").lower(),
        resize="bicubic" if config.get("weight_resize") else "kernel",
        built=size if config.get("weight_resize") else None,
    ).to(dtype)
    return load_published(mixer, fixture.state(dtype), source="okojoalg/dfformer"), x


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_output(name: str) -> None:
    fixture = load_fixture(f"vision/mixer_dynamic_filter_{name}")
    mixer, x = _load(fixture, torch.float64)
    fixture.check(mixer(x.flatten(1, 2)).view(x.shape), key="output_float64")
    mixer, x = _load(fixture, torch.float32)
    atol = fixture.data["tolerance"]["float32"]["atol"]
    fixture.check(mixer(x.flatten(1, 2)).view(x.shape), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("name", ["14x8_to_24x13", "14x8_to_7x5"])
def test_published_resize(name: str) -> None:
    fixture = load_fixture(f"vision/function_resize_complex_weight_{name}")
    rows, half = fixture.config["new_h"], fixture.config["new_w"]
    fixture.check(interpolate_spectrum(fixture.state()["complex_weights"], (rows, 2 * half - 2)))


@pytest.mark.parametrize("resize", ["kernel", "bicubic"])
def test_laws_on_filters_of_their_own_grid(resize: str) -> None:
    def build(dim: int, grid: tuple[int, ...]) -> DynamicFilter:
        return DynamicFilter(dim, grid, filters=2, mlp_ratio=1.0, resize=resize, built=(4, 7)[-len(grid) :])

    check_mixer(build, laws=["product", "length", "mixes", "mask_content", "gradients", "small", "keeps"])


def test_each_channel_mixes_the_filters() -> None:
    """The kernel of a channel is the convex combination of the kernels of the filters."""
    mixer = create_mixer("dynamic_filter(filters=3)", 8, (5, 6)).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    mix = mixer.reweight(x.mean(1)).view(2, 3, 16).softmax(1)
    kernels = torch.fft.irfft2(torch.view_as_complex(mixer.complex_weights).permute(2, 0, 1), (5, 6))
    torch.testing.assert_close(mixer.matrix(x).kernel(), torch.einsum("bkc,khw->bchw", mix, kernels))


def test_resize_keeps_the_kernel() -> None:
    """A local kernel does the same to its neighbourhood on a larger grid."""
    mixer = DynamicFilter(4, (7, 9), mlp_ratio=1.0).double()
    kernel = torch.zeros(4, 7, 9, dtype=torch.float64)
    kernel[:, :2, :2] = torch.randn(4, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        mixer.complex_weights.copy_(torch.view_as_real(torch.fft.rfft2(kernel).permute(1, 2, 0)))
    x = torch.zeros(1, 7, 9, 4, dtype=torch.float64)
    x[:, 2:5, 3:6] = torch.randn(3, 3, 4, dtype=torch.float64)
    large = torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 2))  # (9, 12)
    with torch.no_grad():  # the mean token differs between the grids: leave the coefficients to a constant
        mixer.reweight.fc2.weight.zero_()
    small = mixer(x.flatten(1, 2)).view(x.shape)
    wide = mixer.resize_((9, 12))(large.flatten(1, 2)).view(large.shape)
    torch.testing.assert_close(wide[:, :7, :9], small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": 0}, "filters must be a whole number"),
        ({"mlp_ratio": 0.01}, "mlp_ratio must leave a channel"),
        ({"act": "tanh"}, "act must be one of 'star_relu'"),
        ({"resize": "linear"}, "resize must be one of 'kernel', 'bicubic'"),
        ({"built": (4,)}, "built must have as many axes"),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicFilter(8, (3, 5), **options)
    mixer = DynamicFilter(8, (3, 5))
    with pytest.raises(ValueError, match="grid of 2 axes"):
        mixer.resize_((15,))
