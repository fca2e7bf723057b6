"""The Python twin of the selection returns the laws of ``rsk.probabilities``, bit for bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import rsk
from rsk.course.python_kernels import selection
from rsk.course.python_kernels.selection import MAX_CANDIDATES, in_order, order_of, select
from rsk.sampler.row_law import probability, to_float32


def rows():
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(96, generator=generator)
    yield x
    yield x.round()  # ties
    yield (x > 0).float()  # more ties than the leader can sort
    yield torch.where(x > 1, x, -math.inf)
    yield torch.where(x > 0, 0.0, -0.0)
    yield torch.tensor([2.5])
    yield x.bfloat16()
    yield 1e4 * x
    yield 5 * torch.randn(700, generator=generator)


@pytest.mark.parametrize("i", range(len(list(rows()))))
def test_the_laws_are_those_of_the_library(i):
    row = list(rows())[i]
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.8, 3.0), (0, 1, 5, 20, 95), (1.0, 0.9, 0.3, 0.0), (0.0, 0.05)
    ):
        ways = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        law = select(row, **ways).law
        p = probability(row.float(), law, to_float32(min_p), torch.arange(len(row)))
        expected = rsk.probabilities(row[None], **ways)[0]
        assert torch.equal(p, expected), ways
        computed = rsk.sample_from_logits(row[None], **ways, seed=0, return_laws=True)[1][0]
        kept = row.float()[expected > 0]
        assert law[[0, 1, 3]].tolist() == computed[[0, 1, 3]].tolist(), ways
        assert law[2] <= kept.min()


def test_orders_are_those_of_floats():
    values = [-math.inf, -3.5, -(2.0**-149), 0.0, 2.0**-149, 1.0, 3.0, math.inf]
    orders = [order_of(x) for x in values]
    assert orders == sorted(set(orders)) and [in_order(order) for order in orders] == values
    assert order_of(-0.0) == order_of(0.0) and order_of(-math.inf) == selection.LEAST_ORDER


def test_the_bound_lets_k_logits_through_and_spares_the_passes():
    row = next(rows())
    for k in range(1, 9):
        found = select(row, top_k=k)
        reached = sum(x >= found.bound for x in found.logits)
        assert k <= reached <= MAX_CANDIDATES and not found.passes
        (listing,) = found.listings
        assert listing.logits == sorted(found.logits, reverse=True)[:reached]


def test_passes_narrow_the_interval_that_holds_the_threshold():
    row = list(rows())[-1]
    found = select(row, top_k=300, top_p=0.99)
    for by_mass in (False, True):
        passes = [one for one in found.passes if one.by_mass == by_mass]
        assert passes
        for one, then in itertools.pairwise(passes):
            assert one.low <= then.low < then.high <= one.high
            assert then.high - then.low < one.high - one.low
        assert passes[-1].low <= found.listings[int(by_mass)].threshold
