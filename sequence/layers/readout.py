"""A row of tokens from one vector: the decoder of MAD's compression task (arXiv 2403.17844)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.ops.seed import fork_seed
from sequence.encoder import Encoder
from sequence.layers.norms import Norm, make_norm
from sequence.layers.positions import sinusoids


class Readout(nn.Module):
    """`encoder.encode` gives a vector a row; at each of `length` places it is read with the code of that place.

        z + code(place)  ->  norm, linear, GELU, norm, linear, GELU, norm, linear to `outputs`

    Only the code tells the places apart, so every token must stand in the vector.

    Args:
        encoder: one of head="class"; the head itself is left out.
        dim: its width.
        length: tokens to read out.
        outputs: number of ids.
        norm: as in the encoder.
        seed: of the initial weights.
    """

    codes: Tensor

    def __init__(self, encoder: Encoder, *, dim: int, length: int, outputs: int, norm: Norm, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.head = nn.Identity()
        self.register_buffer("codes", sinusoids(torch.arange(length), dim, torch.float32), persistent=False)
        with fork_seed(seed, "readout"):
            layers: list[nn.Module] = []
            for width in (dim, dim, outputs):
                linear = nn.Linear(dim, width)
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
                layers += [make_norm(norm, dim), linear, nn.GELU()]
            self.read = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Ids (B, L) to logits (B, length, outputs)."""
        return self.read(self.encoder(x, mask=mask).unsqueeze(1) + self.codes)
