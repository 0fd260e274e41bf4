"""The models with heads, each for a task, as transformers names them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput

from sequence.language.config import MatmixConfig
from sequence.language.heads import Classifier, Decoder, Transform
from sequence.language.losses import text_loss, token_loss
from sequence.language.model import MatmixModel, MatmixPreTrainedModel


class WithDecoder(MatmixPreTrainedModel):
    """A model that says tokens."""

    decoder: Decoder
    accepts_loss_kwargs = True  # `Trainer` says how many labels all parts of an accumulated batch have together

    def get_output_embeddings(self) -> None:
        """None, as of a model without a decoder: transformers would tie and resize it as a linear layer, and a decoder
        here follows the embedding by itself."""


class MatmixForMaskedLM(WithDecoder):
    """Says the tokens that are hidden behind [MASK]."""

    pools: ClassVar[bool] = False
    """Whether a head reads a text in one vector."""

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.matmix = MatmixModel(config, add_pooling_layer=self.pools)
        self.transform = Transform(config) if config.transform else None
        self.decoder = Decoder(config, bias=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        places: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | MaskedLMOutput:
        """Logits (B, L, V). `MatmixModel` says what is read.

        Args:
            labels: (B, L), -100 where nothing is scored.
            num_items_in_batch: labels of the whole batch, where this is a part of one: what the loss is divided by.
            places: (B, L), bool: these n tokens alone are decoded, to logits (n, V). In pretraining they are 15 %, and
                the decoder of a small model is most of its cost.
        """
        read = self.matmix(
            input_ids, attention_mask, token_type_ids, segment_ids, inputs_embeds, output_attentions,
            output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits, labels = self.words(read.last_hidden_state, labels, places)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)
        return output if self._as_dict(return_dict) else output.to_tuple()

    def words(self, tokens: Tensor, labels: Tensor | None, places: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the head says of tokens (B, L, D), or of some of them, and the labels of those."""
        if places is not None:
            tokens, labels = tokens[places], None if labels is None else labels[places]
        tokens = tokens if self.transform is None else self.transform(tokens)
        return self.decoder(tokens, self.get_input_embeddings().weight), labels


class MatmixForSequenceClassification(MatmixPreTrainedModel):
    """Says a class, several, or a number of a text or a pair of texts."""

    accepts_loss_kwargs = False  # the loss is a mean over texts: parts of equal size have the mean of theirs

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
        segment_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | SequenceClassifierOutput:
        """Logits (B, C). `MatmixModel` says what is read.

        Args:
            labels: (B,), classes, or numbers where `num_labels` is 1; (B, C) of 0.0 and 1.0 where each class may hold.
                The configuration's `problem_type` decides where it is set.
        """
        read = self.matmix(
            input_ids, attention_mask, token_type_ids, segment_ids, inputs_embeds, output_attentions,
            output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits, loss = self.classifier(read.pooler_output), None
        if labels is not None:
            loss = text_loss(logits, labels, self.config.problem_type)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)
        return output if self._as_dict(return_dict) else output.to_tuple()


class MatmixForTokenClassification(MatmixPreTrainedModel):
    """Says a class of each token."""

    accepts_loss_kwargs = True

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.matmix = MatmixModel(config, add_pooling_layer=False)
        self.classifier = Classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | TokenClassifierOutput:
        """Logits (B, L, C). `MatmixModel` says what is read, `MatmixForMaskedLM` what labels are."""
        read = self.matmix(
            input_ids, attention_mask, token_type_ids, segment_ids, inputs_embeds, output_attentions,
            output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits = self.classifier(read.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        output = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)
        return output if self._as_dict(return_dict) else output.to_tuple()
