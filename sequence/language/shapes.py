"""Published encoders as configurations: `MatmixForMaskedLM(shapes.hydra_bert())`.

Each function says where its sizes are from and what they cost. Vocabularies are the sources' own (BERT's uncased one,
30,522; FNet's, 32,000), so that their checkpoints fit; pass `vocab_size=` and any other field to have another.
"""

from __future__ import annotations

from typing import Any

from sequence.language.config import MatmixConfig

BERT: dict[str, Any] = {"dim": 768, "depth": 12, "prenorm": False, "type_vocab_size": 2, "embedding_norm": True}
"""What all of them have of BERT: post-norm, kinds of tokens, a norm behind the embedding."""
POST_NORM: dict[str, Any] = {"norm_eps": 1e-12, "length": 512, "dropout": 0.1, "embedding_dropout": 0.1}


def bert(**fields: Any) -> MatmixConfig:
    """BERT base (arXiv 1810.04805): 12 layers of 12 heads, 109.51 M parameters with its masked language head.

    `load_published(model, state, "huggingface/transformers")` takes transformers' `BertForMaskedLM`.
    """
    mixer = "attention(head_dim=64, qkv_bias=True, proj_bias=True)"
    return MatmixConfig(**{**BERT, **POST_NORM, "mixer": mixer, "classifier_dropout": 0.1, **fields})


def hydra_bert(**fields: Any) -> MatmixConfig:
    """Hydra's 23 layers (arXiv 2407.09941, section 4.3; goombalab/hydra, hydra/bert): 112.08 M parameters with the
    masked language head, 69.99 M for `depth=12`, the model of its ablations.

    Post-norm, `x = norm(x + mixer(x))`, and nothing else: no perceptron, no dropout, no positions. Windows of 128
    tokens; 70,000 steps of 4,096 of them are 37 billion tokens. Longer texts are taken too.

    Padding has no part in its results. In the published code each mixer reads it as zeros and its biases fill it again,
    so the real tokens hang on how much there is: `padding="zeros"` is that. That code also rounds the vocabulary up to
    a multiple of 8: its checkpoints need `vocab_size=30528`.
    """
    shape = {"mixer": "hydra", "depth": 23, "mlp_ratio": 0.0, "position": "none", "length": 128}
    return MatmixConfig(**{**BERT, "embedding_norm": True, **shape, **fields})


def ponet(**fields: Any) -> MatmixConfig:
    """PoNet base (arXiv 2110.02442; lxchtan/PoNet, tag v1.0): BERT base with poolings in the place of attention,
    124.28 M parameters with both heads of its pretraining (`MatmixForPreTraining`).

    [CLS] and [SEP], 101 and 102, stand apart and part the segments that are pooled; `segment_ids` gives others, say
    sentences. Batches of 192 texts of 512 tokens in pretraining, 500 epochs of Wikipedia and BookCorpus.
    """
    shape = {"mixer": "ponet(heads=12)", "delimiters": (101, 102), "classifier_dropout": 0.1}
    return MatmixConfig(**{**BERT, **POST_NORM, **shape, **fields})


def fnet(**fields: Any) -> MatmixConfig:
    """FNet base (arXiv 2105.03824, table 1): BERT base with Fourier transforms in the place of attention, four kinds of
    tokens and a linear layer behind the embedding; 82.89 M parameters with its masked language head.

    The published model knows no mask: it transforms what stands at padding with the rest. To have that, give it no
    `attention_mask`; with one, padding counts as zeros, here over the places that the batch has (`pad_to="batch"`).

    `load_published(model, state, "huggingface/transformers")` takes transformers' `FNetForMaskedLM`.
    """
    shape = {"mixer": "fnet", "type_vocab_size": 4, "embedding_projection": True, "act": "gelu_tanh", "pad_to": "batch",
             "vocab_size": 32_000, "pad_token_id": 3}  # fmt: skip
    return MatmixConfig(**{**BERT, **POST_NORM, **shape, **fields})
