"""Going on with a text: tokens drawn one after the other from a language model.

    task = LM(data="input.txt")
    model = task.model("ssd", seed=0)                       # and its trained weights
    prompt = task.corpus.coder.encode(b"ROMEO:").tokens
    result = generate(model, torch.tensor(prompt)[None].long(), 200)
    task.corpus.coder.decode(result.tokens[0].numpy()), result.way, result.tokens_per_second

Where every mixer is recurrent, each token is a `step` from a state of fixed size. Where one is not, each token reads
all before it again, with the same result.
"""

from __future__ import annotations

import math
import time
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sequence.encoder import Encoder


class Generated(NamedTuple):
    """What `generate` returns."""

    tokens: Tensor  # (B, P + count): the prompt and what follows on it
    way: Literal["step", "forward"]  # from a state, or by reading everything again
    prompt_seconds: float  # for the prompt, and with it the first token
    seconds: float  # for the other tokens
    tokens_per_second: float  # of these, all samples together; nan where there is none


@torch.no_grad()
def generate(
    model: Encoder,
    prompt: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    way: Literal["auto", "step", "forward"] = "auto",
) -> Generated:
    """Draw tokens that go on with a prompt.

    Args:
        model: an encoder with head="language"; it is read in evaluation mode.
        prompt: token ids (B, P), at least one.
        count: of new tokens.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among so many of the most likely tokens; 0 = all.
        seed: of the draws.
        way: "step" reads each token once, from a state, and needs recurrent mixers; "forward" reads again all there is
            for each token, or as much of it as learned positions reach. "auto" takes "step" where it can.

    Raises:
        ValueError: for a prompt or a way that the model does not take.
    """
    if prompt.dim() != 2 or prompt.shape[1] < 1 or prompt.is_floating_point():
        raise ValueError(f"prompt must be token ids (B, P) with P at least 1, got {prompt.dtype} {tuple(prompt.shape)}")
    if model.read != "language":
        raise ValueError(f"generate needs an encoder with head='language', got head={model.read!r}")
    if count < 0 or temperature < 0 or top_k < 0:
        raise ValueError(f"count, temperature and top_k must be at least 0, got {count}, {temperature} and {top_k}")
    reach = None if model.position is None else len(model.position)
    if way not in ("auto", "step", "forward"):
        raise ValueError(f"way must be 'auto', 'step' or 'forward', got {way!r}")
    if way == "auto":
        long = reach is not None and prompt.shape[1] + count - 1 > reach
        recurrent = all(mixer.traits.recurrent for mixer in model.mixers)
        way = "step" if recurrent and not long else "forward"
    random = torch.Generator(prompt.device).manual_seed(seed)
    training = model.training
    model.eval()
    try:
        tokens, state, times = prompt, None, [time.perf_counter()]
        for index in range(count):
            if way == "forward":
                logits = model(tokens if reach is None else tokens[:, -reach:])[:, -1]
            elif state is None:
                logits, state = model.prefill(prompt)
                logits = logits[:, -1]
            else:
                logits, state = model.step(tokens[:, -1], state)
            tokens = torch.cat((tokens, _draw(logits, temperature, top_k, random)), 1)
            if index in (0, count - 1):
                times.append(_clock(tokens))
    finally:
        model.train(training)
    prompt_seconds, seconds = times[min(1, count)] - times[0], times[-1] - times[min(1, count)]
    rate = len(prompt) * (count - 1) / seconds if count > 1 else math.nan
    return Generated(tokens, way, prompt_seconds, seconds, rate)


def _draw(logits: Tensor, temperature: float, top_k: int, random: torch.Generator) -> Tensor:
    """One token a sample, (B, 1), of logits (B, vocabulary)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=random)


def _clock(after: Tensor) -> float:
    """The time when a tensor is there."""
    if after.is_cuda:
        torch.cuda.synchronize(after.device)
    return time.perf_counter()
