"""Check samplers from the command line.

python -m rsk.check                             every check on every backend and kernel
python -m rsk.check --minutes 5                 compare random calls with the baseline for so long
python -m rsk.check --mutants                   the gallery of wrong samplers, and who notices
python -m rsk.check --sampler my_module:sample  the checks on a sampler of your own
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import rsk
from rsk import check
from rsk.check.calls import Sampler
from rsk.check.mutants import MUTANTS

Check = Callable[..., Any]

_EXAMPLES_PER_TURN = 20


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; the exit status is 1 if a sampler is wrong."""
    options = _parse(arguments)
    samplers = _samplers(options.sampler)
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
    parser.add_argument("--seed", type=int, help="of everything random (default: 0, or fresh)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _samplers(names: list[str]) -> Mapping[str, Sampler]:
    """What to check: the given samplers, or all that there are.

    Raises:
        SystemExit: a sampler cannot be imported.
    """
    if not names:
        backends = {name: partial(rsk.rejection_sample, backend=name) for name in rsk.BACKENDS}
        return {**backends, **rsk.KERNELS}
    sys.path.insert(0, str(Path.cwd()))
    found = {}
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            found[name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SystemExit(f"--sampler {name}: expected MODULE:NAME; {error}") from None
    return found


def is_ours(name: str) -> bool:
    """Whether it is a backend or a kernel: those take rows of different size and dtype."""
    return name in (*rsk.BACKENDS, *rsk.KERNELS)


def check_all(samplers: Mapping[str, Sampler], seed: int, device: str) -> int:
    """Run every check on every sampler; return how many failed."""
    wrong = 0
    for name, sampler in samplers.items():
        emulated = name in rsk.KERNELS and device == "cpu"
        slow = emulated or name == "baseline"
        thorough: dict[str, Any] = {}
        if slow:
            thorough = {"bias": 0.3 if emulated else 0.1, "cases": check.small_cases()}
        checks: list[Check] = [
            check.assert_well_formed,
            partial(check.assert_reproducible, num_seeds=2 if emulated else 16),
            partial(check.assert_agrees, seed=seed, large_vocabulary=not slow, mixed=is_ours(name)),
            partial(check.assert_lossless, seed=seed, **thorough),
        ]
        for one in checks:
            wrong += not _report(
                f"{name:20}  {_name(one):20}", partial(one, device=device), sampler
            )
    return wrong


def fuzz(samplers: Mapping[str, Sampler], seconds: float, seed: int, device: str) -> int:
    """Compare random calls with the baseline, in turn, until time is up; return how many failed."""
    end = time.monotonic() + seconds
    compared = dict.fromkeys(samplers, 0)
    wrong: set[str] = set()
    for turn in itertools.count():
        for name, sampler in samplers.items():
            if time.monotonic() > end or len(wrong) == len(samplers):
                for each, calls in compared.items():
                    verdict = "WRONG" if each in wrong else "agrees"
                    print(f"{each:20}  {verdict}  {calls:,} calls, seeds from {seed}", flush=True)
                return len(wrong)
            if name in wrong:
                continue
            emulated = name in rsk.KERNELS and device == "cpu"
            try:
                compared[name] += check.assert_agrees(
                    sampler,
                    examples=_EXAMPLES_PER_TURN,
                    seed=seed + turn,
                    max_elements=1 << (16 if emulated else 18),
                    large_vocabulary=False,
                    mixed=is_ours(name),
                    device=device,
                )
            except AssertionError as error:
                print(f"{name}: {error}\n", flush=True)
                wrong.add(name)
    raise AssertionError("itertools.count() has no end")


def gallery() -> bool:
    """Print each mutant with what the check that names it says; return whether all are caught."""
    caught = True
    for name, mutant in MUTANTS.items():
        print(f"{name}: {mutant.description}\n  seen: {mutant.seen}")
        caught &= not _report(f"  {mutant.caught_by:20}", getattr(check, mutant.caught_by), mutant)
    return caught


def _report(title: str, one: Check, sampler: Sampler) -> bool:
    """Run a check and print what it says; return whether the sampler passes."""
    start = time.perf_counter()
    try:
        one(sampler)
    except (AssertionError, TypeError, torch.AcceleratorError) as error:
        print(
            f"{title}  WRONG   {time.perf_counter() - start:5.1f} s\n{_indent(error)}", flush=True
        )
        return False
    print(f"{title}  passes  {time.perf_counter() - start:5.1f} s", flush=True)
    return True


def _indent(error: Exception) -> str:
    return "\n".join("    " + line for line in str(error).splitlines())


def _name(one: Check) -> str:
    return one.func.__name__ if isinstance(one, partial) else one.__name__


if __name__ == "__main__":
    sys.exit(main())
