"""Autoformer's mixer: delays by the definition, each sample's own or, as published, the batch's in training."""

import math

import pytest
import torch

from matmix import create_mixer


@pytest.mark.parametrize("published", [False, True])
def test_delays_are_those_of_the_definition(published: bool) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(f"auto_correlation(factor=2, published={published})", 6).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    query, key, values = mixer.qkv(x).chunk(3, -1)
    # Correlation at delay d: the mean over steps and channels of query[t + d] key[t], here times the 11 steps.
    lags = torch.stack([(query.roll(-delay, 1) * key).sum(1).mean(-1) for delay in range(11)], -1)
    count = int(2 * math.log(11))
    for training in (True, False):
        mixed = torch.zeros_like(values)
        for sample in range(3):
            seen = lags.mean(0) if published and training else lags[sample]
            delays = seen.topk(count).indices
            for weight, delay in zip(lags[sample][delays].softmax(0), delays.tolist(), strict=True):
                mixed[sample] += weight * values[sample].roll(-delay, 0)
        torch.testing.assert_close(mixer.train(training)(x), mixer.proj(mixed))


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(ValueError, match=r"factor must be a finite number in \(0, .*, got 0$"):
        create_mixer("auto_correlation(factor=0)", 8)
