"""Toeplitz matrices in BERT: queries, keys, values and output projection stay, the matrix between them is another.

    python examples/toeplitz_in_bert.py

The model is transformers' own class, with random weights and small enough for a moment. Its attention multiplies values
by the softmax of queries and keys, another matrix for each text. Here every head of the last two layers gets one matrix
for all texts, with a learned weight for each distance between two tokens: a convolution as long as the text. It begins
at the Toeplitz matrix that is nearest to what the head did on average, and learns from the untouched model.

Printed: the sites, the report (queries and keys are what is dead now), the matrices that run, and how far the outputs
are from those of before, at the beginning and after 60 steps.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from matmix import surgery
from matmix.inspect import matrices
from matmix.surgery import DistillRecipe, Stage

LENGTH, WORDS = 24, 100


def texts(shortest: int) -> dict[str, Tensor]:
    """Random texts from ``shortest`` words to LENGTH, padded."""
    mask = torch.arange(LENGTH) < torch.randint(shortest, LENGTH + 1, (16, 1))
    return {"input_ids": torch.randint(1, WORDS, (16, LENGTH)), "attention_mask": mask.long()}


def outputs(of: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What a model says of the words, and not of padding."""
    with torch.no_grad():
        return of(**inputs).last_hidden_state[inputs["attention_mask"].bool()]


torch.manual_seed(0)
small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
model = BertModel(BertConfig(**small, vocab_size=WORDS, initializer_range=0.2)).eval()
untouched = copy.deepcopy(model)
whole, fresh = [texts(LENGTH) for _ in range(4)], texts(12)
before = outputs(untouched, fresh)

# A Toeplitz matrix is built for one length, which nothing in BERT states: the example tells it.
print(surgery.find(model, example=whole[0]), end="\n\n")
report = surgery.replace(
    model, "toeplitz", layers=[2, 3], level="matrix", init="projected", example=whole[0], batches=whole
)
print(report, end="\n\n")
for name, matrix in matrices(model, **fresh).items():
    print(f"{name}: {matrix}")
now = outputs(model, fresh)
print(f"\nat the beginning {(now - before).norm() / before.norm():.0%} from the outputs of before")

# Padding has no influence, as before: other words behind the end of a text move nothing in front of it.
other = torch.where(fresh["attention_mask"] == 1, fresh["input_ids"], 7)
assert torch.equal(outputs(model, {**fresh, "input_ids": other}), now)

recipe = DistillRecipe(matrices=None, outputs=Stage(60, lr=3e-3), predictions=None)
surgery.distill(untouched, model, lambda step: texts(12), recipe)
now = outputs(model, fresh)
print(f"after {recipe.steps} steps {(now - before).norm() / before.norm():.0%}")

report.restore()  # the matrix is out again; what was trained beside it, values and their bias, stays trained
assert list(model.state_dict()) == list(untouched.state_dict())
