"""The models with heads, each for a task, as transformers names them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput

from sequence.language.config import MatmixConfig
from sequence.language.heads import Classifier, Decoder, Transform
from sequence.language.losses import problem_of, text_loss, token_loss
from sequence.language.model import MatmixModel, MatmixPreTrainedModel


class MatmixForMaskedLM(MatmixPreTrainedModel):
    """Says the tokens that are hidden behind [MASK]."""

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.matmix = MatmixModel(config, add_pooling_layer=False)
        self.transform = Transform(config) if config.transform else None
        self.decoder = Decoder(config, bias=True)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        """None where the decoder is tied: it has no weight of its own then."""
        return None if self.decoder.weight is None else self.decoder

    def set_output_embeddings(self, value: Any) -> None:
        self.decoder = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, ...] | MaskedLMOutput:
        """`MatmixModel`'s arguments, and `labels` (B, L), -100 where nothing is scored; logits (B, L, V)."""
        read = self.matmix(input_ids, attention_mask, token_type_ids, return_dict=True, **inputs)
        tokens = read.last_hidden_state if self.transform is None else self.transform(read.last_hidden_state)
        logits = self.decoder(tokens, self.get_input_embeddings().weight)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)
        return output if self._as_dict(return_dict) else output.to_tuple()


class MatmixForSequenceClassification(MatmixPreTrainedModel):
    """Says a class, several, or a number of a text or a pair of texts."""

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.matmix = MatmixModel(config)
        self.classifier = Classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, ...] | SequenceClassifierOutput:
        """`MatmixModel`'s arguments, and `labels` (B,): classes, or numbers where `num_labels` is 1; logits (B, C)."""
        read = self.matmix(input_ids, attention_mask, token_type_ids, return_dict=True, **inputs)
        logits, loss = self.classifier(read.pooler_output), None
        if labels is not None:
            loss = text_loss(logits, labels, self.config.problem_type or problem_of(logits.shape[-1], labels))
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)
        return output if self._as_dict(return_dict) else output.to_tuple()
