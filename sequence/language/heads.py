"""What reads the tokens of the encoder: small modules whose weights transformers may have to draw anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sequence.language.config import MatmixConfig
from sequence.layers.block import ACTS
from sequence.layers.embedding import BERT_EPS
from sequence.layers.pooling import pool


class Drawn(nn.Module):
    """A layer of a head, which draws its weights in `reset`: when a model is built, and when a checkpoint is loaded
    that lacks it. It holds the weights itself, since transformers asks the modules that do.

    `part` names what it draws, beside the seed of the configuration.
    """

    part: str

    def reset(self, std: float) -> None:
        raise NotImplementedError


class Linear(nn.Linear, Drawn):
    """Drawn as BERT's: of a normal distribution, biases 0."""

    def __init__(self, inputs: int, outputs: int, part: str) -> None:
        super().__init__(inputs, outputs)
        self.part = part

    def reset(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)


class LayerNorm(nn.LayerNorm, Drawn):
    """Begins with ones and zeros."""

    part = "norm"

    def reset(self, std: float) -> None:
        self.reset_parameters()


class Pooler(nn.Module):
    """A text in one vector: what `how` says of its real tokens, and where `pooler` is asked for that through a linear
    layer and a tanh (BERT)."""

    def __init__(self, config: MatmixConfig, how: str) -> None:
        super().__init__()
        self.how = how
        self.dense = Linear(config.dim, config.dim, "pooler") if config.pooler else None

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, L, D) to (B, D)."""
        told = pool(tokens, self.how, mask)
        return told if self.dense is None else torch.tanh(self.dense(told))


class Transform(nn.Module):
    """In front of the decoder of BERT's masked language head."""

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__()
        self.dense = Linear(config.dim, config.dim, "transform")
        self.act = ACTS[config.act]()
        self.norm = LayerNorm(config.dim, eps=BERT_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.act(self.dense(tokens)))
        return normed


class Decoder(Drawn):
    """Tokens (..., D) to logits (..., V), by the embedding's own weights or, untied, by some of its own.

    Tied, it holds no weight: there are no two names for one tensor, so nothing can part them, be it saving, loading,
    resizing, sharding or an adapter.
    """

    part = "decoder"

    def __init__(self, config: MatmixConfig, *, bias: bool) -> None:
        super().__init__()
        tied = config.tie_word_embeddings
        self.weight = None if tied else nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.bias = nn.Parameter(torch.empty(config.vocab_size)) if bias else None

    def reset(self, std: float) -> None:
        if self.weight is not None:
            nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Args:
        tokens: (..., D).
        embedding: (V, D), the embedding's weights.
        """
        return F.linear(tokens, embedding if self.weight is None else self.weight, self.bias)

    @torch.no_grad()
    def resize(self, embedding: Tensor) -> None:
        """Follow the embedding (V, D) to another vocabulary: old words keep what they have, new ones begin with a bias
        of 0 and, untied, with the embedding's weights."""
        size = len(embedding)
        if self.bias is not None:
            grown = F.pad(self.bias.data, (0, size - len(self.bias)))  # a negative width cuts
            self.bias = nn.Parameter(grown, requires_grad=self.bias.requires_grad)
        if self.weight is not None:
            kept = self.weight.data[:size]
            grown = torch.cat((kept, embedding[len(kept) :].to(kept)))
            self.weight = nn.Parameter(grown, requires_grad=self.weight.requires_grad)


class Classifier(nn.Module):
    """Vectors (..., D) to logits (..., `num_labels`)."""

    def __init__(self, config: MatmixConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.linear = Linear(config.dim, config.num_labels or 0, "classifier")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(x))
        return logits
