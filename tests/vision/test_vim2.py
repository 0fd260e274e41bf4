"""ViM2, of which nothing was published: that it is the reading it says, and VMamba as its special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vision
from matmix.inspect import matrices
from matmix.mixers.selective_channel import SelectiveChannel
from matmix.mixers.selective_token import SelectiveToken
from vision.models.vim2 import AveragedStage, ViM2
from vision.models.vmamba import VMamba

SMALL: dict[str, Any] = {"depths": (1, 2), "dims": (8, 12), "num_classes": 5}
QUICK: dict[str, Any] = {"mixers": "selective_token(d_state=2)", "channel_mixers": "selective_channel(d_state=2)"}


def test_averages_join_the_blocks_of_a_stage() -> None:
    torch.manual_seed(0)
    model = ViM2(**SMALL, **QUICK).eval()
    image = torch.randn(2, 3, 24, 40)
    row = ViM2(**SMALL, **QUICK, averaging=False).eval()
    left = {n: v for n, v in model.state_dict().items() if ".averages." not in n}
    row.load_state_dict(left)
    # As they start, the averages are blocks in a row.
    torch.testing.assert_close(model(image), row(image))
    stage = model.stages[1]
    assert isinstance(stage, AveragedStage) and sum(p.numel() for p in stage.averages.parameters()) == 2 * 7
    with torch.no_grad():
        stage.averages.level("gamma", 1)[0] = 0.5
    assert not torch.allclose(model(image), row(image))
    model(image).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_vmamba_is_the_special_case() -> None:
    """alpha of the newest output 1, all else 0, and a stage is its token mixers; y_token is what VMamba hands on."""
    torch.manual_seed(0)
    mixer = "ss2d(d_state=2)"
    vmamba = VMamba((4,), (8,), mixers=mixer, num_classes=5).eval()
    model = ViM2((2,), (8,), mixers=mixer, channel_mixers=QUICK["channel_mixers"], num_classes=5).eval()
    stage = model.stages[0]
    assert isinstance(stage, AveragedStage)
    stage.averages.vmamba_()
    parts = [part for block in stage.blocks for part in block.token]
    for mine, theirs in zip(parts, vmamba.stages[0].blocks, strict=True):
        mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 7, 8)
    tokens, _ = stage.averages(x, stage.blocks)
    torch.testing.assert_close(tokens[-1], vmamba.stages[0](x))


def test_sizes_and_parts() -> None:
    sizes = {"vim2_t": (6, 19.3), "vim2_s": (12, 33.6), "vim2_b": (12, 57.7)}
    assert vision.list_models("vim2_*") == sorted(sizes)
    for name, (blocks, millions) in sizes.items():
        with torch.device("meta"):
            model = vision.create_model(name)
        kinds = [type(m) for m in model.modules()]
        assert kinds.count(SelectiveToken) == 2 * blocks and kinds.count(SelectiveChannel) == blocks
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_features_checkpointing_and_matrices() -> None:
    torch.manual_seed(0)
    model = ViM2(**SMALL, **QUICK)
    image = torch.randn(1, 3, 32, 40)
    plain = model(image)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(image), plain)
    model.set_grad_checkpointing(False)
    assert [tuple(f.shape) for f in model.forward_intermediates(image, intermediates_only=True)] == [
        (1, 8, 8, 10),
        (1, 12, 4, 5),
    ]
    assert len(matrices(model, image)) == 3 * 3


def test_residual_false_takes_the_equations_by_the_letter() -> None:
    torch.manual_seed(0)
    model = ViM2((1,), (8,), **QUICK, residual=False)
    for mixer in model.modules():
        if isinstance(mixer, SelectiveToken):
            nn.init.zeros_(mixer.out_proj.weight)
    features = model.forward_features(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(features, features[:, :, :1, :1].expand_as(features))  # nothing of the image is left


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"tokens must be a whole number in \[1, 1e\+09\], got 0"):
        ViM2(tokens=0)
    with pytest.raises(ValueError, match="dims must have an entry per stage"):
        ViM2(depths=(1, 1))
