"""transformers' `Trainer`, with what mixers ask of whoever trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from matmix.ops.marks import no_weight_decay, optim_settings
from matmix.training import after_step, auxiliary_losses


class MatmixTrainer(Trainer):
    """`Trainer` in all its arguments. It trains any of the models here; this class also does what some mixers ask for:

    - parameters that a mixer keeps out of weight decay (steps and decays of state spaces) are left out of it, and those
      for which a module has a learning rate or decay of its own (`matmix.optim_settings`) have it, moved by the
      schedule in proportion;
    - losses of a mixer's own (the commitment of `vq_attention` and `longvq`) are added to the loss in training;
    - state that training moves without a gradient (the same mixers' codebook) is moved after each update.
    """

    _auxiliary: Callable[[], Tensor | float] | None = None

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        spared = no_weight_decay(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in spared]

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        optimizer: Any = super().create_optimizer(*args)
        assert self.model is not None
        if not given:
            _set_apart(optimizer, self.model)
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper steps this one
        inner.register_step_post_hook(lambda *_: after_step(self.model))
        return optimizer

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert self.model is not None
        with auxiliary_losses(self.model) as self._auxiliary:
            try:
                return super().training_step(model, inputs, *args, **kwargs)
            finally:
                self._auxiliary = None

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        computed: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if self._auxiliary is None:  # an evaluation
            return computed
        own: Any = self._auxiliary()
        if self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
            own = own / self.current_gradient_accumulation_steps  # those of the model are parts of a sum already
        return (computed[0] + own, *computed[1:]) if isinstance(computed, tuple) else computed + own


def _set_apart(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Groups of their own for parameters that a module has settings for."""
    named = dict(model.named_parameters())
    for name, settings in optim_settings(model).items():
        parameter = named[name]
        for group in optimizer.param_groups:
            kept = [other for other in group["params"] if other is not parameter]
            if len(kept) < len(group["params"]):
                group["params"] = kept
                optimizer.add_param_group({**group, "params": [parameter], **settings})
                break
