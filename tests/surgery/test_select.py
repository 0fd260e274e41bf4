"""Which sites a word means, and what is said where it means none."""

from __future__ import annotations

import pytest

from matmix.surgery import Site, select

NAMES = ("blocks.0.attn", "blocks.0.conv", "blocks.1.attn", "blocks.2.attn", "blocks.2.conv")


def sites() -> list[Site]:
    kinds = {"attn": "self_attention", "conv": "depthwise_conv"}
    return [Site(name, kinds[name[-4:]], "x", 8, "X", tied=(f"other.{name}",)) for name in NAMES]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("self_attention", [0, 2, 3]),
        ("attn", [0, 2, 3]),
        ("1.attn", [2]),
        ("blocks.1.attn", [2]),
        ("other.blocks.1.attn", [2]),
        ("blocks.*.attn", [0, 2, 3]),
        ("*.conv", [1, 4]),
        (r"blocks\.[02]\.attn", [0, 3]),
        (["1.attn", "depthwise_conv"], [1, 2, 4]),
        (lambda site: site.name.startswith("blocks.2"), [3, 4]),
        (sites()[3], [3]),
        ([sites()[3], "0.conv"], [1, 3]),
    ],
)
def test_words(where, meant):
    assert [site.name for site in select(sites(), where)] == [NAMES[n] for n in meant]


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"layers": 2}, [3, 4]),
        ({"layers": [0, -1]}, [0, 1, 3, 4]),
        ({"layers": (n for n in (0, -1))}, [0, 1, 3, 4]),
        ({"layers": slice(1, None)}, [2, 3, 4]),
        ({"exclude": "attn"}, [1, 4]),
        ({"exclude": ["conv", "0.attn"], "layers": slice(0, 2)}, [2]),
    ],
)
def test_narrower(options, meant):
    assert [site.name for site in select(sites(), **options)] == [NAMES[n] for n in meant]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "blocks.0.atn"}, r"where='blocks.0.atn' matches no site; did you mean .*blocks.0.attn"),
        ({"where": ["attn", "cnov"]}, r"where='cnov' matches no site; did you mean conv"),
        ({"where": "tn"}, "matches no site"),  # a suffix begins at a dot
        ({"where": "block"}, "matches no site"),  # a pattern is of the whole name
        ({"where": lambda site: False}, "matches no site; there are blocks.0.attn"),
        ({"exclude": "mlp"}, "exclude='mlp' matches no site"),
        ({"where": "conv", "layers": 1}, "no site is left of where='conv' with layers=1"),
        ({"layers": [0, 7]}, r"layers \[7\] have no site; there are \[0, 1, 2\]"),
    ],
)
def test_no_match_is_an_error_that_names_the_near_ones(options, message):
    with pytest.raises(ValueError, match=message):
        select(sites(), **options)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="where must be"):
        select(sites(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="where must be made of"):
        select(sites(), [3])  # type: ignore[list-item]
