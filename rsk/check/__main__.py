"""Check samplers from the command line.

python -m rsk.check                             every check on every backend and kernel
python -m rsk.check --minutes 5                 compare random calls with the baseline for so long
python -m rsk.check --mutants                   the gallery of wrong samplers, and who notices
python -m rsk.check --sampler my_module:sample  the checks on a sampler of your own
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import rsk
from rsk import check
from rsk.base import machine, terminal
from rsk.check.calls import Sampler
from rsk.check.logit_mutants import LOGIT_MUTANTS
from rsk.check.mutants import MUTANTS
from rsk.check.specimen import Specimen
from rsk.sampler.implementations import IMPLEMENTATIONS

Check = Callable[..., Any]

_EXAMPLES_PER_TURN = 20


class Subject(NamedTuple):
    """A sampler to check, and what it is called with."""

    sampler: Sampler
    from_logits: bool = False
    mixed: bool = False
    """Draft and target may have different dtypes and vocabularies."""
    exact: bool = True
    """It returns the baseline's tokens; else only its distribution can be checked."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; the exit status is 1 if a sampler is wrong."""
    terminal.accept_any_text()
    options = _parse(arguments)
    samplers = _samplers(options.sampler, options.from_logits, options.device)
    if options.mutants:
        return 0 if gallery() else 1
    if options.minutes is not None:
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        wrong = fuzz(samplers, 60 * options.minutes, seed, options.device)
    else:
        wrong = check_all(samplers, options.seed or 0, options.device)
    return 1 if wrong else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rsk.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=_positive, help="compare random calls for this long")
    parser.add_argument("--mutants", action="store_true", help="show the gallery of mutants")
    parser.add_argument("--sampler", action="append", metavar="MODULE:NAME", default=[])
    parser.add_argument(
        "--from-logits", action="store_true", help="those samplers begin with logits"
    )
    parser.add_argument("--seed", type=int, help="of everything random (default: 0, or fresh)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default) or cuda")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _device(text: str) -> str:
    try:
        return str(machine.device(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _samplers(names: list[str], from_logits: bool, device: str) -> Mapping[str, Subject]:
    """What to check: the given samplers, or all that there are.

    Raises:
        SystemExit: a sampler cannot be imported.
    """
    if not names:
        found = {}
        for name in rsk.BACKENDS:
            found[name] = Subject(partial(rsk.rejection_sample, backend=name), mixed=True)
        for name in (*rsk.BACKENDS, *(["emulator"] if device == "cpu" else [])):
            sampler = partial(rsk.rejection_sample_from_logits, backend=name)
            found[f"logits, {name}"] = Subject(sampler, from_logits=True)
        for name, kernel in rsk.KERNELS.items():
            found[name] = Subject(kernel, mixed=True)
        found["idiomatic"] = Subject(IMPLEMENTATIONS["idiomatic"], exact=False)
        if device != "cpu" and importlib.util.find_spec("triton"):
            found["triton"] = Subject(IMPLEMENTATIONS["triton"], mixed=True)
        return found
    sys.path.insert(0, str(Path.cwd()))
    found = {}
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            sampler = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SystemExit(f"--sampler {name}: expected MODULE:NAME; {error}") from None
        found[name] = Subject(sampler, from_logits)
    return found


def _is_emulated(name: str, device: str) -> bool:
    return device == "cpu" and (name in rsk.KERNELS or name == "logits, emulator")


def check_all(samplers: Mapping[str, Subject], seed: int, device: str) -> int:
    """Run every check on every sampler; return how many failed."""
    wrong = 0
    for name, (sampler, from_logits, mixed, exact) in samplers.items():
        emulated = _is_emulated(name, device)
        slow = emulated or name.endswith("baseline")
        thorough: dict[str, Any] = {}
        if slow:
            cases = [*check.small_cases(), *(check.logit_cases() if from_logits else [])]
            thorough = {"bias": 0.3 if emulated or from_logits else 0.1, "cases": cases}
        if emulated:
            thorough["batch_size"] = 64  # a launch that takes a minute passes for one without end
        checks: list[Check] = [
            check.assert_well_formed,
            partial(check.assert_reproducible, num_seeds=2 if emulated else 16),
            partial(check.assert_agrees, seed=seed, mixed=mixed, large_vocabulary=not slow),
            partial(check.assert_lossless, seed=seed, **thorough),
        ]
        for one in checks if exact else checks[-1:]:
            tried = partial(one, from_logits=from_logits, device=device)
            wrong += not _report(f"{name:20}  {_name(one):20}", tried, sampler)
    return wrong


def fuzz(samplers: Mapping[str, Subject], seconds: float, seed: int, device: str) -> int:
    """Compare random calls with the baseline, in turn, until time is up; return how many failed."""
    end = time.monotonic() + seconds
    samplers = {name: subject for name, subject in samplers.items() if subject.exact}
    compared = dict.fromkeys(samplers, 0)
    wrong: set[str] = set()
    for turn in itertools.count():
        for name, (sampler, from_logits, mixed, _) in samplers.items():
            if time.monotonic() > end or len(wrong) == len(samplers):
                for each, calls in compared.items():
                    verdict = "WRONG" if each in wrong else "agrees"
                    print(f"{each:20}  {verdict}  {calls:,} calls, seeds from {seed}", flush=True)
                return len(wrong)
            if name in wrong:
                continue
            emulated = _is_emulated(name, device)
            try:
                compared[name] += check.assert_agrees(
                    sampler,
                    from_logits=from_logits,
                    mixed=mixed,
                    examples=_EXAMPLES_PER_TURN,
                    seed=seed + turn,
                    max_elements=1 << (16 if emulated else 18),
                    large_vocabulary=False,
                    device=device,
                )
            except AssertionError as error:
                print(f"{name}: {error}\n", flush=True)
                wrong.add(name)
    raise AssertionError("itertools.count() has no end")


def gallery() -> bool:
    """Print each mutant with what the check that names it says; return whether all are caught."""
    caught = True
    shown: dict[str, Specimen] = {**MUTANTS, **LOGIT_MUTANTS}
    for name, mutant in shown.items():
        print(f"{name}: {mutant.description}\n  seen: {mutant.seen}")
        one = partial(getattr(check, mutant.caught_by), from_logits=name in LOGIT_MUTANTS)
        sampler: Any = mutant
        caught &= not _report(f"  {mutant.caught_by:20}", one, sampler)
    return caught


def _report(title: str, one: Check, sampler: Sampler) -> bool:
    """Run a check and print what it says; return whether the sampler passes."""
    start = time.perf_counter()
    try:
        one(sampler)
    except Exception as error:  # whatever a sampler raises: the other checks go on
        said = str(error) if isinstance(error, AssertionError) else terminal.error_line(error)
        print(f"{title}  WRONG   {time.perf_counter() - start:5.1f} s\n{_indent(said)}", flush=True)
        return False
    print(f"{title}  passes  {time.perf_counter() - start:5.1f} s", flush=True)
    return True


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _name(one: Check) -> str:
    return one.func.__name__ if isinstance(one, partial) else one.__name__


if __name__ == "__main__":
    sys.exit(main())
