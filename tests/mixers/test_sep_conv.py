"""ConvFormer's separable convolution."""

import pytest
import torch

from matmix import create_mixer, load_published
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


def test_published_output() -> None:
    fixture = load_fixture("vision/mixer_sepconv_7x9")
    mixer = create_mixer("sep_conv", 8, (7, 9)).double()
    load_published(mixer, fixture.state(), source="sail-sg/metaformer")
    fixture.check(mixer(fixture.input().flatten(1, 2)).unflatten(1, (7, 9)))


@pytest.mark.parametrize("causal", [False, True])
def test_is_conv1d(causal: bool) -> None:
    mixer = create_mixer(f"sep_conv(kernel=5, causal={causal})", 6).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    inner = mixer.act1(mixer.pwconv1(x)).mT
    padded = torch.nn.functional.pad(inner, (4, 0) if causal else (2, 2))
    torch.testing.assert_close(mixer(x), mixer.pwconv2(mixer.dwconv(padded).mT), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_activations_and_biases_of_the_published_class(causal: bool) -> None:
    """In the published form where there is one (over images), and by the laws."""
    spec = f"sep_conv(kernel=5, act='gelu', act2='star_relu', bias=True, causal={causal})"
    if not causal:
        fixture = load_fixture("vision/mixer_sepconv_two_activations_7x9")
        mixer = create_mixer(spec, 8, (7, 9)).double()
        load_published(mixer, fixture.state(), source="sail-sg/metaformer")
        fixture.check(mixer(fixture.input().flatten(1, 2)).unflatten(1, (7, 9)))
    laws = ["product", "gradients", "mask_trim", "nothing_overwritten", *(["recurrent"] if causal else [])]
    check_mixer(lambda dim, grid: create_mixer(spec, dim, grid), laws=laws)


def test_refuses_grids_of_other_axes() -> None:
    mixer = create_mixer("sep_conv", 4, (3, 5))
    with pytest.raises(ValueError, match="grid of 2 axes"):
        mixer(torch.randn(1, 15, 4), grid=(15,))
    with pytest.raises(ValueError, match="grid of 2 axes"):
        mixer.resize_((15,))
    with pytest.raises(ValueError, match="grid must be"):
        create_mixer("sep_conv(causal=True)", 4, (3, 5))
    with pytest.raises(ValueError, match="odd unless causal"):
        create_mixer("sep_conv(kernel=4)", 4)
    for option in ("act", "act2"):
        with pytest.raises(ValueError, match=f"{option} must be one of 'star_relu', .* got 'tanh'"):
            create_mixer(f"sep_conv({option}='tanh')", 4)
