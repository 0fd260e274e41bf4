"""Every time-series model against the outputs of the published code: all cases of tests/reference/time_series by name.

A model joins by a line in `CASES`: the stem of its cases, its name here, and which of its options stand in their
configuration under which word.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from matmix import create_mixer, load_published, surgery
from matmix.inspect import matrices as inspect_matrices
from matmix.inspect import record
from sequence.series.models import create_series_model, list_series_models
from sequence.series.models.base import SeriesModel, series_model_class
from sequence.series.models.s_mamba import scan_spec
from tests.fixtures import ROOT, Fixture, load_fixture

GOALS = {
    "forecast": "forecast",
    "imputation": "imputation",
    "anomaly_detection": "anomaly",
    "classification": "classification",
}


class Case(NamedTuple):
    """How the configuration of the cases of one published model becomes options of ours."""

    model: str
    words: dict[str, str]  # ours: theirs
    fixed: tuple[tuple[str, Any], ...] = ()  # options that have no word there: what the published code does wrong, say


ENCODER = {"dim": "d_model", "depth": "e_layers", "heads": "n_heads", "hidden": "d_ff"}
MAMBA = {"dim": "d_model", "d_state": "d_ff", "d_conv": "d_conv", "expand": "expand"}
STAGED = {
    "dims": "dims", "depths": "num_blocks", "kernel": "large_size", "small": "small_size", "patch": "patch_size",
    "stride": "patch_stride", "mlp_ratio": "ffn_ratio", "affine": "affine", "downsample": "downsample_ratio",
}  # fmt: skip
CASES = {
    "autoformer": Case(
        "autoformer",
        {
            "dim": "d_model",
            "depth": "e_layers",
            "hidden": "d_ff",
            "decoder_depth": "d_layers",
            "start_steps": "label_len",
            "kernel": "moving_avg",
            "factor": "factor",
        },
        (("published", True),),
    ),
    "transformer": Case(
        "transformer", {**ENCODER, "decoder_depth": "d_layers", "start_steps": "label_len"}, (("published", True),)
    ),
    "dlinear": Case("dlinear", {"kernel": "moving_avg", "individual": "individual"}, (("published", True),)),
    "dlinear_individual": Case("dlinear", {"kernel": "moving_avg", "individual": "individual"}),
    "itransformer": Case("itransformer", ENCODER, (("published", True),)),
    "patchtst": Case("patchtst", ENCODER, (("published", True),)),
    "mamba": Case("mamba", MAMBA, (("published", True),)),
    "mamba_simple": Case("mamba_simple", {**MAMBA, "depth": "e_layers"}),
    "s_mamba": Case(
        "s_mamba",
        {"dim": "d_model", "depth": "e_layers", "hidden": "d_ff", "d_state": "d_state"},
        (("published", True),),
    ),
    "timesnet": Case(
        "timesnet",
        {"dim": "d_model", "depth": "e_layers", "hidden": "d_ff", "periods": "top_k", "branches": "num_kernels"},
        (("published", True),),
    ),
    "tsmixer": Case("tsmixer", {"depth": "e_layers", "hidden": "d_model"}),
    "moderntcn": Case("moderntcn", STAGED, (("published", True),)),
    "ffnet_ts": Case("ffnet_ts", STAGED),
}
FIXTURES = [
    (name, stem)
    for stem in CASES
    for goal in GOALS
    for name in (f"{stem}_{goal}", f"tslib_{stem}_{goal}")
    if (ROOT / "time_series" / f"{name}.json").exists()
]
FULL = [(f"full_etth1_{stem}", stem) for stem in CASES if (ROOT / "time_series" / f"full_etth1_{stem}.json").exists()]


def options_of(fixture: Fixture, case: Case) -> dict[str, Any]:
    """The options of our model; one that its constructor lacks is left to its error."""
    config = fixture.config
    goal = GOALS[config["task_name"].removeprefix("long_term_")]
    marks = fixture.data["inputs"].get("x_mark_enc")
    options: dict[str, Any] = {"length": config["seq_len"], "channels": config["enc_in"], "goal": goal}
    options["horizon"] = config["pred_len"] if goal == "forecast" else 0
    options["classes"] = config["num_class"] if goal == "classification" else 0
    options["marks"] = marks["shape"][2] if marks and marks["kind"] == "normal" else 0
    options |= {ours: config[theirs] for ours, theirs in case.words.items()} | dict(case.fixed)
    if "affine" in options:  # 0 or 1 there
        options["affine"] = bool(options["affine"])
    if "dims" in options:  # the published code is also told those of stages that it does not build
        options["dims"] = options["dims"][: len(options["depths"])]
    return options


def inputs_of(fixture: Fixture, model: SeriesModel) -> dict[str, Tensor]:
    """What our model is called with."""
    given = {name: fixture.input(name) for name, entry in fixture.data["inputs"].items() if entry is not None}
    found = {"x": given["x_enc"]}
    if model.goal == "classification" and "x_mark_enc" in given:
        found["mask"] = given["x_mark_enc"] > 0
    elif model.marks and "x_mark_enc" in given:
        found["marks"] = given["x_mark_enc"]
    if model.marks and "x_mark_dec" in given and model.goal == "forecast":
        found["future_marks"] = given["x_mark_dec"]
    if "x_dec" in given:
        found["start"] = given["x_dec"]
    if "mask" in given:
        found["observed"] = given["mask"] > 0
    return found


def check_published(name: str, stem: str) -> None:
    fixture = load_fixture(f"time_series/{name}")
    case = CASES[stem]
    model = create_series_model(case.model, **options_of(fixture, case)).double().eval()
    load_published(model, fixture.state(), source=fixture.data["source"].split("@")[0])
    with torch.no_grad():
        fixture.check(model(**inputs_of(fixture, model)), **fixture.data["tolerance"]["float64"])


@pytest.mark.parametrize(("name", "stem"), FIXTURES, ids=[name for name, _ in FIXTURES])
def test_published_outputs(name: str, stem: str) -> None:
    check_published(name, stem)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stem"), FULL, ids=[name for name, _ in FULL])
def test_published_outputs_at_full_size(name: str, stem: str) -> None:
    check_published(name, stem)


class Swap(NamedTuple):
    """A published model in which dense matrices stand in the place of the mixers."""

    stem: str  # of the model that it is made of
    spec: str  # with words of its configuration
    where: str
    options: dict[str, Any] | None = None  # of the model; a word of the configuration stands for its value


JUSTDENSE = {
    "jd_transformer": Swap("transformer", "justdense(heads={n_heads})", "encoder.*"),
    # its encoder's moving average has 25 steps whatever its configuration says
    "jd_autoformer": Swap("autoformer", "justdense", "encoder.*.mixer", {"kernel": 25, "decoder_kernel": "moving_avg"}),
    "jd_patchtst": Swap("patchtst", "justdense(heads={n_heads})", "encoder.*"),
    "jd_mamba": Swap("mamba", "justdense(wrapper='mamba', d_conv=1)", "mixer"),
    "jd_s_mamba": Swap("s_mamba", scan_spec("justdense(wrapper='mamba', heads={some})"), "encoder.*"),
    # as published, in the place of the perceptron: attention stays; at first in the place of attention
    "jd_itransformer": Swap("itransformer", "justdense(heads={tokens})", "*.mlp.mixer", {"channel_mixer": "identity"}),
    "jd_itransformer_first_commit": Swap("itransformer", "justdense", "encoder.*"),
}
SWAPPED = [
    (f"{stem}_{goal}", stem)
    for stem in JUSTDENSE
    for goal in GOALS
    if (ROOT / "time_series" / f"{stem}_{goal}.json").exists()
]
FULL_SWAPPED = [
    (f"full_etth1_{stem}", stem) for stem in JUSTDENSE if (ROOT / "time_series" / f"full_etth1_{stem}.json").exists()
]


def check_swapped(name: str, stem: str) -> None:
    fixture, swap = load_fixture(f"time_series/{name}"), JUSTDENSE[stem]
    case, config = CASES[swap.stem], fixture.config
    options = options_of(fixture, case) | {
        name: config.get(value, value) for name, value in (swap.options or {}).items()
    }
    model = create_series_model(case.model, **options).double().eval()
    goes_on = config["task_name"] in ("long_term_forecast", "imputation")
    some = config["d_model"] // 2 if goes_on else config["n_heads"]
    spec = swap.spec.format(**config, some=some, tokens=config["enc_in"] + options["marks"])
    surgery.replace(model, spec, where=swap.where, keep_causal=False)  # Mamba is causal, its replacement is not
    load_published(model, fixture.state(), source="Thrillcrazyer/JustDense")
    with torch.no_grad():
        fixture.check(model(**inputs_of(fixture, model)), **fixture.data["tolerance"]["float64"])


@pytest.mark.parametrize(("name", "stem"), SWAPPED, ids=[name for name, _ in SWAPPED])
def test_published_dense_matrices(name: str, stem: str) -> None:
    check_swapped(name, stem)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stem"), FULL_SWAPPED, ids=[name for name, _ in FULL_SWAPPED])
def test_published_dense_matrices_at_full_size(name: str, stem: str) -> None:
    check_swapped(name, stem)


# ---------------------------------------------------------------------- what every model does

SMALL = {"dim": 8, "depth": 1, "hidden": 12, "heads": 2}  # those that a model has


def small(name: str, goal: str = "forecast", **more: Any) -> SeriesModel:
    """A small model for windows of 24 steps of 3 series."""
    known = inspect.signature(series_model_class(name)).parameters
    options = {word: value for word, value in SMALL.items() if word in known} | more
    sizes = {"horizon": 4 if goal == "forecast" else 0, "classes": 5 if goal == "classification" else 0}
    return create_series_model(name, **{"length": 24, "channels": 3, "goal": goal} | sizes | options)


def test_every_goal_has_its_shape_and_no_example_depends_on_its_batch() -> None:
    """Also with unobserved values and padding that are NaN: neither is read."""
    shapes = {"forecast": (4, 3), "imputation": (24, 3), "anomaly": (24, 3), "classification": (5,)}
    x = torch.randn(3, 24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observed = torch.rand(3, 24, 3, generator=torch.Generator().manual_seed(1)) > 0.3
    mask = torch.arange(24) < torch.tensor([[24], [17], [20]])
    for name in list_series_models():
        for goal, shape in shapes.items():
            more = {"imputation": {"observed": observed}, "classification": {"mask": mask}}.get(goal, {})
            model = small(name, goal).double().eval()
            with torch.no_grad():
                out = model(x, **more)
                assert out.shape == (3, *shape), (name, goal)
                alone = model(x[1:2], **{word: value[1:2] for word, value in more.items()})
                torch.testing.assert_close(out[1:2], alone, msg=lambda m, n=name, g=goal: f"{n}, {g}: {m}")
                for known in more.values():
                    hidden = x.masked_fill(~(known if known.dim() == 3 else known.unsqueeze(-1)), torch.nan)
                    assert torch.equal(model(hidden, **more), model(hidden.nan_to_num(0), **more)), (name, goal)


def test_a_classifier_sees_level_and_size() -> None:
    """Of each series, padded ones too, unless windows are normalised, which only takes being told to."""
    x = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(24) < torch.tensor([[24], [17]])

    def moved(name: str, **options: bool) -> float:
        torch.manual_seed(0)
        model = small(name, "classification", **options).double().eval()
        for parameter in model.parameters():  # the published start of DLinear is one number
            parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
        with torch.no_grad():
            return (model(2 * x + 3, mask=mask) - model(x, mask=mask)).abs().max().item()

    blind = set()
    for name in list_series_models():
        assert moved(name) > 1e-2, name
        for option in {"normalise", "revin"} & set(inspect.signature(series_model_class(name)).parameters):
            assert moved(name, **{option: True}) < 1e-4, name
            blind.add(name)
    assert blind >= {"patchtst", "itransformer", "s_mamba", "moderntcn", "ffnet_ts", "tsm2", "tsmixer"}


def test_dropout_leaves_something_out() -> None:
    """In training, of every model that has it; with 0 everywhere nothing is."""
    x, words = torch.randn(2, 24, 3), ("dropout", "head_dropout")
    for name in list_series_models():
        known = inspect.signature(series_model_class(name)).parameters
        none = dict.fromkeys((word for word in words if word in known), 0.0)
        for option in (None, *none):
            model = small(name, **none | ({option: 0.5} if option else {})).train()
            with torch.no_grad():
                assert torch.equal(model(x), model(x)) == (option is None), (name, option)


def test_every_model_takes_another_mixer_and_trains() -> None:
    x, target = torch.randn(2, 24, 3), torch.randn(2, 4, 3)
    for name in list_series_models():
        torch.manual_seed(0)
        model = small(name)
        torch.manual_seed(0)
        other = small(name, mixer="hydra(head_dim=2, d_state=2)")
        assert any(isinstance(module, create_mixer("hydra", 8).__class__) for module in other.modules()), name
        before, after = dict(model.named_parameters()), dict(other.named_parameters())
        outside = [key for key in before if key in after and "mixer" not in key]
        assert all(torch.equal(before[key], after[key]) for key in outside), f"{name}: the rest starts otherwise"
        optimiser = torch.optim.Adam(other.parameters(), 1e-2)
        losses = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = (other(x) - target).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], (name, losses)


def test_every_model_shows_its_sites_and_their_matrices() -> None:
    x = torch.randn(2, 24, 3)
    for name in list_series_models():
        model = small(name)
        sites = surgery.find(model)
        shown = inspect_matrices(model, x)
        assert len(sites) and {key.partition("#")[0] for key in shown} == {site.name for site in sites}, name
        with torch.no_grad(), record(model.eval()):
            by_matrices = model(x)
        torch.testing.assert_close(by_matrices, model(x), atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    x, mask = torch.randn(2, 24, 3), torch.ones(2, 24)
    for name in list_series_models():
        model = small(name)
        for message, call in (
            (r"x must be \(B, 24, 3\), got \(2, 23, 3\)", lambda m=model: m(x[:, 1:])),
            (r"marks must be \(2, 24, 0\)", lambda m=model: m(x, torch.randn(2, 24, 4))),
            ("mask must be bool", lambda m=model: m(x, mask=mask)),
            ("observed must be bool", lambda m=model: m(x, observed=x)),
            ("horizon must be at least 1 with goal='forecast'", lambda n=name: small(n, horizon=0)),
            ("unknown mixer 'hidra'", lambda n=name: small(n, mixer="hidra")),
        ):
            with pytest.raises(ValueError, match=message):
                call()
