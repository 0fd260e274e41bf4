"""What every time-series model is: one call, whatever the goal, and a name.

    @register_series_model("dlinear")
    class DLinear(SeriesModel):
        def __init__(self, *, length, channels, goal="forecast", horizon=0, classes=0, mixer="default", kernel=25): ...

A model reads a window of `L` steps of `C` series and gives, by its `goal`, the next `horizon` steps ("forecast"), the
window itself ("imputation", "anomaly") or scores of classes ("classification").
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from matmix.mixers.calls import Input, explain_inputs, explaining, is_said
from matmix.mixers.options import checking_options
from matmix.ranges import Count, Whole, shown
from matmix.spec import hint, unknown_option

Goal = Literal["forecast", "imputation", "anomaly", "classification"]
"""What a model is asked for."""
_Model = TypeVar("_Model", bound=type["SeriesModel"])
_MODELS: dict[str, type[SeriesModel]] = {}


class SeriesModel(nn.Module):
    """Base of all time-series models.

    Args:
        length: L, steps of the window that is read.
        channels: C, series side by side.
        goal: what the output is.
        horizon: steps to forecast; 0 for any other goal.
        classes: for goal="classification"; 0 for any other.
        marks: K, features of the time of a step; 0 for none.

    Raises:
        ValueError: if a goal does not get what it needs, or `goal` is none of them.
    """

    goals: ClassVar[tuple[Goal, ...]] = get_args(Goal)
    """What the model can be asked for."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checking_options(cls.__init__)  # type: ignore[method-assign]
        if "forward" in vars(cls):
            cls.forward = explaining(cls.forward)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        length: Count,
        channels: Count,
        goal: Goal = "forecast",
        horizon: Whole = 0,
        classes: Whole = 0,
        marks: Whole = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if goal not in self.goals:
            raise ValueError(f"{name}: goal must be one of {', '.join(self.goals)}, got {goal!r}")
        for option, value, needed in (("horizon", horizon, "forecast"), ("classes", classes, "classification")):
            if (goal == needed) != (value > 0):
                raise ValueError(
                    f"{name}: {option} must be at least 1 with goal={needed!r} and 0 with any other, got "
                    f"{option}={value} with goal={goal!r}"
                )
        self.goal: Goal = goal
        self.length, self.channels, self.horizon, self.classes = length, channels, horizon, classes
        self.marks = marks

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        observed: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Forecast (B, horizon, C), the window again (B, L, C), or scores (B, classes).

        Args:
            x: values (B, L, C).
            marks: features of the time of each step (B, L, K), such as hour and weekday.
            future_marks: those of the steps to forecast (B, horizon, K), or of all steps of `start`.
            mask: (B, L) bool, True = a real step; the rest is padding.
            observed: (B, L, C) bool, True = a known value, for goal="imputation".
            start: what a decoder begins with (B, any + horizon, C); by default the last steps of x, then zeros.
        """

    def explain(self, error: Exception, method: str, given: dict[str, Any]) -> None:
        """After an error in a forward: one in its place that says which argument did not fit."""
        if is_said(error):
            return
        values = f"B {self.length} {self.channels}"
        wanted = {
            "x": Input(values, needed=True), "marks": Input(f"B {self.length} {self.marks}"),
            "future_marks": Input(f"B n {self.marks}"),
            "mask": Input(f"B {self.length}", torch.bool), "observed": Input(values, torch.bool),
            "start": Input(f"B n {self.channels}"),
        }  # fmt: skip
        explain_inputs(self, error, wanted, given)

    def check(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> None:
        """Refuse what does not fit the model.

        Raises:
            ValueError: for an argument of another shape; it names the argument, its shape and what is allowed.
        """
        name, (batch, length, channels) = type(self).__name__, (len(x), self.length, self.channels)
        if x.shape[1:] != (length, channels):
            raise ValueError(f"{name}: x must be (B, {length}, {channels}), got {tuple(x.shape)}")
        if marks is not None and marks.shape != (batch, length, self.marks):
            built = f" (it was built with marks={self.marks})"
            raise ValueError(
                f"{name}: marks must be ({batch}, {length}, {self.marks}){built}, got {tuple(marks.shape)}"
            )
        for word, given, shape in (("mask", mask, (batch, length)), ("observed", observed, (batch, length, channels))):
            if given is not None and (given.dtype != torch.bool or given.shape != shape):
                raise ValueError(
                    f"{name}: {word} must be bool of shape {shape}, got {given.dtype} {tuple(given.shape)}"
                )


def register_series_model(name: str) -> Callable[[_Model], _Model]:
    """Give a class a name.

    Raises:
        ValueError: for a name that is taken.
    """

    def register(cls: _Model) -> _Model:
        if name in _MODELS and _MODELS[name] is not cls:
            raise ValueError(f"a time-series model {name!r} is there already: {_MODELS[name].__qualname__}")
        _MODELS[name] = cls
        return cls

    return register


def list_series_models() -> list[str]:
    """Names for `create_series_model`."""
    return sorted(_MODELS)


def series_model_class(name: str) -> type[SeriesModel]:
    """The class behind a name.

    Raises:
        ValueError: for a name that is not there; close ones are listed.
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(f"unknown time-series model {shown(name)}{hint(name, list_series_models())}")
    return _MODELS[name]


def create_series_model(name: str, /, **options: Any) -> SeriesModel:
    """A model by name.

    Raises:
        ValueError: for a name or an option that is not there; close ones are listed.
    """
    cls = series_model_class(name)
    known = [parameter for parameter in inspect.signature(cls).parameters if parameter != "self"]
    for option in options:
        if option not in known:
            raise ValueError(unknown_option(name, option, known))
    return cls(**options)
