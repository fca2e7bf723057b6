"""``here``, ``shortcut`` and ``written`` of the templates: what is computed on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from rsk.check.calls import Sampler
from rsk.check.mutants import MUTANTS
from rsk.course import demo
from rsk.sampler.api import rejection_sample, sample
from rsk.sampler.kernels import KERNELS, runs_on
from rsk.sampler.row_law import LOWEST_EXPONENT, relative_weight

if TYPE_CHECKING:
    from rsk.check.verdict import Verdict
    from rsk.course.demo import Agreement
    from rsk.decode.generation import Generation


RIGHT, SHORTCUT = "this sampler", "largest entry"
"""How the recovered token is chosen: as it should be, and as the residual's largest entry."""


@dataclass(frozen=True)
class Shortcut:
    """One decision, made many times: right, and by the residual's largest entry."""

    tokens: Sequence[str]
    p: torch.Tensor
    """The target's probabilities [V]."""
    q: torch.Tensor
    """The draft's [V]."""
    seen: Mapping[str, torch.Tensor]
    """For each sampler how often it emitted each token [V]."""

    @classmethod
    def watch(cls, device: torch.device, seed: int = 0, requests: int = 40_000) -> Shortcut:
        """Let both samplers make the decision."""
        tokens = ["mat", "floor", "sofa", "bed", "roof", "table", "chair", "dog"]
        p = torch.tensor([0.30, 0.25, 0.15, 0.10, 0.08, 0.06, 0.04, 0.02], device=device)
        q = torch.tensor([0.10, 0.35, 0.10, 0.20, 0.03, 0.12, 0.02, 0.08], device=device)
        q_rows = q.expand(requests, -1)  # one row, many times, no copy
        request = sample(q_rows, seed=seed)[:, None], q_rows[:, None], p.expand(requests, 2, -1)
        samplers: dict[str, Sampler] = {
            RIGHT: rejection_sample,
            SHORTCUT: MUTANTS["residual_argmax"],
        }
        seen = {
            name: sampler(*request, seed=seed).tokens[:, 0].bincount(minlength=len(tokens)).cpu()
            for name, sampler in samplers.items()
        }
        return cls(tokens, p.cpu(), q.cpu(), seen)

    @property
    def _worst(self) -> int:
        return int((self._shares - self.p).abs().argmax())

    @property
    def _shares(self) -> torch.Tensor:
        return self.seen[SHORTCUT] / self.seen[SHORTCUT].sum()

    @property
    def word(self) -> str:
        """The token that the shortcut distorts most."""
        return self.tokens[self._worst]

    @property
    def share(self) -> float:
        """How much of the output it becomes."""
        return float(self._shares[self._worst])

    @property
    def right(self) -> float:
        """How much it should."""
        return float(self.p[self._worst])

    @property
    def requests(self) -> int:
        """How often the decision was made."""
        return int(self.seen[SHORTCUT].sum())


class Compared(NamedTuple):
    """Which kernels were compared with the baseline, and in how many random calls."""

    names: Sequence[str]
    calls: int
    obstacle: object = None
    """Why they could not be."""


@dataclass(frozen=True)
class Here:
    """``here`` in the templates: what the report runs where it is made; each once, when named."""

    device: torch.device
    seed: int = 0
    examples: int = 20
    """Random calls of each kernel."""

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the sampler's output follows the target."""
        from rsk import check

        return check.assert_lossless(rejection_sample, device=self.device)

    @cached_property
    def agreement(self) -> Agreement:
        """The backends that run here, compared token by token."""
        names = demo.available(self.device)
        return demo.agreement(names, (1, 4, 16), 4, 32000, device=self.device, seed=self.seed)

    @cached_property
    def shortcut(self) -> Shortcut:
        """The shortcut of the earlier work, watched."""
        return Shortcut.watch(self.device, self.seed)

    @cached_property
    def weight_error(self) -> float:
        """By what share of 2^y the polynomial of a weight differs from it at most, y from -42 on.

        Over a million values; y is exact here, as a model's logit over its temperature is not.
        """
        y = torch.linspace(LOWEST_EXPONENT, 0, 1 << 20, dtype=torch.float64).float()
        found = relative_weight(y, 0.0, 1.0).double()
        return float((found / y.double().exp2() - 1).abs().max())

    @cached_property
    def kernels(self) -> Compared:
        """The kernels, on the GPU or in the emulator; none without a compiler."""
        from rsk import check
        from rsk.sampler import build

        try:
            build.load("cuda" if self.on_gpu else "emulator")
        except build.BuildError as error:
            return Compared([], 0, error)
        names = [name for name in KERNELS if runs_on(name, self.device)]
        calls = [
            check.assert_agrees(
                KERNELS[name],
                examples=self.examples,
                seed=self.seed,
                device=self.device,
                max_elements=1 << 11,
                large_vocabulary=False,
            )
            for name in names
        ]
        return Compared(names, sum(calls))

    @cached_property
    def written(self) -> Written:
        """A text that the shipped pair writes."""
        from rsk.decode.command_line import shipped_prompts

        prompt = shipped_prompts()[-1]["text"]
        return Written.by_the_pair(prompt, self.seed, new_tokens=96, device=self.device)


@dataclass(frozen=True)
class Written:
    """A text that the shipped pair wrote."""

    prompt: str
    seed: int
    temperature: float
    spec_len: int
    new_tokens: int
    """How many were asked for."""
    text: Generation
    runs: Sequence[tuple[str, str]]
    """The text in runs, each with where its tokens came from."""

    @classmethod
    def by_the_pair(
        cls, prompt: str, seed: int, *, new_tokens: int, device: torch.device | str = "cpu"
    ) -> Written:
        """Let it write."""
        from rsk.decode.generation import token_runs
        from rsk.decode.loading import fitting_threads, load_pair, shipped_pair
        from rsk.decode.loop import speculative_generate
        from rsk.decode.study import USUAL_SPEC_LEN

        temperature = 0.5
        pair = load_pair(*shipped_pair(), device=device, dtype=torch.float32)
        with fitting_threads(pair):
            text = speculative_generate(
                pair.target,
                pair.draft,
                prompt,
                pair.tokenizer,
                spec_len=USUAL_SPEC_LEN,
                temperature=temperature,
                seed=seed,
                max_new_tokens=new_tokens,
            )
        runs = token_runs(text, prompt, pair)
        return cls(prompt, seed, temperature, USUAL_SPEC_LEN, new_tokens, text, runs)

    @property
    def command(self) -> str:
        """What writes the same text in a terminal."""
        return (
            f'rsk generate "{self.prompt}" --seed {self.seed} --temperature {self.temperature:g} '
            f"--max-new-tokens {self.new_tokens}"
        )

    @property
    def accepted(self) -> int:
        """Tokens that the draft wrote."""
        return self.text.origins[0].count("accepted")

    @property
    def count(self) -> int:
        """Tokens that were written."""
        return len(self.text.tokens[0])
