"""The encoder's options are settings of the tasks, under the same names, and each of them does something."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from matmix.experiments.registry import list_tasks, task_class
from sequence.encoder import Encoder
from sequence.language.config import FIELDS
from sequence.language.settings import SHAPE, ModelSettings
from sequence.tasks.settings import (
    ClassSettings,
    EncoderSettings,
    LanguageSettings,
    PairSettings,
    settings_of,
)

CHOSEN = {"embedding", "mixer", "grid", "head", "outputs", "seed"}  # by the task, not by who runs it
# BERT's, for the models of `sequence.language`, whose configuration has them.
BERT = {"norm_eps", "padding", "type_vocab_size", "embedding_norm", "embedding_projection", "delimiters", "block"}
OTHER = {
    "dim": 12, "depth": 1, "mlp_ratio": 3.0, "glu": True, "act": "relu", "position": "sinusoidal", "norm": "rms",
    "prenorm": False, "final_norm": False, "conv": 3, "embedding_std": 0.5, "dropout": 0.5, "embedding_dropout": 0.5,
    "hidden_dropout": 0.5, "pool": "max", "pool_norm": True, "head_hidden": (6,), "head_act": "relu",
    "pair_features": "concat", "tied": True,
}  # fmt: skip
TOKENS = torch.randint(9, (2, 2, 7), generator=torch.Generator().manual_seed(0))


def test_settings_and_options_have_one_list_of_names():
    named = {name for group in (PairSettings, LanguageSettings) for name in settings_of(group)}
    assert named == set(inspect.signature(Encoder.__init__).parameters) - CHOSEN - BERT - {"self"}
    assert named == {*OTHER, "tied_dropout"}


def test_every_sequence_task_has_them():
    """Those on time series have models of their own, by the one field `architecture` instead; those on language have
    the fields of the configuration that transformers saves."""
    classes = [task_class(name) for name in list_tasks() if task_class(name).__module__.startswith("sequence.")]
    series = [cls for cls in classes if cls.__module__.startswith("sequence.series.")]
    language = [cls for cls in classes if issubclass(cls, ModelSettings)]
    assert len(classes) - len(series) - len(language) > 5 and len(language) >= 2
    others = [*series, *language]
    assert [cls.__name__ for cls in classes if issubclass(cls, EncoderSettings) == (cls in others)] == []
    assert set(SHAPE) <= set(FIELDS)
    assert [cls.__name__ for cls in series if "architecture" not in settings_of(cls)] == []


def built(settings: EncoderSettings) -> tuple[dict[str, tuple[int, ...]], torch.Tensor]:
    """Names and shapes of the weights, and what a step in training gives."""
    kinds = (
        (PairSettings, "pair", TOKENS),
        (ClassSettings, "class", TOKENS[:, 0]),
        (EncoderSettings, "token", TOKENS[0]),
    )
    head, x = next((head, x) for kind, head, x in kinds if isinstance(settings, kind))
    model = settings.encoder("elementwise", 0, vocabulary=9, grid=(7,), head=head, outputs=9)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}, model(x).detach()


@pytest.mark.parametrize("name", [*OTHER, "tied_dropout"])
def test_a_setting_changes_the_model(name):
    group = LanguageSettings if name == "tied" else PairSettings
    start = {"head_act": {"head_hidden": (6,)}, "tied_dropout": {"dropout": 0.5}}.get(name, {})
    settings = group(dim=8, **start) if name != "dim" else group(dim=8)
    changed = dataclasses.replace(settings, **{name: OTHER.get(name, True)})
    (shapes, out), (others, other) = built(settings), built(changed)
    assert shapes != others or not torch.allclose(out, other)


def test_one_kind_of_input_is_given():
    for given in ({}, {"vocabulary": 9, "channels": 2}):
        with pytest.raises(ValueError, match="give one of vocabulary, channels and embedding"):
            EncoderSettings().encoder("identity", 0, grid=(7,), head="token", outputs=3, **given)
    real = ClassSettings().encoder("identity", 0, grid=(7,), head="class", outputs=3, channels=2)
    assert real(torch.randn(2, 7, 2)).shape == (2, 3)
