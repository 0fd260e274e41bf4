"""Hydra in somebody else's vision transformer: find, replace, report, restore.

    python examples/hydra_in_a_vit.py

The model is timm's, with random weights and small enough for a moment; any model of theirs is operated on the same way.
"""

from __future__ import annotations

import timm
import torch

from matmix import surgery
from matmix.inspect import matrices

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=10).eval()
images = torch.randn(3, 3, 64, 64)

print(surgery.find(model), end="\n\n")  # the places where tokens mix

before = model(images)
report = surgery.replace(model, "hydra(expand=1)", where="attn")  # both of them; every other weight stays
print(report, end="\n\n")

for name, matrix in matrices(model, images).items():
    print(f"{name}: {matrix}")  # of the model that runs now

loss = model(images).square().mean()  # it trains as any other model does
loss.backward()

report.restore()
assert torch.equal(model(images), before)
print("restored, bit for bit")
