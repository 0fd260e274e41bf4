"""Toeplitz matrices beyond the laws: entries by lag, FFT lengths, pieces, large sizes."""

from __future__ import annotations

import pytest
import torch

from matmix.matrices import CausalToeplitz, DecayingToeplitz, Matrix, Toeplitz
from matmix.ops import fft


def test_entries_by_lag() -> None:
    taps = torch.arange(-4.0, 5.0)
    dense = Toeplitz(taps.view(1, 1, 9)).to_dense()[0, 0]
    place = torch.arange(5.0)
    assert torch.equal(dense, place[:, None] - place)
    causal = CausalToeplitz(taps[4:].view(1, 1, 5)).to_dense()[0, 0]
    assert torch.equal(causal, dense.tril())


def test_fast_len() -> None:
    for length in range(1, 5000):
        fast = fft.fast_len(length)
        assert length <= fast <= max(4 * length / 3, length + 7)
        odd = fast
        while odd % 2 == 0:
            odd //= 2
        assert odd in (1, 3, 5, 9)


@pytest.mark.parametrize("shape", [((1, 1), (3, 4, 5)), ((3, 4), (3, 4, 5)), ((3, 1), (1, 4, 1)), ((1, 4), (2, 4, 8))])
@pytest.mark.parametrize("piece", [1, 4096, 20000, 60000])
def test_pieces_do_not_change_the_product(monkeypatch: pytest.MonkeyPatch, shape: tuple, piece: int) -> None:
    (batch, heads), (samples, columns, width) = shape
    matrix = Toeplitz(torch.randn(batch, heads, 399, dtype=torch.float64))
    values = torch.randn(samples, columns, 200, width, dtype=torch.float64)
    expected = matrix.to_dense() @ values
    monkeypatch.setattr(fft, "_PIECE_BYTES", piece)
    torch.testing.assert_close(matrix._matmul(values), expected)
    torch.testing.assert_close(matrix._rmatmul(values), matrix.to_dense().mT @ values)


@pytest.mark.parametrize("cls", [Toeplitz, CausalToeplitz, DecayingToeplitz])
def test_long_in_float32(cls: type[Matrix]) -> None:
    torch.manual_seed(0)
    matrix = cls.example((3001,), 1, 1, torch.float32)
    values = torch.randn(1, 1, 3001, 2)
    dense = matrix.to_dense().double()
    expected, scale = dense @ values.double(), float((dense.abs() @ values.double().abs()).max())
    assert float((matrix.matmul(values) - expected).abs().max()) < 1e-6 * scale
