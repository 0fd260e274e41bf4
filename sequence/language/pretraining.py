"""The model with two heads that PoNet is pretrained as: hidden words, and what two texts are to each other."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from sequence.language.config import MatmixConfig
from sequence.language.heads import Linear
from sequence.language.losses import text_loss, token_loss
from sequence.language.structure import RELATIONS
from sequence.language.tasks import MatmixForMaskedLM


class MatmixForPreTraining(MatmixForMaskedLM):
    """Says hidden words, and whether two texts are in order, swapped or strangers (`sequence.language.structure`)."""

    pools: ClassVar[bool] = True
    accepts_loss_kwargs = False  # one of its losses is a mean over texts

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__(config)
        self.relation = Linear(config.dim, len(RELATIONS), "relation")
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        places: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | BertForPreTrainingOutput:
        """Logits of words (B, L, V) and of relations (B, 3). `MatmixModel` says what is read.

        Args:
            labels: (B, L) of hidden words, -100 where nothing is scored.
            next_sentence_label: (B,), 0 to 2; the loss is the sum of those of the labels that are given.
            places: (B, L), bool: the tokens whose words are asked for, as in `MatmixForMaskedLM`.
        """
        read = self.matmix(
            input_ids, attention_mask, token_type_ids, segment_ids, inputs_embeds, output_attentions,
            output_hidden_states, return_dict=True,
        )  # fmt: skip
        logits, labels = self.words(read.last_hidden_state, labels, places)
        relation = self.relation(read.pooler_output)
        parts = [] if labels is None else [token_loss(logits, labels)]
        if next_sentence_label is not None:
            parts.append(text_loss(relation, next_sentence_label, "single_label_classification"))
        output = BertForPreTrainingOutput(
            loss=sum(parts[1:], parts[0]) if parts else None,
            prediction_logits=logits,
            seq_relationship_logits=relation,
            hidden_states=read.hidden_states,
        )
        return output if self._as_dict(return_dict) else output.to_tuple()
