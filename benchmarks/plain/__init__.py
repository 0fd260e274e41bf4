"""Every mixer the plain way: the formula of its paper in straightforward PyTorch, on the weights of ours.

What a competent reader would write from the paper, or what its published code says where it is plain PyTorch; not
slowed down and not tuned. A function takes our mixer (for its weights and options), tokens ``(B, L, D)`` and their
grid.
"""

from __future__ import annotations

from benchmarks.plain import frequency, recurrent, sequence, state_space, vision
from benchmarks.plain.forms import FORMS

__all__ = ["FORMS", "frequency", "recurrent", "sequence", "state_space", "vision"]
