"""transformers' own common tests of models, for a tiny configuration. `.ci/transformers` brings them and runs this.

They stand in the source distribution of the installed transformers, not in its wheel, so pytest does not collect this
file by itself.
"""

from __future__ import annotations

import copy
import unittest

import torch
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

from sequence.language import (
    MatmixConfig,
    MatmixForMaskedLM,
    MatmixForSequenceClassification,
    MatmixForTokenClassification,
    MatmixModel,
)


class Tester:
    """What the tests ask of a model: sizes, a configuration, inputs."""

    __test__ = False
    is_training, batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = True, 3, 7, 32, 2, 4

    def __init__(self, parent: unittest.TestCase, mixer: str) -> None:
        self.parent, self.mixer = parent, mixer

    def get_config(self) -> MatmixConfig:
        return MatmixConfig(mixer=self.mixer, vocab_size=99, dim=32, depth=2, length=32, num_labels=3)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], 99)
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


STRICT = {"test_model_weights_reload_no_missing_tied_weights": "loads a file without weights; loading is strict"}
COPIES = {"test_retain_grad_hidden_states_attentions": "hidden states of texts padded inside the model are copies"}


class Common(ModelTesterMixin):
    exceptions = STRICT
    """Tests that do not apply, and why; docs/language-models.md says it to users. Others skip themselves."""
    all_model_classes = (
        MatmixModel, MatmixForMaskedLM, MatmixForSequenceClassification, MatmixForTokenClassification,
    )  # fmt: skip
    has_attentions = False  # not every mixer has scores of a softmax
    mixer = ""

    def setUp(self) -> None:
        if self._testMethodName in self.exceptions:
            self.skipTest(self.exceptions[self._testMethodName])
        if "training" in self._testMethodName:  # the tests know models without a loss by the names of their own
            self.all_model_classes = self.all_model_classes[1:]
        self.model_tester = Tester(self, self.mixer)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is not MatmixModel:
            shape = inputs["input_ids"].shape[: 1 if model_class is MatmixForSequenceClassification else 2]
            inputs["labels"] = torch.zeros(shape, dtype=torch.long)
        return inputs


class TestAttention(Common, unittest.TestCase):
    mixer = "attention(heads=4)"


class TestFNet(Common, unittest.TestCase):
    mixer, exceptions = "fnet", STRICT | COPIES


class TestHydra(Common, unittest.TestCase):
    mixer = "hydra(head_dim=16)"


class TestPattern(Common, unittest.TestCase):
    mixer = "ponet, ssd(head_dim=16)"
