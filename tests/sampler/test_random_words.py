"""The random words: SplitMix64's published values, and the same bits in PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsk.sampler import random_words

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_the_generator_is_splitmix64():
    # SplitMix64 seeded with 0 adds gamma and mixes: its outputs are mix(gamma), mix(2 gamma), ...
    state, outputs = 0, []
    for _ in range(3):
        state = (state + random_words.GAMMA) & (2**64 - 1)
        outputs.append(random_words._mix(state))
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    ("seed", "t", "stream", "expected"),
    [
        (0, 0, 0, 0xA706DD2F4D197E6F),
        (42, 1000, 0, 0xA4395B9669C6160B),
        (42, 1000, 1, 0xB60204D814550A66),
        (42, 1000, 2, 0xE1E3C39B44FD6321),
        (-1, 2**40, 1, 0x60374758A29F4F4E),
    ],
)
def test_known_words(seed, t, stream, expected):
    assert random_words.word(seed, t, stream) == expected
    tensor = random_words.words(torch.tensor([seed]), torch.tensor([t]), stream)
    assert tensor.item() & (2**64 - 1) == expected


@given(
    seed=INT64,
    t=INT64,
    stream=st.sampled_from([random_words.COIN, random_words.SAMPLE, random_words.DRAFT]),
)
def test_tensors_and_integers_give_the_same_bits(seed, t, stream):
    tensor = random_words.words(torch.tensor(seed), torch.tensor(t), stream)
    assert tensor.item() & (2**64 - 1) == random_words.word(seed, t, stream)
    assert random_words.coins(torch.tensor(seed), torch.tensor(t)).item() == random_words.coin(
        seed, t
    )


def test_extreme_coins():
    assert random_words.coin(584198681, 0) == 0.0
    assert random_words.coin(477644333, 0) == 1 - 2.0**-29


def test_coins_are_uniform():
    coins = random_words.coins(torch.arange(1 << 20), torch.tensor(7))
    assert coins.min() >= 0 and coins.max() < 1
    counts = torch.histc(coins, 64, 0, 1)
    expected = len(coins) / 64
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 20 < chi_square < 120  # 63 degrees of freedom: outside with probability below 1e-4
