"""The exercises' kernels: solved they are right in every order, and their faults are caught."""

from __future__ import annotations

import sys

import pytest

from rsk.check.synthetic import make_batch
from rsk.course import own_kernels

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the emulator needs Linux or macOS")
BATCH = make_batch(3, 4, 9000)


@pytest.mark.slow
def test_the_warp_kernel():
    solved = "for (int32_t v = lane; v < row.size; v += 32) total += weight(v);"
    solved += "total = sum_over_warp(total);"
    assert own_kernels.faults(own_kernels.warp_per_sequence(solved), BATCH) == [""] * 8

    # A kernel that loses one token of many goes unnoticed in a large row: use small ones too.
    small = make_batch(32, 2, 40)
    assert own_kernels.faults(own_kernels.warp_per_sequence(solved), small, orders=2) == [""] * 2
    with_gap = own_kernels.warp_per_sequence(solved.replace("v = lane", "v = lane + 1"))
    assert all(own_kernels.faults(with_gap, small, orders=2))


def test_a_warp_kernel_whose_lanes_do_not_agree():
    lines = "for (int32_t v = lane; v < row.size; v += 32) total += weight(v);"
    small = make_batch(32, 2, 40)
    assert all(own_kernels.faults(own_kernels.warp_per_sequence(lines), small, orders=2))


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("if (warp == 0 && lane < cluster_size) send(mailbox, lane, part, warps.running);", True),
        ("if (lane < cluster_size) send(mailbox, lane, part, warps.all);", True),  # every warp
        ("if (warp == 1 && lane < cluster_size) send(mailbox, lane, part, warps.all);", False),
        (
            "if (threadIdx.x == 0) "
            "for (int32_t i = 0; i < cluster_size; ++i) send(mailbox, i, part, warps.all);",
            False,
        ),
    ],
)
@pytest.mark.slow
def test_the_lines_that_send_a_letter(line, wrong):
    text = own_kernels.replaced(own_kernels.source("cluster"), own_kernels.SEND, line)
    found = own_kernels.faults(own_kernels.compiled(text), BATCH)
    assert any(found) if wrong else not any(found)


@pytest.mark.slow
def test_a_missing_barrier_is_caught():
    text = own_kernels.source("block_per_sequence")
    broken = own_kernels.compiled(own_kernels.replaced(text, "__syncthreads();", ""))
    assert any(own_kernels.faults(broken, BATCH))
    assert own_kernels.faults(own_kernels.compiled(text), BATCH) == [""] * 8


def test_sectors_are_counted():
    own_kernels.check_sectors(lambda addresses: len({address // 32 for address in addresses}))
    with pytest.raises(AssertionError, match="in a row of its own: expected 32 sectors, got 4"):
        own_kernels.check_sectors(lambda addresses: 4 * len(addresses) // 32)
    with pytest.raises(AssertionError, match="begin 4 bytes after a sector does: expected 5"):
        own_kernels.check_sectors(
            lambda addresses: len({(a - min(addresses)) // 32 for a in addresses})
        )


@pytest.mark.parametrize(
    ("name", "part"),
    [("split_vocabulary", own_kernels.IS_LAST), ("cluster", own_kernels.SEND)],
)
def test_the_missing_parts_are_those_of_the_files(name, part):
    assert part in own_kernels.source(name)


def test_a_part_that_is_not_there():
    with pytest.raises(ValueError, match="expected 'nonsense'"):
        own_kernels.replaced("text", "nonsense", "")
    with pytest.raises(ValueError, match="namespace"):
        own_kernels.compiled("int x;")
