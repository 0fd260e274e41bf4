"""S4D against published numbers: kernels of two code bases, spectra, the bidirectional matrix, the loader."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from matmix import create_mixer, load_published
from matmix.mixers.s4d import S4D, S4DKernel, spectrum
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize("name", ["s4d_kernel_minimal", "s4d_kernel_minimal_default_spectrum"])
def test_published_kernel(name: str) -> None:
    fixture = load_fixture(f"sequence/{name}")
    config = fixture.config
    mixer = S4D(config["d_model"], d_state=config["N"]).double()
    kernel = {f"kernel.{key}": value for key, value in fixture.state().items()}
    rest = {key: value for key, value in mixer.state_dict().items() if not key.startswith("kernel.")}
    rest["output_linear.0.bias"] = rest.pop("output_linear.bias")
    rest["output_linear.0.weight"] = rest.pop("output_linear.weight").unsqueeze(-1)
    load_published(mixer, {**kernel, **rest}, source="state-spaces/s4")
    matrix = mixer.matrix(torch.zeros(1, config["L"], config["d_model"], dtype=torch.float64))
    fixture.check(matrix.terms[0].taps()[0])
    column = matrix.to_dense()[0, :, :, 0].clone()
    column[:, 0] -= mixer.D
    fixture.check(column)


@pytest.mark.parametrize(("name", "discretization"), [("bilinear_exp", "bilinear"), ("zoh_softplus", "zoh")])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_published_kernel_of_the_full_code(name: str, discretization: str, bidirectional: bool) -> None:
    """Its two channels are the two ways of a bidirectional model, or a model each; loaded as a whole S4Block."""
    fixture = load_fixture(f"sequence/s4_kernel_diag_{name}")
    spec = f"s4d(d_state=8, discretization={discretization!r}, dt_transform={name.split('_')[1]!r}"
    mixer = create_mixer(f"{spec}, causal={not bidirectional}, groups=6)", 6).double()
    state = fixture.state()
    whole = {"layer.D": torch.randn(1, 6), "output_linear.0.weight": torch.randn(12, 6, 1)}
    whole |= {f"layer.kernel.{key}": value for key, value in state.items()} | {"output_linear.0.bias": torch.randn(12)}
    kernels = []
    for channels in (state["C"],) if bidirectional else state["C"].split(1):
        load_published(mixer, {**whole, "layer.kernel.C": channels}, source="state-spaces/s4")
        assert isinstance(mixer, S4D)
        kernels += [kernel.taps()[0] for kernel in mixer.kernel(20)]
    fixture.check(torch.stack(kernels))


def test_shared_and_real_systems_load() -> None:
    """Sets of A and B for all channels in turn, real modes: K[l] = 2 sum_n C_n B_n (e^(dt A) - 1) / A e^(l dt A)."""
    torch.manual_seed(0)
    raw, decay, inputs, outputs = torch.randn(6), torch.randn(2, 5), torch.randn(1, 2, 5), torch.randn(1, 6, 5)
    mixer = create_mixer("s4d(d_state=5, real=True, groups=2, dt_transform='softplus')", 6).double()
    kernel = {"inv_dt": raw.unsqueeze(-1), "A_real": decay, "B": inputs, "C": outputs}
    state = {f"layer.kernel.{key}": value for key, value in kernel.items()}
    rest = {
        "layer.D": torch.randn(1, 6),
        "output_linear.weight": torch.randn(12, 6),
        "output_linear.bias": torch.ones(12),
    }
    load_published(mixer, {**state, **rest}, source="state-spaces/s4")
    assert isinstance(mixer, S4D)
    taps = mixer.kernel(9)[0].taps()[0]
    for channel in range(6):
        dt, rate = torch.nn.functional.softplus(raw[channel].double()), -decay[channel % 2].double().exp()
        weight = outputs[0, channel].double() * inputs[0, channel % 2].double()
        expected = [2 * (weight * (torch.expm1(dt * rate) / rate) * (dt * rate * l).exp()).sum() for l in range(9)]
        torch.testing.assert_close(taps[channel], torch.stack(expected))


@pytest.mark.parametrize("name", ["lin", "inv", "legs", "quad"])
def test_published_spectra(name: str) -> None:
    fixture = load_fixture("sequence/s4d_spectra")
    eigenvalues, weights = spectrum(name, 16)
    # Published with the other of each conjugate pair, and in float32.
    fixture.check(eigenvalues.conj(), "output" if name == "lin" else name, atol=2e-5, rtol=1e-6)
    if name == "legs":
        fixture.check(weights.abs(), "legs_B_abs", atol=2e-6)
        modes = S4D(1, d_state=16, spectrum="legs").kernel.A_imag
        assert modes is not None
        torch.testing.assert_close(modes[0], eigenvalues.imag.float())


def test_other_spectra() -> None:
    """The formulas of the published code that no case holds."""
    torch.testing.assert_close(spectrum("real", 6)[0], torch.tensor([-1.0, -2.0, -3.0]) + 0j, check_dtype=False)
    assert spectrum("inv2", 4)[0].imag.tolist() == pytest.approx([12 / math.pi, 4 / math.pi])
    modes = S4D(3, d_state=4, spectrum="rand").kernel.A_imag
    assert modes is not None and len(modes.unique()) == 6  # every channel its own
    steps = S4D(400, d_state=2, dt_transform="softplus", dt_min=0.01, dt_max=0.02).kernel.log_dt
    dt = torch.nn.functional.softplus(steps.detach())
    assert 0.00999 < float(dt.min()) < 0.0102 and 0.0198 < float(dt.max()) < 0.02001


def test_legs_is_the_normal_part_of_hippo() -> None:
    """With their conjugates they are the eigenvalues of HiPPO-LegS plus its rank-one part."""
    size = 6
    root = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    normal = -torch.outer(root, root).tril(-1) - torch.diag(torch.arange(size) + 1.0) + torch.outer(root, root) / 2
    eigenvalues, _ = spectrum("legs", size)
    both = torch.cat([eigenvalues, eigenvalues.conj()])
    expected = torch.linalg.eigvals(normal)
    order = lambda z: z[z.imag.argsort()]
    torch.testing.assert_close(order(both), order(expected))


def test_the_reverse_kernel_starts_at_lag_1() -> None:
    mixer = S4D(3, d_state=4, causal=False).double()
    dense = mixer.matrix(torch.zeros(1, 7, 3, dtype=torch.float64)).to_dense()[0]
    forward, reverse = (kernel.taps()[0] for kernel in mixer.kernel(7))
    for i in range(7):
        for j in range(7):
            expected = forward[:, i - j] if i >= j else reverse[:, j - i - 1]
            torch.testing.assert_close(dense[:, i, j], expected + (mixer.D if i == j else 0))


def kernel_by_definition(kernel: S4DKernel, length: int) -> Tensor:
    """2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{l dt A_n} in float64."""
    dt = kernel.log_dt.double().exp().unsqueeze(-1)
    assert kernel.A_imag is not None
    rate = torch.complex(-kernel.log_A_real.double().exp(), kernel.A_imag.double())
    weights = torch.view_as_complex(kernel.C.double()) * torch.expm1(dt * rate) / rate
    lags = torch.arange(length, dtype=torch.float64)
    return 2 * (weights.unsqueeze(-1) * (dt * rate).unsqueeze(-1).mul(lags).exp()).sum(1).real


def test_float32_kernel_keeps_its_phase_at_length_16384() -> None:
    torch.manual_seed(0)
    kernel = S4DKernel(8, 64)
    expected = kernel_by_definition(kernel, 16384).detach()
    error = (kernel(16384)[0].taps()[0].detach().double() - expected).abs().max() / expected.abs().max()
    assert float(error) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"spectrum": "legs", "discretization": "bilinear"},
        {"real": True, "spectrum": "real", "causal": False},
        {"groups": 2, "dt_transform": "softplus"},
    ],
)
def test_laws_of_the_options(options: dict[str, object]) -> None:
    laws = ["product", "causal", "length", "mask_trim", "recurrent", "aligned", "gradients", "small", "compiles"]
    check_mixer(lambda dim, grid: S4D(dim, grid, d_state=4, **options), laws=laws)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("spectrum='fout'", "spectrum must be one of 'lin', .* 'real', 'rand', got 'fout'"),
        ("d_state=3", "d_state must be a positive even integer, got 3"),
        ("discretization='euler'", "discretization must be one of 'zoh', 'bilinear', got 'euler'"),
        ("dt_transform='relu'", "dt_transform must be one of 'exp', 'softplus', got 'relu'"),
        ("groups=3", "groups must be a positive divisor of dim=4, got 3"),
        ("dt_min=1.0", "need 0 < dt_min <= dt_max, got 1.0, 0.1"),
    ],
)
def test_errors(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(f"s4d({options})", 4)
    with pytest.raises(NotImplementedError, match=r"S4D\(causal=False\) is not recurrent"):
        create_mixer("s4d(causal=False)", 4).init_state(1)
