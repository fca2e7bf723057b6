"""Speculative decoding with two transformers models, or with one model and prompt lookup.

The loop is Algorithm 1 of Leviathan, Kalman and Matias, "Fast inference from transformers via
speculative decoding" (2023), for a batch of prompts. :func:`decoding_step` is the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from rsk.decode import arguments
from rsk.decode.drafting import (
    ActiveRequests,
    Draft,
    ModelDraft,
    Request,
)
from rsk.decode.errors import LoadError
from rsk.decode.generation import ACCEPTED, BONUS, RECOVERED, Emission, Generation
from rsk.decode.kv_cache import CachedModel, Clock, context_length
from rsk.decode.loading import NGRAM, LoadedPair, check_models, load_pair, shipped_pair
from rsk.decode.prompt_lookup import LookupThenModelDraft, NgramDraft
from rsk.decode.sampling import Processor, Sampling
from rsk.decode.speculation_length import SpeculationLength, StepCost, speculation_length
from rsk.sampler.logits import rejection_sample_from_logits, sample_from_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "NGRAM",
    "Emission",
    "Generation",
    "LoadError",
    "LoadedPair",
    "decoding_step",
    "load_pair",
    "shipped_pair",
    "speculative_generate",
]


def decoding_step(
    batch: ActiveRequests,
    target: CachedModel,
    draft: Draft,
    sampling: Sampling,
    spec_len: int,
    backend: str,
) -> tuple[list[list[int]], list[int], list[int]]:
    """One step of speculative decoding for every request: at least one token, at most K + 1.

    Returns:
        Per request: its new tokens, how many draft tokens it had, how many of them it accepted.
    """
    # The draft proposes K tokens x_1 .. x_K, each drawn from its own distribution q_k.
    rooms = [min(spec_len, request.room) for request in batch.requests]
    x, q, laws = draft.propose(batch, max(rooms))
    num_drafts = x.shape[1]
    # A request that needs fewer tokens than the others has a shorter draft: -1 ends it.
    if min(rooms) < num_drafts:
        k = torch.arange(num_drafts, device=batch.device)
        x = x.masked_fill(k >= batch.tensor(rooms).unsqueeze(1), -1)

    # The target scores them in one pass: p_1 .. p_K, and p_{K+1} for the token after the last.
    last = batch.tensor([request.tokens[-1:] for request in batch.requests])
    tokens, lengths = torch.cat([last, x], 1), [length + num_drafts for length in batch.lengths]
    p = target.forward(tokens, lengths, num_drafts + 1)

    # Accept x_k with probability min(1, p_k / q_k). Replace the first rejected token by a sample
    # of the residual max(p_k - q_k, 0); if none was rejected, add a bonus token from p_{K+1}.
    # q and p are logits, which become probabilities in the sampler; the draft's laws are known.
    with target.clock.part("sampler"):
        p = sampling.process(p, batch.texts, batch.indices, x)
        samples = rejection_sample_from_logits(
            x,
            q,
            p,
            seed=batch.seeds,
            position=batch.positions,
            backend=backend,
            draft_laws=laws,
            **sampling.filters,
        )
        accepted = samples.num_accepted.tolist()
    if min(accepted) < 0:
        raise ValueError("a model returned NaN or infinite logits: its weights need a wider dtype")
    drafted = (x >= 0).sum(1).tolist()
    emitted = [row[: n + 1] for row, n in zip(samples.tokens.tolist(), accepted, strict=True)]
    return emitted, drafted, accepted


@torch.inference_mode()
def speculative_generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | str | None,
    prompts: arguments.Prompts,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    spec_len: int | str = 4,
    lookup: bool = False,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    logits_processor: Sequence[Processor] = (),
    seed: int | Sequence[int] | None = None,
    backend: str = "auto",
    stop_tokens: int | str | Iterable[int | str] | None = None,
    on_emit: Callable[[Emission], None] | None = None,
) -> Generation:
    """Continue prompts with the target's own distribution, at fewer passes of the target.

    Source: Leviathan, Kalman and Matias 2023, Algorithm 1. The output follows the target's
    distribution whatever the draft proposes; a better draft only makes it faster.

    Args:
        target: a causal language model of transformers.
        draft: a smaller one over the same vocabulary; or "ngram", which proposes what followed the
            last few tokens where they occurred before; or ``None``, plain decoding.
        prompts: one text; the token ids of one prompt; a list of several of these; or what a
            tokenizer returns. Ids may stand in lists, arrays or tensors, [n] or [B, n].
        tokenizer: of the target; needed for texts.
        spec_len: K, draft tokens per step, 0 to 128; 0 is plain decoding; "auto" measures what
            pays (:class:`rsk.decode.speculation_length.MeasuredLength`), and then a seed does not
            repeat a sampled text.
        lookup: propose as "ngram" does where the last three tokens occurred before, and with the
            draft elsewhere.
        max_new_tokens: at most so many new tokens per prompt.
        temperature: as are the next four, applied to both models; 0 is greedy.
        top_k: sample among the k most probable tokens; 0 means all.
        top_p: sample among the most probable tokens that make up this probability; 1 means all.
        min_p: sample among the tokens at least this probable relative to the best; 0 means all.
        logits_processor: transformers' processors, or other functions of token ids [1, n] and
            scores [1, V], that change the logits before all that; one call for each row.
        seed: reproduces the result. An int s gives prompt b the seed s + b, wrapping; a sequence
            has one seed per prompt; ``None`` draws one from PyTorch's global CPU generator. A
            prompt's random numbers depend on its seed alone, so its text is the same with every
            ``backend`` and in every batch, given the same models with the same logits (which
            another batch, device or version may round differently), ``spec_len``,
            ``max_new_tokens`` and sampling parameters. Another of these is another text.
        backend: of the sampler, see :func:`rsk.rejection_sample`.
        stop_tokens: token ids that end a text, or texts that are one token each; the target's own
            end-of-text ids by default; none with ``()``.
        on_emit: called after each step, once per request, with its new tokens.

    Raises:
        ValueError: an argument out of range, different vocabularies or devices, an empty prompt,
            or one that leaves no room for ``max_new_tokens`` in the context of a model.
        TypeError: an argument of the wrong type.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, logits_processor)
    length = speculation_length(spec_len)
    max_new_tokens = arguments.integer("max_new_tokens", max_new_tokens, 1)
    if on_emit is not None and not callable(on_emit):
        raise TypeError(f"on_emit: expected a function or None, got {arguments.shown(on_emit)}")
    check_models(target, draft)
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer: expected a tokenizer, got {arguments.shown(tokenizer)}")
    stops = arguments.stop_ids(stop_tokens, target, tokenizer)
    # The first use of a backend may compile it: not a part of decoding.
    row = torch.zeros(1, 1, dtype=torch.float32, device=target.device)
    sample_from_logits(row, seed=0, backend=backend)

    clock = Clock(target.device)
    ids = arguments.token_ids(prompts, tokenizer)
    check_lengths(ids, max_new_tokens, target, draft)
    seeds = arguments.seeds(seed, len(ids))
    requests = [Request(i, ids[i], max_new_tokens, seeds[i]) for i in range(len(ids))]

    def end(request: Request, tokens: list[int]) -> int:
        return next((i for i, token in enumerate(tokens, 1) if token in stops), 0)

    result = decode(
        requests, target, draft, sampling, length, backend, clock, end, on_emit, lookup=lookup
    )
    if tokenizer is not None:
        result.texts = [
            str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in result.tokens
        ]
    result.seconds = clock.split()
    return result


def decode(
    requests: list[Request],
    target: PreTrainedModel,
    draft: PreTrainedModel | str | None,
    sampling: Sampling,
    length: SpeculationLength,
    backend: str,
    clock: Clock,
    end: Callable[[Request, list[int]], int],
    on_emit: Callable[[Emission], None] | None = None,
    *,
    lookup: bool = False,
) -> Generation:
    """Take steps until every request is finished.

    Args:
        requests: their ``tokens`` grow.
        target: as is ``draft``, see :func:`speculative_generate`.
        draft: may be ``None``.
        sampling: what logits become.
        length: chooses K before each step.
        backend: of the sampler.
        clock: counts the time of the parts.
        end: of a request and its new tokens of a step: after how many of them its text ends, 0 if
            it goes on.
        on_emit: as is ``lookup``, see :func:`speculative_generate`.
        lookup: needs a draft.

    Returns:
        Everything but ``texts`` and ``seconds``.
    """
    if lookup and (draft is None or isinstance(draft, str)):
        raise ValueError(
            f"lookup: goes with a draft model, got {draft!r}; draft={NGRAM!r} is lookup alone"
        )
    cached_target = CachedModel(target, "target", clock)
    drafter = Draft()
    if isinstance(draft, str):
        drafter = NgramDraft()
    elif draft is not None and length.longest:
        kind = LookupThenModelDraft if lookup else ModelDraft
        drafter = kind(CachedModel(draft, "draft", clock), sampling, backend)
    cached_target.read([request.tokens[:-1] for request in requests])
    drafter.start(requests)

    counts = [0] * length.longest
    result = Generation([""] * len(requests), [], [], counts, [*counts], 0, 0, [], {})
    active = requests
    clock.lap()
    while active:
        batch = ActiveRequests(active, target.device)
        spec_len = length.choose()
        judged = sum(result.tried), sum(result.accepted)
        steps = decoding_step(batch, cached_target, drafter, sampling, spec_len, backend)
        positions = max(steps[1]) + 1
        result.spec_lens.append(spec_len)
        result.target_passes += 1
        result.request_passes += len(active)
        for request, tokens, drafted, accepted in zip(active, *steps, strict=True):
            emission = _emit(request, tokens, drafted, accepted, end(request, tokens), result)
            if on_emit is not None:
                with clock.part("callback"):
                    on_emit(emission)
        rows = [row for row, request in enumerate(active) if not request.finished]
        active = [active[row] for row in rows]
        if active:
            cached_target.keep(rows, [len(request.tokens) - 1 for request in active])
            drafter.keep(rows, active)
        took = clock.lap()
        length.learn(
            StepCost(
                positions,
                sum(result.tried) - judged[0],
                sum(result.accepted) - judged[1],
                took["target"],
                took["draft"],
                took["sampler"] + took["rest"],
            )
        )
    result.tokens = [request.tokens[request.prompt_length :] for request in requests]
    result.origins = [request.origins for request in requests]
    return result


def _emit(
    request: Request,
    tokens: list[int],
    drafted: int,
    accepted: int,
    end: int,
    result: Generation,
) -> Emission:
    """Append a step's tokens to a request, up to where it ends, and count what was judged."""
    origins = [ACCEPTED] * accepted + [BONUS if accepted == drafted else RECOVERED]
    if end:
        tokens, origins = tokens[:end], origins[:end]
    for k in range(min(drafted, len(tokens))):
        result.tried[k] += 1
        result.accepted[k] += origins[k] == ACCEPTED
    request.tokens += tokens
    request.origins += origins
    request.finished = end > 0 or request.room < 0
    return Emission(request.index, tokens, origins)


def check_lengths(
    ids: list[list[int]],
    max_new_tokens: int,
    target: PreTrainedModel,
    draft: PreTrainedModel | str | None,
) -> None:
    """Raise ``ValueError`` if a prompt is empty, unknown to the target, or leaves no room."""
    models = {"target": target}
    if draft is not None and not isinstance(draft, str):
        models["draft"] = draft
    vocab_size = target.config.vocab_size
    for i, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: expected at least one token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompt {i} has token ids outside [0, {vocab_size})")
        for name, model in models.items():
            context = context_length(model)
            if len(prompt) + max_new_tokens > context:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} "
                    f"that is more than the {name}'s context of {context}"
                )
