"""Max pooling and local attention."""

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer
from matmix.ops import maxima


@pytest.mark.parametrize(("grid", "window"), [((9,), 3), ((4, 7), 3), ((5, 2), 5)])
def test_max_pooling_is_the_layer_and_so_is_its_gradient(grid: tuple[int, ...], window: int) -> None:
    x = torch.randn(2, torch.Size(grid).numel(), 6, dtype=torch.float64, requires_grad=True)
    pool = F.max_pool1d if len(grid) == 1 else F.max_pool2d
    expected = pool(x.mT.unflatten(-1, grid), window, 1, window // 2).flatten(2).mT
    out = create_mixer(f"max_pooling(window={window})", 6, grid)(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    weight = torch.randn_like(out)
    grads = [torch.autograd.grad(result, x, weight)[0] for result in (out, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 1), (2, 3), (6, 7)])
@pytest.mark.parametrize("window", [(1, 1), (1, 3), (3, 3), (5, 7)])
def test_maxima_in_passes_are_those_of_the_kernel(
    grid: tuple[int, int], window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(2, *grid, 3).permute(0, 3, 1, 2)
    image[0, 0] = torch.nan
    before = image.clone()
    expected = F.max_pool2d(image, window, 1, (window[0] // 2, window[1] // 2))
    monkeypatch.setattr(maxima, "WORTH", 1)
    with torch.no_grad():
        monkeypatch.setattr(F, "max_pool2d", None)
        largest = maxima.largest_around(image, window)
    torch.testing.assert_close(largest, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(image, before, rtol=0, atol=0, equal_nan=True)
    assert largest.data_ptr() != image.data_ptr() and largest.permute(0, 2, 3, 1).is_contiguous()


def test_max_pooling_leaves_masked_tokens_out() -> None:
    x = torch.tensor([-3.0, 9.0, -5.0, -4.0]).view(1, 4, 1)
    mask = torch.tensor([[True, False, True, True]])
    assert create_mixer("max_pooling", 1)(x, mask=mask).flatten().tolist() == [-3.0, 0.0, -4.0, -4.0]


@pytest.mark.parametrize(("grid", "window"), [((11,), 3), ((4, 7), 3), ((3, 2), 7)])
def test_local_attention_is_attention_with_a_window(grid: tuple[int, ...], window: int) -> None:
    mixer = create_mixer(f"local_attention(window={window}, head_dim=3)", 6, grid).double()
    length = torch.Size(grid).numel()
    x = torch.randn(2, length, 6, dtype=torch.float64)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(length, len(grid))
    near = ((places[:, None] - places).abs() <= window // 2).all(-1)
    query, key, value = mixer.qkv(x).view(2, length, 3, 2, 3).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=near)
    torch.testing.assert_close(mixer(x), mixer.proj(mixed.transpose(1, 2).flatten(2)))


def test_local_attention_causal() -> None:
    mixer = create_mixer("local_attention(window=4, head_dim=3, causal=True)", 6).double()
    entries = mixer.matrix(torch.randn(2, 9, 6, dtype=torch.float64)).to_dense()
    kept = torch.ones(9, 9).tril().triu(-3).bool()
    assert not bool(entries.masked_select(~kept).any()) and bool((entries.masked_select(kept) > 0).all())


def test_refuses_windows() -> None:
    for spec in ("max_pooling(window=2)", "local_attention(window=4)", "local_attention(window=0)"):
        with pytest.raises(ValueError, match="window must be a "):
            create_mixer(spec, 6)
