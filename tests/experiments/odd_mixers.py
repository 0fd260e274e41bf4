"""Mixers that a study must survive; a study imports this file by its path, as it would a user's own."""

import os
import signal
import time

import torch
from torch import nn

from matmix import Mixer, Traits, register
from matmix.matrices import Dense
from matmix.mixers.base import Projected


class Odd(Mixer):
    traits = Traits()

    def __init__(self, dim, grid=None):
        super().__init__(dim, grid)
        self.weight = nn.Parameter(torch.randn(1))

    def project(self, x, context):
        self.act()
        length = x.shape[1]
        matrix = torch.softmax(self.weight * torch.eye(length), -1)
        return Projected(Dense(matrix[None, None]), x.unsqueeze(1))

    def act(self):
        pass


@register("own", matrix="Dense", cost="O(L^2 D)", source="this file")
class Own(Odd):
    pass


@register("diverges", matrix="Dense", cost="O(L^2 D)", source="this file")
class Diverges(Odd):
    def act(self):
        if self.training:
            with torch.no_grad():
                self.weight.fill_(float("nan"))


@register("fails", matrix="Dense", cost="O(L^2 D)", source="this file")
class Fails(Odd):
    def act(self):
        if self.training:
            raise RuntimeError("on purpose")


@register("dies", matrix="Dense", cost="O(L^2 D)", source="this file")
class Dies(Odd):
    def act(self):
        if self.training and not os.environ.get("SPARE"):
            os.kill(os.getpid(), signal.SIGKILL)


@register("slow", matrix="Dense", cost="O(L^2 D)", source="this file")
class Slow(Odd):
    def act(self):
        if self.training:
            time.sleep(float(os.environ.get("NAP", "0.05")))
