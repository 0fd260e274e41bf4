"""Learned Monarch and butterfly matrices."""

import pytest
import torch

from matmix import create_mixer


def test_monarch_mixes_rows_then_columns_of_an_image() -> None:
    mixer = create_mixer("monarch(heads=2)", 4, (3, 5)).double()
    x = torch.randn(2, 15, 4, dtype=torch.float64)
    image = x.view(2, 3, 5, 2, 2)
    rows = torch.einsum("hacb,nabhw->nachw", mixer.right, image)
    columns = torch.einsum("hcda,nachw->ndchw", mixer.left, rows)
    torch.testing.assert_close(mixer(x), columns.reshape(2, 15, 4))


def test_monarch_resize_keeps_row_sums() -> None:
    mixer = create_mixer("monarch(heads=1)", 2, (4, 6)).double()
    with torch.no_grad():
        mixer.left.fill_(0.3)
        mixer.right.fill_(0.2)
    before = mixer(torch.ones(1, 24, 2, dtype=torch.float64)).mean()
    after = mixer.resize_((8, 9))(torch.ones(1, 72, 2, dtype=torch.float64)).mean()
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("length", [1, 8, 32])
def test_butterfly_starts_orthogonal(length: int) -> None:
    mixer = create_mixer("butterfly", 4, (length,)).double()
    entries = mixer.matrix(torch.randn(1, length, 4, dtype=torch.float64)).to_dense()
    eye = torch.eye(length, dtype=torch.float64).expand_as(entries)
    # Angles were drawn in float32.
    torch.testing.assert_close(entries @ entries.mT, eye, atol=1e-5, rtol=0)


def test_butterfly_resize_repeats_and_cuts() -> None:
    mixer = create_mixer("butterfly(heads=2)", 4, (8,)).double()
    x = torch.randn(1, 32, 4, dtype=torch.float64)
    entries = mixer.matrix(x[:, :8]).to_dense()
    wide = mixer.resize_((32,)).matrix(x).to_dense()
    torch.testing.assert_close(wide, torch.stack([torch.block_diag(*[head] * 4) for head in entries[0]])[None])
    torch.testing.assert_close(mixer.resize_((8,)).matrix(x[:, :8]).to_dense(), entries)


@pytest.mark.parametrize("spec", ["monarch(heads=3)", "butterfly(heads=0)"])
def test_refuses_heads(spec: str) -> None:
    with pytest.raises(ValueError, match=r"heads must be a (positive divisor of dim=8|whole number)"):
        create_mixer(spec, 8, (6,))
