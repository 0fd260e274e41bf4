"""S4D against published numbers: kernels of two code bases, spectra, the bidirectional matrix, the loader."""

from __future__ import annotations

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
def test_published_kernel_of_the_full_code(name: str, discretization: str) -> None:
    """There: the imaginary part of A with a minus, dt by exp or softplus, B apart, one kernel a `channel`."""
    fixture = load_fixture(f"sequence/s4_kernel_diag_{name}")
    state = fixture.state()
    step = torch.nn.functional.softplus(state["inv_dt"]) if name.endswith("softplus") else state["inv_dt"].exp()
    for channel, weights in enumerate(state["C"]):
        kernel = S4DKernel(6, 8, "lin", discretization, 0.1, 0.1, 1).double()
        product = torch.view_as_complex(weights) * torch.view_as_complex(state["B"][0])
        kernel.load_state_dict(
            {
                "C": torch.view_as_real(product),
                "log_dt": step[:, 0].log(),
                "log_A_real": state["A_real"],
                "A_imag": -state["A_imag"],
            }
        )
        expected = torch.tensor(fixture.expected()["values"], dtype=torch.float64).view(2, 6, 20)[channel]
        torch.testing.assert_close(kernel(20)[0].taps()[0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["lin", "inv", "legs"])
def test_published_spectra(name: str) -> None:
    fixture = load_fixture("sequence/s4d_spectra")
    eigenvalues, weights = spectrum(name, 16)
    # Published with the other of each conjugate pair, and in float32.
    fixture.check(eigenvalues.conj(), "output" if name == "lin" else name, atol=2e-5, rtol=1e-6)
    if name == "legs":
        fixture.check(weights.abs(), "legs_B_abs", atol=2e-6)
        modes = S4D(1, d_state=16, spectrum="legs").kernel.A_imag
        torch.testing.assert_close(modes[0], eigenvalues.imag.float())


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
    mixer = S4D(3, d_state=4, bidirectional=True).double()
    dense = mixer.matrix(torch.zeros(1, 7, 3, dtype=torch.float64)).to_dense()[0]
    forward, reverse = (kernel.taps()[0] for kernel in mixer.kernel(7))
    for i in range(7):
        for j in range(7):
            expected = forward[:, i - j] if i >= j else reverse[:, j - i - 1]
            torch.testing.assert_close(dense[:, i, j], expected + (mixer.D if i == j else 0))


def kernel_by_definition(kernel: S4DKernel, length: int) -> Tensor:
    """2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{l dt A_n} in float64."""
    dt = kernel.log_dt.double().exp().unsqueeze(-1)
    rate = torch.complex(-kernel.log_A_real.double().exp(), kernel.A_imag.double())
    weights = torch.view_as_complex(kernel.C.double()) * torch.expm1(dt * rate) / rate
    lags = torch.arange(length, dtype=torch.float64)
    return 2 * (weights.unsqueeze(-1) * (dt * rate).unsqueeze(-1).mul(lags).exp()).sum(1).real


def test_float32_kernel_keeps_its_phase_at_length_16384() -> None:
    torch.manual_seed(0)
    kernel = S4DKernel(8, 64, "lin", "zoh", 0.001, 0.1, 1)
    expected = kernel_by_definition(kernel, 16384).detach()
    error = (kernel(16384)[0].taps()[0].detach().double() - expected).abs().max() / expected.abs().max()
    assert float(error) < 2e-5


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"spectrum": "legs", "discretization": "bilinear"}])
def test_laws_of_the_options(options: dict[str, object]) -> None:
    laws = ["product", "causal", "length", "mask_trim", "recurrent", "aligned", "gradients", "small", "compiles"]
    check_mixer(lambda dim, grid: S4D(dim, grid, d_state=4, **options), laws=laws)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("spectrum='quad'", "spectrum must be one of lin, inv, legs, got 'quad'"),
        ("d_state=3", "d_state must be a positive even integer, got 3"),
        ("discretization='euler'", "discretization must be one of zoh, bilinear, got 'euler'"),
        ("dt_min=1.0", "need 0 < dt_min <= dt_max, got 1.0, 0.1"),
    ],
)
def test_errors(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(f"s4d({options})", 4)
    with pytest.raises(NotImplementedError, match="bidirectional"):
        create_mixer("s4d(bidirectional=True)", 4).init_state(1)
