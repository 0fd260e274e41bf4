"""Writing token by token: `step` of our encoder against transformers' Mamba-2 with its cache, from the same weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import best_times, say
from sequence.encoder import Encoder, EncoderState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BYTES = 256
MAMBA2 = "transformers Mamba-2"


class Sizes(NamedTuple):
    """What all models have in common."""

    dim: int
    depth: int


def mamba2_config(sizes: Sizes) -> Any:
    from transformers import Mamba2Config

    return Mamba2Config(
        vocab_size=BYTES, hidden_size=sizes.dim, num_heads=2 * sizes.dim // min(64, 2 * sizes.dim),
        head_dim=min(64, 2 * sizes.dim), state_size=64, n_groups=1, expand=2, num_hidden_layers=sizes.depth,
        tie_word_embeddings=True, residual_in_fp32=False,
    )  # fmt: skip


STEPPED = {
    "ssd": "ssd(d_state=64)",
    "attention, rotary": "attention(causal=True, rotary=True)",
    "delta_rule": "delta_rule",
}


def writer(name: str, sizes: Sizes) -> Encoder:
    """A model of bytes in the form of a Mamba-2 model: RMS norms, no MLP, the head tied to the embedding."""
    return Encoder(
        lambda: nn.Embedding(BYTES, sizes.dim), STEPPED[name], dim=sizes.dim, depth=sizes.depth, grid=(1,),
        head="language", outputs=BYTES, mlp_ratio=0, norm="rms", tied=True,
    ).to(DEVICE).eval()  # fmt: skip


def mamba2_of(ours: Encoder, sizes: Sizes) -> Any:
    """Transformers' Mamba-2 with the weights of our model around ssd."""
    from transformers import Mamba2ForCausalLM

    theirs: Any = Mamba2ForCausalLM(mamba2_config(sizes))
    state = {"backbone.embeddings.weight": ours.embedding.weight, "lm_head.weight": ours.embedding.weight}
    state["backbone.norm_f.weight"] = ours.norm.weight
    for index, block in enumerate(ours.blocks):
        state[f"backbone.layers.{index}.norm.weight"] = block.mixer_norm.weight  # type: ignore[union-attr]
        state |= {f"backbone.layers.{index}.mixer.{n}": v for n, v in block.mixer.state_dict().items()}  # type: ignore[union-attr]
    theirs.load_state_dict(state)
    return theirs.to(DEVICE).eval()


def generation(sizes: Sizes, batches: Sequence[int], prompt: int, count: int, peer: bool) -> list[list[str]]:
    """Tokens per second of greedy steps after a prompt, all sequences of a batch counted."""
    rows = []
    for batch in batches:
        x = torch.randint(BYTES, (batch, prompt), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        torch.manual_seed(0)
        models = {name: writer(name, sizes) for name in STEPPED}
        works: dict[str, Callable[[], object]] = {n: stepping(model, x, count) for n, model in models.items()}
        if peer:
            works[f"{MAMBA2}, its cache"] = with_cache(mamba2_of(models["ssd"], sizes), x, count)
            ours, theirs = works["ssd"](), works[f"{MAMBA2}, its cache"]()
            if not torch.equal(ours, theirs):  # type: ignore[arg-type]
                raise AssertionError(f"ssd writes {ours}, transformers' Mamba-2 with the same weights {theirs}")
        seconds = dict(zip(works, best_times(list(works.values()), budget=2.0, most=40.0), strict=True))
        for name, value in seconds.items():
            rows.append([str(batch), name, f"{batch * count / value:,.0f}", f"{seconds['ssd'] / value:.2f}"])
            say(" ".join(rows[-1]))
    return rows


def stepping(model: Encoder, prompt: Tensor, count: int) -> Callable[[], Tensor]:
    """So many tokens by `step`, each the likeliest one; the prompt is read once, outside."""
    with torch.no_grad():
        logits, state = model.prefill(prompt)
    first: tuple[Tensor, EncoderState] = (logits[:, -1].argmax(-1), state)

    def work() -> Tensor:
        token, state = first
        written = []
        for _ in range(count):
            logits, state = model.step(token, state)
            token = logits.argmax(-1)
            written.append(token)
        return torch.stack(written, 1)

    return work


def with_cache(model: Any, prompt: Tensor, count: int) -> Callable[[], Tensor]:
    """The same by transformers' model; its cache is changed in place, so the prompt's is copied at the beginning, which
    takes less than one of the steps."""
    parameters = inspect.signature(model.forward).parameters
    word = next(name for name in ("cache", "cache_params", "past_key_values") if name in parameters)
    with torch.no_grad():
        read = model(prompt, use_cache=True, **position(parameters, 0, prompt.shape[1]))
    token, cache = read.logits[:, -1].argmax(-1), getattr(read, word)

    def work() -> Tensor:
        now, mine, written = token, copy.deepcopy(cache), []
        for index in range(count):
            at = prompt.shape[1] + index
            out = model(now.unsqueeze(1), use_cache=True, **{word: mine}, **position(parameters, at, at + 1))
            now = out.logits[:, -1].argmax(-1)
            written.append(now)
        return torch.stack(written, 1)

    return work


def position(parameters: Any, start: int, stop: int) -> dict[str, Tensor]:
    """Where tokens stand, for the versions of transformers that ask for it."""
    return {"cache_position": torch.arange(start, stop, device=DEVICE)} if "cache_position" in parameters else {}
