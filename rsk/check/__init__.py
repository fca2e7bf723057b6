"""Checks that catch a wrong sampler, for any callable with the sampler's arguments.

- :func:`assert_lossless`: does its output follow the target's distribution?
- :func:`assert_agrees`: does it return the baseline's tokens, bit for bit?
- :func:`assert_well_formed`: is what it returns well-formed, and its input left alone?
- :func:`assert_reproducible`: does a request's output depend on that request alone?
- :func:`assert_decoding_lossless`: do the texts of a whole decoding loop follow the target?

Each raises ``AssertionError`` and says what is wrong; each takes what begins with logits too, with
``from_logits=True``. ``python -m rsk.check`` runs those for samplers.
"""

from rsk.check.agreement import assert_agrees
from rsk.check.cases import Case, default_cases, small_cases
from rsk.check.decoding import assert_decoding_lossless, examine_decoding
from rsk.check.logit_cases import logit_cases
from rsk.check.lossless import assert_lossless, examine
from rsk.check.reproducible import assert_reproducible
from rsk.check.verdict import NotLossless, Verdict
from rsk.check.well_formed import assert_well_formed

__all__ = [
    "Case",
    "NotLossless",
    "Verdict",
    "assert_agrees",
    "assert_decoding_lossless",
    "assert_lossless",
    "assert_reproducible",
    "assert_well_formed",
    "default_cases",
    "examine",
    "examine_decoding",
    "logit_cases",
    "small_cases",
]
