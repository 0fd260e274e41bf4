"""Small transformers models with random weights, their inputs, and what their sites are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

NEW = int(transformers.__version__.split(".")[0]) >= 5  # BERT's family calls the attention interface
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
GROUPED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2}
WORDS = {"vocab_size": 31, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
DISTIL = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 32, "max_position_embeddings": 32}
LENGTH = 7
SIDES = (None, "right", "left")  # where padding stands


@dataclass(frozen=True)
class Case:
    """A model by the names of its classes."""

    model_class: str
    config_class: str
    options: dict[str, Any]
    sites: tuple[str, ...]
    kind: str = "text"
    causal: bool = False

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
        """The model with weights that are drawn anew but the same every time, in eval mode."""
        config = getattr(transformers, self.config_class)(**self.options)
        config._attn_implementation = attention if NEW or self.kind != "series" else "eager"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = getattr(transformers, self.model_class)(config)
            return shaken(model).to(dtype).eval()

    def input(self, dtype: torch.dtype = torch.float32, length: int = LENGTH) -> dict[str, Tensor]:
        """A batch of three: of two, a tensor in place of a tuple would pass."""
        draw = torch.Generator().manual_seed(0)
        if self.kind == "image":
            return {"pixel_values": torch.randn(3, 3, 32, 48, generator=draw, dtype=torch.float64).to(dtype)}
        if self.kind == "series":
            return {"past_values": torch.randn(3, 24, 2, generator=draw, dtype=torch.float64).to(dtype)}
        ids = torch.randint(2, 31, (3, length), generator=draw)
        return {"input_ids": ids, **({"use_cache": False} if self.causal else {})}  # type: ignore[dict-item]


def shaken(model: nn.Module) -> nn.Module:
    """A model whose biases and norms are no longer zero and one, and whose attention is no mean."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def text(name: str, options: dict[str, Any], sites: str, causal: bool = False, model: str = "Model") -> Case:
    layers = tuple(sites.format(layer) for layer in range(2))
    return Case(f"{name}{model}", f"{name}Config", {**WORDS, **options}, layers, causal=causal)


BERT = {**SMALL, "max_position_embeddings": 32}
ALBERT = "encoder.albert_layer_groups.0.albert_layers.0.attention"
IMAGE = {**SMALL, "image_size": (32, 48), "patch_size": 16}
SERIES = {
    "num_input_channels": 2, "context_length": 24, "patch_length": 4, "patch_stride": 4, "d_model": 24,
    "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 32,
}  # fmt: skip
VIT = "layers.{}.attention" if NEW else "encoder.layer.{}.attention.attention"
CASES: dict[str, Case] = {
    "bert": text("Bert", BERT, "encoder.layer.{}.attention.self"),
    "roberta": text("Roberta", {**BERT, "pad_token_id": 1}, "encoder.layer.{}.attention.self"),
    "distilbert": text("DistilBert", DISTIL, "transformer.layer.{}.attention"),
    "albert": Case("AlbertModel", "AlbertConfig", {**WORDS, **BERT, "embedding_size": 8}, (ALBERT,)),
    "vit": Case("ViTModel", "ViTConfig", IMAGE, tuple(VIT.format(layer) for layer in range(2)), "image"),
    "patchtst": Case(
        "PatchTSTModel", "PatchTSTConfig", SERIES, tuple(f"encoder.layers.{n}.self_attn" for n in range(2)), "series"
    ),
    "llama": text("Llama", GROUPED, "model.layers.{}.self_attn", True, "ForCausalLM"),
    "qwen2": text("Qwen2", GROUPED, "model.layers.{}.self_attn", True, "ForCausalLM"),
    "bert_decoder": text("Bert", {**BERT, "is_decoder": True}, "encoder.layer.{}.attention.self", True),
}  # fmt: skip
TEXT = [name for name, case in CASES.items() if case.kind == "text"]


def padding(side: str | None) -> Tensor | None:
    """2-D masks: of the second sample two tokens are padding, of the third four."""
    if side is None:
        return None
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[1, -2:], mask[2, -4:] = 0, 0
    return mask.flip(1) if side == "left" else mask


def padded(inputs: dict[str, Tensor], side: str | None) -> dict[str, Tensor]:
    mask = padding(side)
    return inputs if mask is None else {**inputs, "attention_mask": mask}


def tokens_of(out: Any) -> Tensor:
    """What a model says of each token."""
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found


def real(out: Any, side: str | None) -> Tensor:
    """That of real tokens."""
    found, mask = tokens_of(out), padding(side)
    return found if mask is None else found[mask.bool()]


def close(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> None:
    # Eager decoders take their softmax in float32 whatever the model's type.
    torch.testing.assert_close(a, b, rtol=0, atol=5e-6 if dtype == torch.float64 else 2e-5)
