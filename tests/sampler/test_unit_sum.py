"""The CPU kernel's fast sum of rows between 0 and 1, at its bounds and beyond (cuda/unit_sum.h)."""

from __future__ import annotations

import itertools

import pytest
import torch

import rsk

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 31, 257, 5000]  # shorter than a vector, and several pieces with an end
LARGE = [65536, 140_001]  # as many pieces as there are marks, and more
IN_LARGE = ["distributions", "rests that all add up", "negative"]


def _rows(kind: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows p and q [4, size] in float32."""
    noise = torch.Generator().manual_seed(size)
    p, q = torch.rand(2, 4, size, generator=noise)
    match kind:
        case "in the unit interval":  # whose sums are beyond those of distributions
            pass
        case "distributions":
            p, q = ((x.log() * 3).softmax(-1) for x in (p, q))
        case "all at one token":
            p, q = p * 0, q * 0
            p[:, size // 2], q[:, size // 3] = 1, 1
        case "weights between one and two":
            p[:, ::3] += 0.99
            q = q / 2
        case "a little more than one in all":
            p = (p + 0.1) / (p + 0.1).sum(-1, keepdim=True) * 1.01
            q = q * 0
        case "all ones":  # a lane's sum is beyond what a float holds
            p, q = torch.ones_like(p), torch.zeros_like(q)
        case "tiny":  # about 2^-42, where a weight is rounded down, and below what a weight is
            p, q = p * 2.0**-40, q * 2.0**-43
        case "subnormal":
            p, q = p * 2.0**-126, q * 2.0**-128
        case "halves of a unit":  # ties of every addition
            p = torch.randint(0, 64, p.shape, generator=noise) * 2.0**-24
            q = q * 0
        case "rests that all add up":  # so a lane's must be taken out before they overflow
            p, q = p * 0 + 2.0**-23 * 0.98, q * 0
        case "above one":
            p[:, ::3] += 1.5
        case "negative":
            p[:, ::3] *= -1
            q[:, ::2] *= -1
        case "minus zero":
            p[:, ::3] = -0.0
        case "one large value at the end":
            p[:, -1] = 3.0
        case "one negative value at the end":
            q[:, -1] = -0.5
        case _:
            raise ValueError(kind)
    return p, q


KINDS = [
    *("distributions", "all at one token", "a little more than one in all"),
    *("weights between one and two", "in the unit interval", "all ones", "tiny", "subnormal"),
    *("halves of a unit", "rests that all add up", "above one", "negative", "minus zero"),
    *("one large value at the end", "one negative value at the end"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "size"),
    [*itertools.product(KINDS, SIZES), *itertools.product(IN_LARGE, LARGE)],
)
def test_every_sum_is_exact(kind: str, size: int, dtype: torch.dtype) -> None:
    p, q = (rows.to(dtype) for rows in _rows(kind, size))
    drafts = torch.zeros(4, 1, dtype=torch.int64)
    p[:, 0], q[:, 0] = 0, 1  # so the draft is rejected, and p - q decides
    target = torch.stack([p, p], 1)
    for draft_probs, draft_tokens in ((q[:, None], drafts), (None, drafts[:, :0])):
        for seed in range(20):
            rows = target if draft_probs is not None else target[:, :1]
            results = [
                rsk.rejection_sample(draft_tokens, draft_probs, rows, seed=seed, backend=backend)
                for backend in ("baseline", "fused")
            ]
            assert results[0].tokens.tolist() == results[1].tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [31, 5000, *LARGE])
def test_a_certain_draft_takes_its_weight_out(size: int, dtype: torch.dtype) -> None:
    p, _ = _rows("distributions", size)
    p[:, size // 3] += 0.5
    target = (p / p.sum(-1, keepdim=True)).to(dtype).unsqueeze(1).repeat(1, 2, 1)
    drafts = torch.full((4, 1), size // 3)
    for seed in range(20):
        results = [
            rsk.rejection_sample(drafts, None, target, seed=seed, backend=backend)
            for backend in ("baseline", "fused")
        ]
        assert results[0].tokens.tolist() == results[1].tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(5000, 300), (300, 5000), (5000, 4999), (33, 1)])
@pytest.mark.parametrize(
    "kind", ["distributions", "in the unit interval", "negative", "one large value at the end"]
)
def test_every_sum_of_rows_of_different_length_is_exact(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    p, q = (rows[:, :size].to(dtype) for rows, size in zip(_rows(kind, 5000), sizes, strict=True))
    p[:, 0], q[:, 0] = 0, 1
    drafts = torch.zeros(4, 1, dtype=torch.int64)
    for seed in range(20):
        results = [
            rsk.rejection_sample(
                drafts, q[:, None], torch.stack([p, p], 1), seed=seed, backend=backend
            )
            for backend in ("baseline", "fused")
        ]
        assert results[0].tokens.tolist() == results[1].tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(5000, 300), (300, 5000)])
def test_what_is_not_finite_behind_the_shorter_row_is_found(
    sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    p, q = (torch.rand(1, size).to(dtype) for size in sizes)
    p[:, 0], q[:, 0] = 0, 1
    max((p, q), key=lambda rows: rows.shape[1])[:, 4000] = float("nan")
    drafts = torch.zeros(1, 1, dtype=torch.int64)
    found = rsk.rejection_sample(
        drafts, q[:, None], torch.stack([p, p], 1), seed=1, backend="fused"
    )
    assert found.num_accepted.tolist() == [-1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 40, 4999])
def test_what_is_not_finite_is_found(place: int, value: float, dtype: torch.dtype) -> None:
    p = torch.rand(1, 1, 5000).to(dtype)
    assert rsk.sample(p[:, 0], seed=1, backend="fused").item() >= 0
    p[..., place] = value
    assert rsk.sample(p[:, 0], seed=1, backend="fused").item() == -1
