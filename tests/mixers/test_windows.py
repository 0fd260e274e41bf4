"""Max pooling and local attention."""

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer


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
        with pytest.raises(ValueError, match="window must be a positive"):
            create_mixer(spec, 6)
