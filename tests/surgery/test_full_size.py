"""The published sizes, with random weights."""

from __future__ import annotations

import pytest
import torch

from matmix import surgery
from matmix.inspect import record
from tests.surgery.models import timm

FULL = {  # sites, and a spec for each
    "vit_tiny_patch16_224": (12, "hydra(expand=1)"),
    "deit_tiny_distilled_patch16_224": (12, "toeplitz"),
    "convnext_atto": (12, "sep_conv"),
    "caformer_s18": (18, "ssd(expand=1)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, tmp_path):
    sites, spec = FULL[name]
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=10).eval(), torch.randn(3, 3, 224, 224)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        with record(model) as found:
            torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
        assert len(found) == len(surgery.find(model)) == sites
        if name != "convnext_atto":
            kept = surgery.replace(model, "softmax", where="self_attention", level="matrix")
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
            kept.restore()
        report = surgery.replace(model, spec, example=x)
        changed = model(x)
        assert changed.isfinite().all() and not torch.allclose(changed, expected)
        surgery.save(report, tmp_path)
        twin = timm.create_model(name, num_classes=10).eval()
        twin.load_state_dict(before)
        surgery.apply(twin, tmp_path)
        assert torch.equal(twin(x), changed)
        report.restore()
        assert torch.equal(model(x), expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
