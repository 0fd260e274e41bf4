"""PoNet against its published code, and the two defects of its padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer, load_published
from matmix.inspect import record
from matmix.mixers.base import Context, drop_padding
from matmix.mixers.ponet import PoNet, Segments, Streams, delimited, ponet, runs
from tests.fixtures import load_fixture

SOURCE = "lxchtan/PoNet"


@pytest.mark.parametrize("case", ["mask_seg1_L16", "mask_seg8_L16", "nomask_seg4_L17"])
def test_poolings_are_published(case: str) -> None:
    fixture = load_fixture(f"sequence/ponet_core_{case}")
    masked = "attention_mask" in fixture.data["inputs"]
    mask = fixture.input("attention_mask").bool() if masked else None
    query, key, gate = (fixture.input(name).transpose(1, 2).flatten(2) for name in "QKO")
    segment, local = fixture.input("segment"), fixture.input("local")
    length = query.shape[1]
    equal = runs(length, fixture.config["segment_num"], None, query.device)
    fixture.check(equal.owner.expand(2, -1), "segment_index")
    given = Segments(equal.owner.expand(2, -1), length)  # the same segments the general way
    for segments in (equal, given):
        streams = Streams(query, gate, key, segment, local)
        matrix = ponet(streams, fixture.config["num_head"], segments, Context((length,), mask))
        values = streams.values()
        for mixed in (matrix.matmul(values), matrix.to_dense() @ values):
            fixture.check(drop_padding(mixed.squeeze(-1).mT, mask))


@pytest.mark.parametrize("case", ["cls_mask", "cls_nomask", "plain_mask"])
def test_self_attention_is_published(case: str) -> None:
    fixture = load_fixture(f"sequence/ponet_self_{case}")
    mixer = create_mixer(f"ponet(heads={fixture.config['num_attention_heads']}, proj=False)", 16).double()
    load_published(mixer, fixture.state(), SOURCE)
    mask = fixture.input("attention_mask").bool() if "attention_mask" in fixture.data["inputs"] else None
    index, special = delimited(fixture.input("input_ids"))
    fixture.check(index, "segment_index")
    fixture.check(special.long(), "token_type_mask")
    special = special if fixture.config["clsgsepg"] else None
    fixture.check(mixer.mix_segments(fixture.input("hidden_states"), index, special=special, mask=mask))


def test_published_segments_move_with_the_padding_and_ours_do_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    mask = torch.ones(1, 20).bool()
    mask[:, 12:] = False
    padded = F.pad(x, (0, 0, 0, 8))
    for spec, moves in (("ponet(segments=3)", False), ("ponet(segments=3, padded_segments=True)", True)):
        mixer = create_mixer(spec, 8).double()
        same = torch.allclose(mixer(padded, mask=mask)[:, :12], mixer(x))
        assert same != moves


def test_matrix_selects_what_is_largest() -> None:
    """On an image: each row of the local block is a 1 within 3 x 3 around the token."""
    torch.manual_seed(1)
    mixer = create_mixer("ponet(heads=2, segments=4)", 6, (5, 7)).double()
    x = torch.randn(2, 35, 6, dtype=torch.float64)
    local = mixer.matrix(x).to_dense()[..., 70:]
    assert torch.equal(local.sum(-1), torch.ones(2, 6, 35, dtype=torch.float64))
    image = mixer.in_proj(x)[..., 24:].mT.unflatten(-1, (5, 7))
    torch.testing.assert_close(
        (local @ image.flatten(2).unsqueeze(-1)).squeeze(-1), F.max_pool2d(image, 3, 1, 1).flatten(2)
    )


def test_segments_before_the_first_delimiter_are_segments() -> None:
    index, special = delimited(torch.tensor([[7, 7, 102, 5, 102, 101]]))
    assert index.tolist() == [[0, 0, 1, 2, 3, 4]]
    assert special.tolist() == [[False, False, True, False, True, True]]


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="heads must be a divisor of dim=8, got 3"):
        create_mixer("ponet(heads=3)", 8)
    with pytest.raises(ValueError, match="segments must be a whole number"):
        create_mixer("ponet(segments=0)", 8)
    mixer = create_mixer("ponet(heads=2)", 8)
    with pytest.raises(ValueError, match=r"index must be torch\.int64 of shape"):
        mixer.mix_segments(torch.randn(1, 4, 8), torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match=r"PoNet: index must be torch\.int64 of shape \(1, 4\), got None"):
        mixer.mix_segments(torch.randn(1, 4, 8), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PoNet: index must be a dense tensor, got one that is"):
        mixer.mix_segments(torch.randn(1, 4, 8), torch.zeros(1, 4, dtype=torch.int64).to_sparse())


def test_given_segments_are_in_the_matrix_that_is_shown() -> None:
    mixer = PoNet(8, heads=2)
    x, index = torch.randn(2, 6, 8), torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 5]])
    with record(mixer) as found:
        shown = mixer.mix_segments(x, index)
    (matrix,) = found.values()
    values = mixer.project(x, Context((6,), None)).values  # which do not hang on segments
    torch.testing.assert_close(mixer.merge(matrix.to_dense() @ values, None), shown)
    torch.testing.assert_close(shown, mixer.mix_segments(x, index))
