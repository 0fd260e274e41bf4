"""Every mixer's models, as transformers uses them."""

from __future__ import annotations

import pytest
import torch
import transformers

from sequence.language import MatmixConfig, MatmixForMaskedLM

IDS = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(0))
SMALL = {"mixer": "hydra(head_dim=8, d_state=4)", "vocab_size": 30, "dim": 16, "depth": 2, "length": 12, "seed": 0}


def config(**options) -> MatmixConfig:
    return MatmixConfig(**{**SMALL, **options})


def test_auto_classes_load_what_was_saved(tmp_path):
    """Every weight of a shape with all that BERT's embedding has; a head that the checkpoint lacks is drawn anew."""
    bert = {"type_vocab_size": 2, "embedding_norm": True, "embedding_projection": True, "prenorm": False}
    model = MatmixForMaskedLM(config(**bert, num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is MatmixForMaskedLM
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for name, value in model.matmix.state_dict().items():
        assert torch.equal(other.matmix.state_dict()[name], value)
    assert 0.01 < other.classifier.linear.weight.std() < 0.03
    assert other(IDS).logits.shape == (2, 3)


def test_weights_of_another_shape_are_refused(tmp_path):
    MatmixForMaskedLM(config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of another shape than the model's: .*embedding\.weight \(31, 16\)"):
        MatmixForMaskedLM.from_pretrained(tmp_path, vocab_size=31)
    with pytest.raises(ValueError, match=r"the checkpoint lacks: .*blocks\.2\.mixer"):
        MatmixForMaskedLM.from_pretrained(tmp_path, depth=3)
