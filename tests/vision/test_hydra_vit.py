"""Hydra in ViT-B's place: what its sources say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vision
from matmix.inspect import matrices
from matmix.matrices.quasiseparable import Quasiseparable
from tests.vision.checks import check_count, check_training
from vision.models.hydra_vit import HydraViT


def small(**options: Any) -> HydraViT:
    return HydraViT(
        **{"depths": (1, 2), "dims": 24, "patch": 8, "mixers": "hydra(d_state=8)", "num_classes": 5, **options}
    )


def test_the_reading() -> None:
    """24 layers of the default Hydra, nothing else; the paper prints 91 M, which a state of 32 would have."""
    model = check_count("hydra_vit_b", 93203368)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert len(blocks) == 24 and not any("mlp" in name or "pos" in name for name, _ in model.named_parameters())
    assert blocks[0].token_mixer.conv1d.weight.shape[-1] == 7 and blocks[0].token_mixer.head_dim == 64
    assert round(check_count("hydra_vit_b", 90819496, mixers="hydra(d_state=32)").stem.conv.weight.shape[2]) == 16
    assert len(model.no_weight_decay()) == 3 * 24


def test_any_size_and_its_matrices() -> None:
    model = small().eval()
    found = matrices(model, torch.randn(2, 3, 37, 64))
    assert all(isinstance(m, Quasiseparable) and m.shape[2:] == (40, 40) for m in found.values()) and len(found) == 3
    assert [m.shape[1:] for m in model.forward_intermediates(torch.randn(1, 3, 37, 64))[1]] == [(24, 5, 8)] * 2


def test_layers_are_residual() -> None:
    torch.manual_seed(0)
    block, x = small().stages[0].blocks[0].double(), torch.randn(2, 3, 5, 24, dtype=torch.float64)
    mixed = block.token_mixer(torch.nn.functional.layer_norm(x, (24,)).flatten(1, 2), grid=(3, 5))
    torch.testing.assert_close(block(x), x + mixed.view(x.shape))


def test_initialisation() -> None:
    """Table 9: a truncated normal of 0.02, here for every linear layer."""
    torch.manual_seed(0)
    model = vision.create_model("hydra_vit_b", depths=(1,))
    mixer = model.stages[0].blocks[0].token_mixer
    for layer in (mixer.in_proj, mixer.out_proj, mixer.fc_D, model.head.fc):
        assert abs(layer.weight.std().item() - 0.02) < 1e-3


def test_training() -> None:
    check_training(small(drop_path_rate=0.1), torch.randn(2, 3, 32, 40))


def test_other_mixers() -> None:
    assert small(mixers="ssd").eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="unknown mixer 'hydras'"):
        small(mixers="hydras")
