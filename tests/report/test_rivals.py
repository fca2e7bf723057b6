"""What the report says of other projects' samplers and of decoding steps, from made-up records."""

from __future__ import annotations

import dataclasses

import pytest
from measured import GPU_PROVENANCE, benchmark, one_pass, record, spread, step, steps_record

pytest.importorskip("pandas")

from rsk.base.numbers import DASH
from rsk.figures import record_tables
from rsk.measure import peer_records
from rsk.measure.peer_records import FOLLOWS, Found, FromLogits, PeersRecord
from rsk.measure.peers.traits import Traits
from rsk.report import rival_times
from rsk.report.rival_times import RivalTimes
from rsk.report.step_shares import StepShares

TRAITS = Traits(
    repeats="yes",
    seeds="no: it draws from a global generator",
    batch_invariant="yes",
    ragged="yes",
    equal_laws="0 of 640",
    nan="0 accepted, tokens [96, -1]",
)


def found(name, **changes):
    fields = {"version": "1.0", "absent": "", "law": FOLLOWS, "law_from_logits": {}}
    fields["traits"] = TRAITS
    return Found(name=name, **{**fields, **changes})


def from_logits(name, us, run=0, **changes):
    time = spread(us)
    fields = {"batch_size": 1, "spec_len": 4, "vocab_size": 32000, "ways": "temperature"}
    times = {"device": time, "host": time, "call": time, "isolated": None, "dtype": "bfloat16"}
    return FromLogits(name=name, run=run, **{**fields, **times, **changes})


def peers_record(*times, others=()):
    return PeersRecord(
        schema=peer_records.SCHEMA,
        provenance=GPU_PROVENANCE,
        settings={},
        complete=True,
        failed=(),
        found=(found("fused", version=""), found("one"), found("two"), *others),
        from_probs=(),
        from_logits=times,
    )


def test_the_fastest_of_the_others_is_compared_run_by_run():
    times = [
        *(from_logits("fused", us, run) for run, us in enumerate([10, 20])),
        *(from_logits("one", us, run) for run, us in enumerate([50, 40])),
        *(from_logits("two", us, run) for run, us in enumerate([30, 40])),
    ]
    (beside,) = RivalTimes(peers_record(*times)).from_logits
    assert beside.name == "two"
    assert beside.gain.by_run == {0: 3.0, 1: 2.0}, "a ratio is of two times of one run"


def test_a_kind_that_no_other_was_timed_at_is_left_out():
    many = from_logits("fused", 9, batch_size=64), from_logits("one", 18, batch_size=64)
    rivals = RivalTimes(peers_record(from_logits("fused", 10), *many))
    assert [beside.batch_size for beside in rivals.from_logits] == [64]
    table = record_tables.rivals_from_logits(rivals.found).frame
    assert table["one"].tolist() == [DASH, "18.0"] and "two" not in table


def test_a_range_is_shown_where_it_is_wide():
    near = [from_logits("fused", us, run) for run, us in enumerate([100, 102])]
    wide = [from_logits("one", us, run) for run, us in enumerate([100, 110])]
    table = record_tables.rivals_from_logits(peers_record(*near, *wide)).frame
    assert table["fused"].tolist() == ["101"] and table["one"].tolist() == ["105 (100 – 110)"]


def test_no_ratio_is_of_two_clocks():
    """One that waits has a time from call to result, which a graph's share is not held against."""
    share, wall = spread(10.0, "graph replay"), from_logits("one", 5)
    ours = from_logits("fused", 10, device=share)
    assert RivalTimes(peers_record(ours, wall)).from_logits == []
    other = from_logits("two", 30, device=spread(30.0, "graph replay"))
    rivals = RivalTimes(peers_record(ours, wall, other))
    (beside,) = rivals.from_logits
    assert (beside.name, beside.gain.by_run) == ("two", {0: 3.0})
    (by_call,) = rivals.from_logits_by_call
    assert (by_call.name, by_call.gain.by_run) == ("one", {0: 0.5}), "all have this clock"
    assert (rivals.gain, rivals.gain_by_call) == ((3.0, 3.0), (0.5, 0.5))
    by_device = record_tables.rivals_from_logits(rivals.found, "device")
    assert by_device.label == "tab-rivals-logits-device" and "one" not in by_device.frame
    assert by_device.frame["two"].tolist() == ["30.0"]
    by_call = record_tables.rivals_from_logits(rivals.found)
    assert by_call.frame["one"].tolist() == ["5.00"] and by_call.frame["two"].tolist() == ["30.0"]


def test_who_is_absent_and_who_goes_astray():
    wrong = found("odd", law="tokens differ", law_from_logits={"temperature": FOLLOWS})
    gone = found("gone", absent="not installed", law="", traits=None)
    rivals = RivalTimes(peers_record(from_logits("fused", 1), others=(wrong, gone)))
    assert rivals.astray == [("odd", "probabilities", "tokens differ")]
    assert [one.name for one in rivals.absent] == ["gone"]
    assert "gone" not in rivals.found.names


def test_promises_are_what_was_tried():
    table = record_tables.promises(peers_record(from_logits("fused", 1)))
    assert table.frame["sampler"].tolist() == ["fused", "one", "two"]
    told = ["yes", "no", "yes", "yes", "0 of 640", "a token all the same"]
    assert table.frame.loc[1, list(record_tables.PROMISES.values())].tolist() == told
    assert {field.name for field in dataclasses.fields(Traits)} == set(record_tables.PROMISES)
    assert table.values["versions"] == {"one": "1.0", "two": "1.0"}


def test_whose_tokens_change_with_the_batch():
    depends = dataclasses.replace(TRAITS, batch_invariant="no: 3 of 56 are the same")
    others = found("odd", traits=depends), found("gone", absent="not installed", traits=None)
    rivals = RivalTimes(peers_record(from_logits("fused", 1), others=others))
    assert rivals.batch_dependent == ["odd"]


def test_a_sampler_that_waits_has_no_time_on_the_device():
    graph = spread(15.0, "graph replay")
    run = benchmark(
        [
            record("fused", 20.0, batch_size=1, device=graph),
            record("baseline", 900.0, batch_size=1),
        ],
        provenance=GPU_PROVENANCE,
    )
    table = record_tables.rivals(run, None, rival_times.rows()).frame
    assert table["sampler"].tolist() == ["baseline", "fused"]
    assert table["B = 1"].tolist() == [DASH, "15.0 µs"]
    assert table["B = 1, call time"].tolist() == ["900 µs", "20.0 µs"]


def test_the_sampler_is_a_part_of_a_step():
    steps = [step("baseline", 0, 100, 50), step("baseline", 1, 100, 70), step("fused", 0, 60, 3)]
    passes = [one_pass(1, 10, 0), one_pass(5, 12, 0), one_pass(1, 10, 1), one_pass(5, 14, 1)]
    made = steps_record(passes, steps)
    shares = StepShares(made)
    assert shares.runs == 2
    assert shares.of("baseline").least == shares.of("baseline").most == pytest.approx(0.6)
    assert shares.of("fused").most == pytest.approx(0.05)
    assert shares.positions(5).most == pytest.approx(1.3)
    assert shares.positions(5, "device").most == pytest.approx(1.3)
    alone = [dataclasses.replace(one, device=None, not_captured="it waits") for one in passes]
    assert StepShares(steps_record(alone, steps)).positions(5, "device") is None
    captured = [dataclasses.replace(one, device=spread(one.positions + 1.0)) for one in passes]
    again = StepShares(steps_record(captured, steps))
    assert again.positions(5, "device").most == pytest.approx(6 / 2)
    frame = record_tables.shares_of_a_step(made).frame
    assert frame["baseline"].tolist() == ["100 µs, 60% (50% – 70%)"]
    assert frame["fused"].tolist() == ["60.0 µs, 5%"]
