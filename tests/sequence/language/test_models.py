"""Every mixer's models, as transformers uses them."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from matmix.mixers import list_mixers, mixer_info
from sequence.language import MatmixConfig, MatmixForMaskedLM, MatmixModel
from tests.sequence.test_encoder import moved

IDS = torch.randint(1, 30, (2, 9), generator=torch.Generator().manual_seed(0))
SMALL = {"mixer": "hydra(head_dim=8, d_state=4)", "vocab_size": 30, "dim": 16, "depth": 2, "length": 12, "seed": 0}


def config(**options) -> MatmixConfig:
    return MatmixConfig(**{**SMALL, **options})


LENGTH = 16  # a square for monarch, a power of 2 for butterfly
MIXERS = [name for name in list_mixers() if 1 in mixer_info(name).traits.dims]  # not those of images only


def of_mixer(name: str, **options) -> MatmixConfig:
    """One block of a mixer at its smallest."""
    info = mixer_info(name)
    given = ["'attention'", "'ssd(head_dim=4)'"] if name == "heads" else []  # which is made of mixers that are named
    given += [f"{key}={value!r}" for key, value in info.smallest.items() if key not in ("dim", "args")]
    sizes = {"dim": max(8, info.smallest.get("dim", 8)), "length": LENGTH, "depth": 1}
    return config(mixer=f"{name}({', '.join(given)})", **sizes, **options)


def check_padding(model: MatmixModel) -> None:
    """Texts by themselves and in one batch, padded on the right, on the left and on both sides."""
    texts = [torch.randint(1, 30, (1, n), generator=torch.Generator().manual_seed(n)) for n in (6, 13)]
    rows = [(0, 0), (0, 15), (1, 0), (1, 8), (1, 3)]  # a text, and where it begins in 21 places
    ids, mask = torch.full((len(rows), 21), 29), torch.zeros(len(rows), 21, dtype=torch.long)
    for row, (text, start) in enumerate(rows):
        here = slice(start, start + texts[text].shape[1])
        ids[row, here], mask[row, here] = texts[text][0], 1
    alone, batch = [model(text) for text in texts], model(ids, attention_mask=mask)
    for row, (text, _) in enumerate(rows):
        torch.testing.assert_close(batch.last_hidden_state[row][mask[row] == 1], alone[text].last_hidden_state[0])
        torch.testing.assert_close(batch.pooler_output[row], alone[text].pooler_output[0])


@pytest.mark.parametrize("name", MIXERS)
def test_padding_changes_no_result(name):
    """On either side, of any amount, whatever ids stand there: outputs at real tokens and the vector of a text."""
    check_padding(moved(MatmixModel(of_mixer(name, position="learned", pool="mean"))).double().eval())


def test_padding_changes_no_result_between_delimiters():
    """PoNet's segments, as in its pretrained models: none begins or ends in the padding."""
    shape = {"delimiters": (5, 9, 29), "prenorm": False, "embedding_norm": True}  # 29 stands in the padding too
    check_padding(moved(MatmixModel(of_mixer("ponet", pool="mean", **shape))).double().eval())


def test_the_law_of_padding_catches_a_mixer_that_sees_it():
    """The published FNet, by an option."""
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_padding(MatmixModel(of_mixer("fnet", pad_to="batch", pool="mean")).double().eval())


def test_mixers_take_nothing_from_initial_values(monkeypatch):
    """transformers 4 loads into models built with torch's initialisers switched off: they give nothing back."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda *args, **kwargs: None)
    for name in MIXERS:
        for variant in ({}, *mixer_info(name).variants) if name != "heads" else ():
            options = {key: value for key, value in mixer_info(name).smallest.items() if key != "dim"} | variant
            mixer = mixer_info(name).cls(max(8, mixer_info(name).smallest.get("dim", 8)), (LENGTH,), **options)
            assert [key for key, value in mixer.named_parameters() if not value.numel()] == [], name


@pytest.mark.slow
def test_every_mixer_is_saved_and_loaded(tmp_path):
    """Bit for bit, buffers that no file holds as well: transformers builds a model on no device and fills it."""
    for name in MIXERS:
        model = moved(MatmixForMaskedLM(of_mixer(name))).eval()
        model.save_pretrained(tmp_path / name)
        loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval()
        mask = (torch.arange(9) < torch.tensor([[9], [6]])).long()
        real = mask.bool()
        assert torch.equal(
            loaded(IDS, attention_mask=mask).logits[real], model(IDS, attention_mask=mask).logits[real]
        ), name


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
