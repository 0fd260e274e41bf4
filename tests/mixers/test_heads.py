"""Hybrids by heads: parts side by side."""

import pytest
import torch

from matmix import create_mixer
from matmix.testing import check_mixer

HYBRIDS = {
    "widths 2 and 1, columns L and L + 1": 'heads("attention(head_dim=2)", "mlp(hidden=5)", "dense", dims=(2, 4, 2))',
    "all causal and recurrent": (
        'heads("attention(head_dim=2,causal=True)", "linear_attention(head_dim=2,causal=True)", '
        '"sep_conv(causal=True)", dims=(2, 2, 4))'
    ),
    "nested": "heads(\"heads('pooling', 'sep_conv')\", 'random')",
}


def test_is_its_parts_side_by_side() -> None:
    mixer = create_mixer('heads("attention(head_dim=2)", "pooling", "identity", dims=(4, 3, 5))', 12, (3, 5)).double()
    x = torch.randn(2, 15, 12, dtype=torch.float64)
    wanted = [part(share) for part, share in zip(mixer.parts, x.split((4, 3, 5), -1), strict=True)]
    torch.testing.assert_close(mixer(x), torch.cat(wanted, -1))
    # Heads of width 2, 3 and 5 meet at width 1: the dense matrix has a head a channel.
    assert tuple(mixer.matrix(x).shape) == (2, 12, 15, 15)


@pytest.mark.parametrize("name", HYBRIDS)
def test_laws(name: str) -> None:
    laws = ["product", "gradients", "small", "causal", "length", "mask_content", "mask_trim", "recurrent", "aligned"]
    check_mixer(lambda dim, grid: create_mixer(HYBRIDS[name], dim, grid), dim=8, laws=laws)


def test_traits_are_those_that_all_parts_keep() -> None:
    causal = create_mixer('heads("attention(causal=True)", "sep_conv(causal=True)")', 8).traits
    assert causal.causal and causal.recurrent and causal.aligned and causal.mask == "trim" and causal.dims == {1}
    mixed = create_mixer('heads("attention(causal=True)", "random")', 8, (5,)).traits
    assert not mixed.causal and not mixed.recurrent and mixed.length == "fixed" and mixed.mask == "content"


def test_refuses() -> None:
    with pytest.raises(ValueError, match="dims must be 2 positive widths that add up to dim=8"):
        create_mixer('heads("pooling", "identity", dims=(3, 4))', 8)
    with pytest.raises(ValueError, match="equal shares, which do not exist"):
        create_mixer('heads("pooling", "identity", "identity")', 8)
    with pytest.raises(ValueError, match="heads needs the specs of its parts"):
        create_mixer("heads", 8)
    with pytest.raises(ValueError, match="unknown mixer 'poolin'"):
        create_mixer('heads("poolin")', 8)
