"""What a module says about its parameters to whoever trains them; the module keeps it, no tensor does.

An attribute of a ``Parameter`` is gone after ``copy.deepcopy``, ``load_state_dict(assign=True)`` and a checkpoint that
is dispatched to devices, and accelerate's ``init_empty_weights`` hands it to a constructor that does not take it. So a
module names parameters of its own, on its class or, by ``spare``, on the instance::

    class Scan(nn.Module):
        undecayed: ClassVar[frozenset[str]] = frozenset({"A_log", "D"})

A learning rate or decay of their own is said in the same way::

        optim_settings: ClassVar[dict[str, dict[str, float]]] = {"log_dt": {"lr": 0.001, "weight_decay": 0.0}}

Whatever else is to be said of a parameter is one more attribute of modules that names parameters, and ``held`` finds
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from matmix.arguments import checking_arguments


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


@checking_arguments()
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


@checking_arguments()
def optim_settings(model: nn.Module) -> dict[str, dict[str, float]]:
    """What the modules of a model set for parameters of their own, by their names in ``model.named_parameters()``: the
    learning rate ``"lr"``, at its highest, the decay ``"weight_decay"``, or both.

    S4's mark, a dict ``_optim`` of the parameter, counts too, after what its module says. The trainer of
    ``matmix.experiments`` makes groups of them; for an optimiser of one's own, so does::

        own = matmix.optim_settings(model)
        groups = [{"params": [p], **own.get(name, {})} for name, p in model.named_parameters()]

    Raises:
        ValueError: for a setting that is none of the two, or not a finite number of at least 0.
    """
    found: dict[int, dict[str, float]] = {}
    for module in model.modules():
        settings = getattr(module, "optim_settings", None)
        for name, own in settings.items() if isinstance(settings, Mapping) else ():
            for parameter in held(module, name):
                found[id(parameter)] = _checked(own, f"{type(module).__name__}.optim_settings[{name!r}]")
    named: dict[str, dict[str, float]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        mark = getattr(parameter, "_optim", None)
        own = {
            **(_checked(mark, f"_optim of {name}") if isinstance(mark, Mapping) else {}),
            **found.get(id(parameter), {}),
        }
        if own:
            named[name] = own
    return named


def grouped(
    parameters: Iterable[tuple[nn.Parameter, bool, Mapping[str, float]]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: of parameters, whether each is decayed, and its own settings. First those with decay,
    then those without, then those with settings, each kind in the order given.

    A learning rate of its own stands in a group as ``initial_lr`` too, torch's word for what a schedule begins from.
    """
    shared: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    own: dict[tuple[float | None, float], list[nn.Parameter]] = {}
    for parameter, decays, settings in parameters:
        if settings:
            decay = settings.get("weight_decay", weight_decay if decays else 0.0)
            own.setdefault((settings.get("lr"), decay), []).append(parameter)
        else:
            shared[decays].append(parameter)
    return [
        {"params": shared[True], "weight_decay": weight_decay},
        {"params": shared[False], "weight_decay": 0.0},
        *(
            {"params": found, "weight_decay": decay, **({} if lr is None else {"lr": lr, "initial_lr": lr})}
            for (lr, decay), found in own.items()
        ),
    ]


def _checked(settings: Mapping[str, float], where: str) -> dict[str, float]:
    # S4 writes None where a parameter has the rate of the others.
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name not in ("lr", "weight_decay") or not 0 <= value < math.inf:
            raise ValueError(
                f"{where} may set lr and weight_decay, to finite numbers of at least 0, got {name}={value!r}"
            )
    return given
