"""What a module says about its parameters to whoever trains them; the module keeps it, no tensor does.

An attribute of a ``Parameter`` is gone after ``copy.deepcopy``, ``load_state_dict(assign=True)`` and a checkpoint that
is dispatched to devices, and accelerate's ``init_empty_weights`` hands it to a constructor that does not take it. So a
module names parameters of its own, on its class or, by ``spare``, on the instance::

    class Scan(nn.Module):
        undecayed: ClassVar[frozenset[str]] = frozenset({"A_log", "D"})

Whatever else is to be said of a parameter (a learning rate of its own) is one more attribute of modules that names
parameters in the same way, and ``held`` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn


def spare(module: nn.Module, names: Iterable[str]) -> None:
    """Have this instance name parameters that weight decay leaves alone, next to those that it names already."""
    module.undecayed = frozenset(getattr(module, "undecayed", ())) | frozenset(names)  # type: ignore[assignment]


def held(module: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """The parameters behind a name of a module: one, several where it is parametrised, none where it is absent."""
    parametrised = getattr(module, "parametrizations", {})
    if name in parametrised:
        yield from parametrised[name].parameters(recurse=False)
    for known in (name, f"{name}_orig"):  # torch.nn.utils.prune renames
        parameter = module._parameters.get(known)
        if parameter is not None:
            yield parameter


def undecayed(model: nn.Module) -> set[str]:
    """Names of parameters that the modules of a model want kept out of weight decay, though they may be no vectors.

    They are those of ``model.named_parameters()``, whatever the model is wrapped in. mamba-ssm's mark, a true
    attribute ``_no_weight_decay`` of the parameter, counts too.
    """
    found = {
        id(parameter)
        for module in model.modules()
        for name in getattr(module, "undecayed", ())
        for parameter in held(module, name)
    }
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in found or getattr(parameter, "_no_weight_decay", False)
    }


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of parameters that weight decay is to leave alone: ``undecayed``, and what timm's method of the same name
    lists, for the model or for any module in it (a timm model that DistributedDataParallel has wrapped, say).

    Hand them to ``timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=...)``, or build groups of
    them yourself. Biases and other vectors are not among them unless a module names them.
    """
    names = undecayed(model)
    for prefix, module in model.named_modules(remove_duplicate=False):
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            names.update(f"{prefix}.{name}" if prefix else name for name in listed())
    return names & {name for name, _ in model.named_parameters(remove_duplicate=False)}
