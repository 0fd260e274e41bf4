"""A classifier around any model that reads token ids, such as those of transformers."""

from __future__ import annotations

from torch import Tensor, nn

from matmix.experiments.models import create_model, read


class TextModel(nn.Module):
    """The mean of a model's last states over the real tokens, and a linear layer.

    Args:
        architecture: of the model, as in "hf:bert(hidden_size=64)"; its vocabulary is that of the task.
        vocabulary: number of ids, of which 0 is padding.
        classes: of the scores.

    Raises:
        ValueError: for a model without states of tokens.
    """

    def __init__(self, architecture: str, vocabulary: int, classes: int) -> None:
        super().__init__()
        if not read(architecture)[0]:
            raise ValueError(f"architecture names its package, as in hf:bert, got {architecture!r}")
        self.body = create_model(architecture, vocab_size=vocabulary, pad_token_id=0)
        width = getattr(self.body.config, "hidden_size", None)
        if not isinstance(width, int):
            raise ValueError(f"architecture: {architecture} has no hidden_size, the width of its states")
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Scores (B, classes) of ids (B, L)."""
        states = self.body(input_ids=ids, attention_mask=None if mask is None else mask.long()).last_hidden_state
        if mask is None:
            return self.head(states.mean(1))
        kept = mask.unsqueeze(-1).to(states.dtype)
        return self.head((states * kept).sum(1) / kept.sum(1).clamp_min(1))
