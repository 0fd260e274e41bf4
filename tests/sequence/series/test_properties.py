"""What a time-series model promises beyond the published numbers: series apart, and options that say something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence.series.models import create_series_model

SIZES = {
    "itransformer": {"dim": 8, "depth": 1, "heads": 2, "hidden": 12},
    "patchtst": {"dim": 8, "depth": 1, "heads": 2, "hidden": 12},
    "s_mamba": {"dim": 8, "depth": 1, "hidden": 12, "d_state": 2},
    "mamba": {"dim": 8, "d_state": 2},
    "mamba_simple": {"dim": 8, "depth": 1, "d_state": 2},
    "tsmixer": {"depth": 1, "hidden": 8},
    "moderntcn": {"dims": (4,), "kernel": (5,), "small": (3,)},
    "ffnet_ts": {"dims": (4,), "kernel": (5,), "small": (3,)},
    "tsm2": {"dim": 8, "depth": 1, "d_state": 2},
    "dlinear": {},
}
OTHERS = {
    "itransformer": {"depth": 2, "heads": 4, "act": "relu", "normalise": False},
    "patchtst": {"depth": 2, "heads": 4, "act": "relu", "patch": 8, "stride": 4, "normalise": False},
    "s_mamba": {"depth": 2, "d_state": 4, "act": "relu", "normalise": False},
    "mamba": {"d_state": 4, "d_conv": 2, "expand": 1},
    "mamba_simple": {"depth": 2, "d_state": 4, "d_conv": 2, "expand": 1},
    "tsmixer": {
        "depth": 2,
        "norm": "layer",
        "revin": True,
        "channel_mixer": "identity",
        "mixer": "mlp(hidden=0, act='relu')",
    },
    "moderntcn": {"depths": (2,), "mlp_ratio": 2, "patch": 4, "stride": 2, "revin": False},
    "ffnet_ts": {"depths": (2,), "mlp_ratio": 2, "patch": 4, "stride": 2, "revin": False},
    "tsm2": {"depth": 2, "d_state": 4, "residual": False, "revin": False, "channel_mixer": "identity"},
    "dlinear": {"kernel": 5, "individual": True},
}
"""Another value of options, by model."""


def outputs(name: str, x: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"length": 24, "channels": x.shape[2], "horizon": 4}
    model = create_series_model(name, **sizes | SIZES[name] | options).double().eval()
    for parameter in model.parameters():  # the published start of DLinear is one number
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def test_every_option_says_something() -> None:
    x = torch.randn(2, 24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name, options in OTHERS.items():
        plain = outputs(name, x)
        for option, value in options.items():
            other = outputs(name, x, **{option: value})
            assert other.isfinite().all() and (other - plain).abs().max() > 1e-6, (name, option)


def test_series_in_another_order_give_forecasts_in_that_order() -> None:
    """Where series are a set; to S-Mamba and those with weights of their own for each they are not."""
    x = torch.randn(2, 24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 0, 4, 1, 2])
    for name in ("itransformer", "patchtst", "dlinear"):
        torch.testing.assert_close(outputs(name, x[..., order]), outputs(name, x)[..., order], msg=name)
    assert (outputs("s_mamba", x[..., order]) - outputs("s_mamba", x)[..., order]).abs().max() > 1e-3


def test_sizes_that_do_not_fit_are_refused() -> None:
    for name, message, options in (
        ("mamba", "horizon must be at most length", {"horizon": 25}),
        ("itransformer", "heads must be a positive divisor of dim=8, got 3", {"heads": 3}),
        ("patchtst", "length must be at least 32 with patch=40, got 24", {"patch": 40}),
        ("tsmixer", "norm must be one of 'none', 'batch', 'layer', got 'rms'", {"norm": "rms"}),
        ("moderntcn", "dims and depths must have one number a stage", {"depths": (1, 1)}),
        ("moderntcn", "kernel must have one number a stage", {"kernel": (5, 5)}),
        ("ffnet_ts", "small must have one number a stage", {"small": ()}),
    ):
        sizes: dict[str, Any] = {"length": 24, "channels": 3, "horizon": 4}
        with pytest.raises(ValueError, match=message):
            create_series_model(name, **sizes | SIZES[name] | options)
