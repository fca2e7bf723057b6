"""Samplers of other projects: checked before they are timed, absent without harm."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import rsk
from rsk.base import folders, machine
from rsk.measure import implementations, logit_inputs, peers, timing, workload
from rsk.measure.implementations import Implementation
from rsk.measure.logit_inputs import FILTERED, TEMPERATURE
from rsk.measure.peer_records import FromLogits
from rsk.measure.peers import __main__ as program
from rsk.measure.peers import checking, of_flashinfer, of_sglang, of_transformers, traits
from rsk.measure.peers.peer import NotOffered, Peer, PeerError, PeerInputs, single_module
from rsk.measure.record_files import RecordError, parse
from rsk.measure.workload import Inputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


@pytest.mark.slow
def test_transformers_is_measured_on_one_request() -> None:
    peer = of_transformers.make(CPU)
    assert peer.max_batch_size == 1
    assert checking.check_distribution(peer.implementation, CPU, bias=0.1).lossless
    for ways in (TEMPERATURE, FILTERED):
        checking.check_from_logits(peer, ways, CPU, bias=0.2)
    case = workload.Pool([(1, "warm")], 3, 300).workload(1, 3, budget_s=0.02)
    found = timing.measure(peer.implementation, case, budget_s=0.02)
    assert found.implementation == "transformers"
    assert found.device.median_us > 0


@pytest.mark.parametrize("missing", ["absent", "absent.part"])
def test_find_says_what_is_there_and_what_is_not(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(device: torch.device) -> Peer:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    def elsewhere(device: torch.device) -> Peer:
        raise PeerError("needs a GPU")

    entry = of_flashinfer.ENTRY
    makers = {"one": ("absent", entry, absent), "two": ("other", entry, elsewhere)}
    monkeypatch.setattr(peers, "MAKERS", makers)
    found, versions, lines = peers.find(CPU)
    assert (found, versions) == ([], {})
    wanted = "" if missing == "absent" else " (no module absent.part)"
    assert lines == [f"one: not installed{wanted}: pip install absent", "two: needs a GPU"]


@pytest.mark.parametrize("error", [RuntimeError("nvcc: no such file\nmore"), AssertionError()])
def test_a_peer_that_raises_is_absent_and_the_others_are_found(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that other people's code raises: when made, bound or called, or after."""

    def broken(*call: object) -> object:
        raise error

    def peer(**changes: object) -> object:
        right = dataclasses.replace(traits.ours(), **changes)
        return lambda device: right

    peers_of = {
        "made": broken,
        "bound": peer(bind=broken),
        "called": peer(bind=lambda inputs, seeds: broken),
        "read": peer(result=broken),
        "odd": peer(result=lambda output: output.tokens),
        "right": peer(),
    }
    makers = {name: ("torch", of_flashinfer.ENTRY, one) for name, one in peers_of.items()}
    monkeypatch.setattr(peers, "MAKERS", makers)
    found, versions, lines = peers.find(CPU)
    assert len(found) == 1 and list(versions) == ["torch"]
    said = type(error).__name__ + (": nvcc: no such file" if str(error) else "")
    assert lines[:4] == [
        f"made: cannot be made: {said}",
        *(f"{name}: it was called and raised {said}" for name in ("bound", "called", "read")),
    ]
    (line,) = lines[4:]
    assert line.startswith("odd: it was called and raised TypeError: the sampler's result: expect")


def test_another_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation import utils

    monkeypatch.setattr(utils, "_speculative_sampling", lambda logits, temperature: None)
    with pytest.raises(PeerError, match="takes logits, temperature"):
        of_transformers.make(CPU)


def test_a_renamed_function_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation import utils

    monkeypatch.delattr(utils, "_speculative_sampling")
    with pytest.raises(PeerError, match="another version of transformers than is known here"):
        peers.make("transformers", CPU)


@pytest.mark.parametrize("name", rsk.BACKENDS)
def test_our_own_samplers_pass(name: str) -> None:
    before = torch.get_rng_state()
    verdict = checking.check_distribution(implementations.backend(name), CPU)
    assert (verdict.level, verdict.bias) == (checking.LEVEL, checking.BIAS)
    assert verdict.requests > 1000
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers go on"


def test_a_biased_sampler_is_refused() -> None:
    """The last token is drawn from the target instead of the residual: a classic."""

    def bind(inputs: Inputs):
        right = implementations.backend("vectorized").bind(inputs)

        def call() -> rsk.RejectionSamples:
            tokens, n = right()
            rows = inputs.target_probs[torch.arange(len(n)), n]
            tokens[torch.arange(len(n)), n] = torch.multinomial(rows, 1).squeeze(1)
            return rsk.RejectionSamples(tokens, n)

        return call

    with pytest.raises(PeerError, match="does not follow the target: the recovered token"):
        checking.check_distribution(Implementation("biased", bind), CPU)


def test_a_sampler_that_accepts_too_often_is_refused() -> None:
    def bind(inputs: Inputs):
        flattered = inputs._replace(draft_probs=inputs.draft_probs * 0.9)
        return implementations.backend("vectorized").bind(flattered)

    with pytest.raises(PeerError, match="does not follow the target"):
        checking.check_distribution(Implementation("lenient", bind), CPU)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    def result(output: rsk.RejectionSamples) -> rsk.RejectionSamples:
        return output._replace(tokens=output.tokens.where(output.tokens != 2, 1 << 20))

    peer = dataclasses.replace(implementations.backend("vectorized"), result=result)
    with pytest.raises(PeerError, match="is 1048576, not"):
        checking.check_distribution(peer, CPU)


@pytest.mark.parametrize("ways", [TEMPERATURE, FILTERED], ids=["temperature", "filtered"])
def test_from_logits_a_wrong_temperature_or_filter_is_refused(ways) -> None:
    ours = program._ours()
    checking.check_from_logits(ours, ways, CPU)

    def bind(inputs: PeerInputs):
        wrong = dataclasses.replace(inputs.ways, temperature=1.0, top_k=0, top_p=1.0)
        assert ours.bind_logits is not None
        return ours.bind_logits(inputs._replace(ways=wrong))

    with pytest.raises(PeerError, match="does not follow the target"):
        checking.check_from_logits(dataclasses.replace(ours, bind_logits=bind), ways, CPU)


@pytest.mark.parametrize("ways", [TEMPERATURE, FILTERED], ids=["temperature", "filtered"])
def test_ours_has_the_laws_of_the_draft_as_peers_have_its_probabilities(ways) -> None:
    """The laws are of the rows before a filter's mask: the tokens are the same."""
    some = logit_inputs.make_inputs(8, 300, ways, noise=1.0, seed=3)
    given = program._for_peers(some, ways, 7)
    assert given.draft_laws is some.draft_laws
    bind = program._ours().bind_logits
    assert bind is not None
    found = bind(given)()
    assert torch.equal(found.tokens, bind(given._replace(draft_laws=None))().tokens)
    laws = some.draft_laws.clone()
    laws[..., 3] = 0.0  # no token has a probability
    assert not torch.equal(found.tokens, bind(given._replace(draft_laws=laws))().tokens)


# --- the adapters, on functions with the documented signatures


def fake_flashinfer() -> types.ModuleType:
    """``flashinfer.sampling`` as its documentation describes it, with our sampler inside."""

    def chain_speculative_sampling(
        draft_probs, draft_token_ids, target_probs, *, seed=None, offset=None
    ):
        assert draft_token_ids.dtype == torch.int32
        assert draft_probs.dtype == target_probs.dtype == torch.float32
        assert seed.dtype == offset.dtype == torch.int64
        seeds = seed.expand(len(draft_probs)) + torch.arange(len(draft_probs))  # of the slot, too
        tokens, n = rsk.rejection_sample(
            draft_token_ids.long(), draft_probs, target_probs, seed=seeds, backend="vectorized"
        )
        return tokens.int(), torch.full_like(n, 99).int(), n.int()

    def renormalized(probs, kept):
        return probs.where(kept, 0) / probs.where(kept, 0).sum(-1, keepdim=True)

    def top_k_renorm_probs(probs, top_k):
        return renormalized(probs, probs >= probs.topk(top_k, -1).values[:, -1:])

    def top_p_renorm_probs(probs, top_p):
        ordered = probs.sort(-1, descending=True).values
        last = ((ordered.cumsum(-1) - ordered) < top_p).sum(-1, keepdim=True) - 1
        return renormalized(probs, probs >= ordered.gather(-1, last))

    module = types.ModuleType("flashinfer.sampling")
    module.__dict__.update(
        chain_speculative_sampling=chain_speculative_sampling,
        softmax=lambda logits, temperature: (logits / temperature).softmax(-1),
        top_k_renorm_probs=top_k_renorm_probs,
        top_p_renorm_probs=top_p_renorm_probs,
    )
    return module


def flashinfer_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Peer:
    package = types.ModuleType("flashinfer")
    package.__dict__["sampling"] = fake_flashinfer()
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", package.sampling)
    with pytest.raises(PeerError, match="needs a GPU"):
        of_flashinfer.make(CPU)

    class Cuda:
        type = "cuda"

    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *x, device=None, **more: tensor(*x, **more))
    return of_flashinfer.make(Cuda())  # type: ignore[arg-type]


def test_flashinfers_adapter_hands_over_what_is_documented(monkeypatch) -> None:
    peer = flashinfer_on_cpu(monkeypatch)
    assert checking.check_distribution(peer.implementation, CPU, bias=0.1).lossless
    for ways in (TEMPERATURE, FILTERED):
        checking.check_from_logits(peer, ways, CPU, bias=0.1)


def test_what_an_interface_lacks_is_found(monkeypatch) -> None:
    peer = flashinfer_on_cpu(monkeypatch)
    inputs = traits.example(peer, CPU)
    found = {name: traits.attempt(trial, peer, inputs) for name, trial in traits.TRIALS.items()}
    assert found["repeats"] == "yes"
    assert found["seeds"] == "yes"
    assert found["batch_invariant"].startswith("no: "), "the fake's stream depends on the slot"
    assert found["nan"] == "flagged, without a token"
    assert found["equal_laws"] == f"0 of {20 * traits.BATCH * traits.SPEC_LEN}"

    def stubborn(inputs: Inputs, seeds: torch.Tensor | None):
        return peer.bind(inputs, None)

    deaf = dataclasses.replace(peer, bind=stubborn)
    assert traits.attempt(traits.seeds, deaf, inputs) == "no: it ignores them"

    def random(inputs: Inputs, seeds: torch.Tensor | None):
        if seeds is not None:
            raise NotOffered("it has none")
        return peer.bind(inputs._replace(seed=torch.seed() % 2**31), None)

    wild = dataclasses.replace(peer, bind=random)
    assert traits.attempt(traits.repeats, wild, inputs) == "no"
    assert traits.attempt(traits.seeds, wild, inputs) == "no: it has none"

    def even(output):
        return peer.result(output)._replace(num_accepted=torch.ones(traits.BATCH).long())

    crooked = dataclasses.replace(peer, result=even)
    assert traits.attempt(traits.ragged, crooked, inputs).startswith("no: 1 accepted")
    assert traits.attempt(traits.equal_laws, crooked, inputs) != "0 of 640"


@pytest.mark.slow
def test_our_own_sampler_lacks_nothing() -> None:
    found = traits.traits_of("fused", CPU)
    assert found == traits.Traits(
        repeats="yes",
        seeds="yes",
        batch_invariant="yes",
        ragged="yes",
        equal_laws=f"0 of {20 * traits.BATCH * traits.SPEC_LEN}",
        nan="flagged, without a token",
    )


def test_a_peer_that_ends_the_process_keeps_its_answers(monkeypatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text('#!/bin/sh\necho \'{"repeats": "yes"}\'\nexit 134\n')
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    found = traits.traits_of("fused", CPU)
    assert (found.repeats, found.nan) == ("yes", "the process ended with status 134")
    broken.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(PeerError, match="ended with status 1 without an answer"):
        traits.traits_of("fused", CPU)


def test_sglangs_result_ends_at_the_last_token() -> None:
    tokens = torch.tensor([[5, 6, 7], [8, 0, 0], [9, 9, 4]], dtype=torch.int32)
    found = of_sglang.result((tokens, torch.tensor([2, 0, 1], dtype=torch.int32)))
    assert found.tokens.tolist() == [[5, 6, 7], [8, -1, -1], [9, 9, -1]]
    assert found.num_accepted.tolist() == [2, 0, 1]


def test_one_module_of_a_package_is_loaded_alone(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "heavy_peer"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the whole engine')")
    (package / "ops" / "kernel.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert single_module("heavy_peer", "ops/kernel.py").answer == 42
    with pytest.raises(ModuleNotFoundError, match="ops/other"):
        single_module("heavy_peer", "ops/other.py")


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traits are tried in processes of their own, which take seconds to start."""
    answers = dict.fromkeys(traits.TRIALS, "yes")
    monkeypatch.setattr(traits, "traits_of", lambda name, device: traits.Traits(**answers))


def test_the_program_records_what_is_absent(tmp_path, no_trials, monkeypatch, capsys) -> None:
    path = tmp_path / "peers" / "cpu.json"

    def no_peer(name: str, device: torch.device) -> Peer:
        raise PeerError(f"not installed: pip install {name}")

    monkeypatch.setattr(peers, "make", no_peer)
    arguments = ["--dry", "--runs", "2", "--only", "SGLang", "--save", str(path)]
    assert program.main(arguments) == 0
    found = program.PeersRecord.load(path)
    assert found.complete
    assert [(one.name, one.absent) for one in found.found] == [
        ("fused", ""),
        ("SGLang", "not installed: pip install SGLang"),
    ]
    assert [one.record.run for one in found.from_probs] == [0, 1]
    assert {one.ways for one in found.from_logits} == set(program.WAYS)
    assert "SGLang: not installed" in capsys.readouterr().out
    assert program.main(arguments) == 0
    assert program.PeersRecord.load(path) == found, "all is there already"


def test_a_peer_that_undercuts_the_roof_from_logits_is_refused(
    tmp_path, no_trials, monkeypatch
) -> None:
    """It returns the tokens of the call before, and so is as fast as no sampler can be."""

    def lazy(name: str, device: torch.device) -> Peer:
        def bind_logits(inputs: PeerInputs):
            kept = ours.bind_logits(inputs)()
            return lambda: kept

        return dataclasses.replace(ours, bind_logits=bind_logits)

    ours = program._ours()
    monkeypatch.setattr(peers, "make", lazy)
    monkeypatch.setattr(program, "DRY_SHAPES", ())
    monkeypatch.setattr(program, "DRY_LOGIT_SHAPES", ((64, 32000),))
    for attempt in range(3):  # a roof that other programs disturbed refuses nothing
        path = tmp_path / f"{attempt}.json"
        arguments = ["--dry", "--runs", "1", "--only", "SGLang", "--save", str(path)]
        status = program.main(arguments)
        found = program.PeersRecord.load(path)
        if len(found.failed) == 2:
            break
    assert status == 1
    assert {one.name for one in found.from_logits} == {"fused"}
    assert len(found.failed) == len(found.from_logits) == 2
    assert all("SGLang: 0." in line and "below the memory roof" in line for line in found.failed)
    for one in found.from_logits:
        assert one.bytes_moved is not None and one.roof is not None
        assert 64 * 32000 * 2 < one.bytes_moved < 64 * 6 * 32000 * 2
        assert one.roof.median_us < one.device.median_us


def test_the_program_records_what_a_peer_raises(tmp_path, no_trials, monkeypatch) -> None:
    def bind(inputs: Inputs, seeds: torch.Tensor | None):
        raise AssertionError("a shape that it does not take")

    def peer(name: str, device: torch.device) -> Peer:
        return dataclasses.replace(program._ours(), bind=bind)

    monkeypatch.setattr(peers, "make", peer)
    monkeypatch.setattr(program, "DRY_LOGIT_SHAPES", ())
    monkeypatch.setattr(program._Run, "is_timed", lambda self, name, batch_size, how: True)
    path = tmp_path / "cpu.json"
    arguments = ["--dry", "--runs", "1", "--only", "SGLang", "--save", str(path)]
    assert program.main(arguments) == 1
    found = program.PeersRecord.load(path)
    raised = "AssertionError: a shape that it does not take"
    assert found.found[1].law == f"PeerError: it was called and raised {raised}"
    assert found.failed == (f"SGLang, from probabilities, (2, 3, 97), run 0: {raised}",)
    assert found.complete and len(found.from_probs) == 1


def test_a_record_with_a_time_from_logits_below_its_roof_is_not_read() -> None:
    path = next((folders.data_dir() / "peers").glob("*.json"))
    found = program.PeersRecord.load(path)  # older ones have no roof, and are read
    fields = dataclasses.asdict(found.from_logits[0])
    fields["roof"] = {**fields["device"], "disturbed": 0.0}
    parse(FromLogits, fields)
    for name in ("q25_us", "median_us", "q75_us"):
        fields["roof"][name] *= 2
    with pytest.raises(RecordError, match="below the memory roof"):
        parse(FromLogits, fields)


@pytest.mark.slow
def test_the_program_goes_on_after_a_failure(tmp_path, no_trials, monkeypatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA error: out of luck\nmore")

    coarse = partial(checking.check_distribution, bias=0.5)  # not what is tested here
    monkeypatch.setattr(
        checking, "check_distribution", lambda peer, device, **_: coarse(peer, device)
    )
    path = tmp_path / "peers.json"
    arguments = ["--dry", "--runs", "1", "--only", "transformers", "--save", str(path)]
    assert program.main([*arguments, "--time-limit", "0"]) == 3
    with monkeypatch.context() as patch:
        patch.setattr(timing, "measure", broken)
        assert program.main(arguments) == 1
    found = program.PeersRecord.load(path)
    assert found.complete
    assert "(2, 3, 97), run 0: RuntimeError: CUDA error: out of luck" in found.failed[0]
    assert (len(found.from_probs), len(found.from_logits)) == (0, 2)
    assert program.main(arguments) == 0
    again = program.PeersRecord.load(path)
    assert (len(again.from_probs), len(again.failed)) == (1, 0)
    assert again.from_logits == found.from_logits, "what was there is not measured again"
