"""Bands, selections, Monarch and butterfly matrices: what their laws do not say."""

import pytest
import torch

from matmix.matrices import Banded, Butterfly, LowRank, Monarch, Selection


def test_bands_stand_at_their_offsets() -> None:
    bands = torch.arange(1.0, 9.0).view(1, 1, 4, 2)
    dense = Banded.of(bands, (1, -2)).to_dense()[0, 0]
    expected = torch.tensor([[0, 1, 0, 0], [0, 0, 3, 0], [6, 0, 0, 5], [0, 8, 0, 0]], dtype=torch.float32)
    assert torch.equal(dense, expected)


def test_bands_beyond_the_sequence_and_twice() -> None:
    matrix = Banded.of(torch.randn(1, 2, 3, 3, dtype=torch.float64), (5, 0, 0))
    values = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    for turned in (matrix, matrix.mT):
        torch.testing.assert_close(turned.matmul(values), turned.to_dense() @ values)
    torch.testing.assert_close(matrix.diagonal(), matrix.bands[..., 1:].sum(-1))
    with pytest.raises(ValueError, match="one offset for each of the K bands"):
        Banded.of(matrix.bands, (1, 2))


def test_selection_is_max_pooling() -> None:
    values = torch.randn(2, 3, 8, 1)
    _, index = torch.nn.functional.max_pool1d(values.squeeze(-1), 2, return_indices=True)
    matrix = Selection.of(index, 8)
    assert torch.equal(matrix.matmul(values), values.unflatten(2, (4, 2)).amax(3))
    assert tuple(matrix.shape) == (2, 3, 4, 8)


def test_selection_adds_up_and_leaves_out() -> None:
    matrix = Selection.of(torch.tensor([[[2, -1, 2, 0]]]), 3)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 1, 4, 1)
    assert matrix.rmatmul(values).flatten().tolist() == [8.0, 0.0, 5.0]
    assert matrix.matmul(values[:, :, :3]).flatten().tolist() == [4.0, 0.0, 4.0, 1.0]
    with pytest.raises(ValueError, match=r"index must lie in -1 .. 2, got 0 .. 3"):
        Selection.of(torch.tensor([[[0, 3]]]), 3)
    with pytest.raises(ValueError, match="index must be integers"):
        Selection.of(torch.zeros(1, 1, 2), 3)


def test_monarch_is_rows_then_columns() -> None:
    """On the token grid: every row by its own block, then every column by its own."""
    matrix = Monarch.example((3, 4), heads=2, batch=2)
    values = torch.randn(2, 2, 12, 1, dtype=torch.float64)
    grid = values.view(2, 2, 3, 4).clone()
    for row in range(3):
        grid[:, :, row] = (matrix.right[:, :, row] @ grid[:, :, row].unsqueeze(-1)).squeeze(-1)
    for column in range(4):
        grid[..., column] = (matrix.left[:, :, column] @ grid[..., column].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(matrix.matmul(values), grid.view(2, 2, 12, 1))


@pytest.mark.parametrize("heads", [1, 3])
def test_monarch_head_by_head(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Monarch.example((3, 4), heads=heads, batch=1)
    blocks.left.requires_grad_(), blocks.right.requires_grad_()
    tokens = torch.randn(2, 12, heads, 5, dtype=torch.float64, requires_grad=True)

    def product(*parts: torch.Tensor) -> torch.Tensor:
        return Monarch(*parts[:2]).matmul(parts[2].transpose(1, 2))

    given = (blocks.left, blocks.right, tokens)
    expected = product(*given)
    expected_grads = torch.autograd.grad(expected.square().sum(), given)
    calls = []
    by_head = Monarch._by_head
    monkeypatch.setattr("matmix.matrices.monarch.WORTH", 1)
    monkeypatch.setattr("matmix.matrices.monarch.Monarch.dense_below", 0)
    monkeypatch.setattr(Monarch, "_by_head", lambda self, values: calls.append(1) or by_head(self, values))
    mixed = product(*given)
    assert calls
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(torch.autograd.grad(mixed.square().sum(), given), expected_grads)
    assert torch.autograd.gradgradcheck(product, given, fast_mode=True)
    every = torch.func.vmap(lambda sample: product(blocks.left, blocks.right, sample.unsqueeze(0)))(tokens)
    torch.testing.assert_close(every.squeeze(1), expected)


@pytest.mark.parametrize(("length", "split"), [(1, (1, 1)), (12, (3, 4)), (13, (1, 13)), (4096, (64, 64))])
def test_monarch_split(length: int, split: tuple[int, int]) -> None:
    assert Monarch.split(length) == split


def test_butterfly_holds_the_hadamard_transform() -> None:
    blocks = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).expand(1, 1, 3, 4, 2, 2)
    two = blocks[0, 0, 0, 0]
    hadamard = torch.kron(torch.kron(two, two), two)
    matrix = Butterfly.of(blocks, 8)
    assert torch.equal(matrix.to_dense()[0, 0], hadamard)
    values = torch.randn(2, 3, 8, 2)
    torch.testing.assert_close(matrix.matmul(values), hadamard @ values)
    # Another length is the leading block.
    assert torch.equal(Butterfly.of(blocks, 5).to_dense()[0, 0], hadamard[:5, :5])
    with pytest.raises(ValueError, match=r"blocks over 9 tokens must be \(B or 1, H, 4, 8, 2, 2\)"):
        Butterfly.of(blocks, 9)


def test_low_rank_of_rank_zero_is_zero() -> None:
    matrix = LowRank(torch.zeros(1, 1, 5, 0), torch.zeros(1, 1, 3, 0))
    out = matrix.matmul(torch.randn(2, 4, 3, 6))
    assert tuple(out.shape) == (2, 4, 5, 6) and not bool(out.any())
