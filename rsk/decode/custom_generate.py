"""Speculative decoding from within ``model.generate`` of transformers.

``custom_generate`` is where transformers lets a function take the place of its own decoding loop.
It prepares everything, padding, lengths, processors and criteria, and calls the function with them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsk.decode import arguments
from rsk.decode.drafting import Request
from rsk.decode.generation import Emission
from rsk.decode.kv_cache import Clock
from rsk.decode.loading import NGRAM, check_models
from rsk.decode.loop import check_lengths, decode
from rsk.decode.sampling import Processor, Sampling
from rsk.decode.speculation_length import speculation_length

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

_HARMLESS = {"attention_mask", "position_ids", "cache_position", "logits_to_keep", "use_cache"}
"""What transformers prepares for a forward pass and this loop prepares by itself."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    logits_processor: Sequence[Processor] = (),
    stopping_criteria: Sequence[Callable[..., Any]] = (),
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    assistant_model: PreTrainedModel | str | None = None,
    draft: PreTrainedModel | str | None = None,
    spec_len: int | str | None = None,
    lookup: bool = False,
    seed: int | Sequence[int] | None = None,
    backend: str = "auto",
    **model_kwargs: Any,
) -> Any:
    """Decode speculatively inside ``model.generate(..., custom_generate=rsk.decode.generate)``.

    Batches are welcome, each row going at its own speed. Temperature, top-k, top-p and min-p are
    the sampler's (tokens that tie at a threshold stay); all other processors and the criteria are
    called for one row at a time, as transformers would show it, padding included (in its place in
    a batch of copies, for processors that hold something for each row), and with scores of ``None``
    for criteria. Draft and target share the processors, which must keep no state between calls.

    Args:
        model: the target. This and the next six are what ``model.generate`` prepares.
        input_ids: int64 [B, n], padded on the left.
        logits_processor: those asked for and those that the configuration implies.
        stopping_criteria: the same; asked after each new token.
        generation_config: ``do_sample``, lengths and special tokens count.
        synced_gpus: must be false.
        streamer: gets each new token of a single prompt.
        assistant_model: the draft.
        draft: the draft, if it is no model: "ngram" is prompt lookup. One of both is needed.
        spec_len: K, draft tokens per step; by default ``prompt_lookup_num_tokens`` or 4.
        lookup: as is ``seed``, see :func:`rsk.decode.loop.speculative_generate`.
        seed: ``None`` draws one from PyTorch's global CPU generator.
        backend: of the sampler.
        **model_kwargs: the attention mask, and what needs no attention.

    Returns:
        Token ids int64 [B, longest], prompts included, padded on the right; in a
        ``GenerateDecoderOnlyOutput`` if ``return_dict_in_generate`` is set.

    Raises:
        ValueError: something was asked for that this loop does not do, or that does not fit.
        TypeError: an argument of the wrong type.
    """
    if streamer is None:  # transformers binds it as an argument of its own and passes it on to none
        streamer = _argument_of_generate(model, "streamer")
    config: Any = generation_config
    draft, spec_len = _draft(model, assistant_model if draft is None else draft, spec_len, config)
    length = speculation_length(4 if spec_len is None else spec_len)
    _refuse(model, input_ids, config, synced_gpus, streamer, model_kwargs)
    check_models(model, draft)

    requests = _requests(input_ids, model_kwargs.get("attention_mask"), config.max_length, seed)
    prompts = [request.tokens for request in requests]
    check_lengths(prompts, config.max_length - input_ids.shape[1], model, draft)
    with torch.inference_mode():
        texts = decode(
            requests,
            model,
            draft,
            _sampling(logits_processor, config.do_sample, len(requests)),
            length,
            backend,
            Clock(model.device),
            _ending(stopping_criteria, input_ids.device),
            None if streamer is None else _streaming(streamer),
            lookup=lookup,
        ).tokens
    if streamer is not None:
        streamer.end()
    sequences = _sequences(input_ids, texts, _pad_token(config, texts))
    if not config.return_dict_in_generate:
        return sequences
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]


def _draft(
    model: PreTrainedModel,
    given: PreTrainedModel | str | None,
    spec_len: int | str | None,
    config: Any,
) -> tuple[PreTrainedModel | str, int | str | None]:
    """The draft and K: those given, or what ``model.generate`` was asked for in its own words."""
    draft = given
    if draft is None:  # as with a streamer
        draft = _argument_of_generate(model, "assistant_model")
    lookup_tokens = getattr(config, "prompt_lookup_num_tokens", None)
    if draft is None and lookup_tokens:
        draft = NGRAM
    if draft == NGRAM and spec_len is None:
        spec_len = lookup_tokens
    if draft is None:
        raise ValueError(
            "custom_generate=rsk.decode.generate: expected a draft, in assistant_model=, or in "
            'draft= (a model, or "ngram" for prompt lookup), got none'
        )
    return draft, spec_len


def _argument_of_generate(model: PreTrainedModel, name: str) -> Any:
    """What ``model.generate``, which called us, was given under a name that it does not pass on.

    ``None`` if it was given nothing, or if we were called otherwise.
    """
    from transformers import GenerationMixin

    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is model:
            return frame.f_locals.get(name)
        frame = frame.f_back
    return None


def _refuse(
    model: Any,
    input_ids: Tensor,
    config: Any,
    synced_gpus: bool,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> None:
    """Raise ``ValueError`` for what this loop does not do."""
    cache = model_kwargs.get("past_key_values")
    kind = getattr(config, "cache_implementation", None)
    others = sorted(
        name
        for name, value in model_kwargs.items()
        if name not in _HARMLESS | {"past_key_values"} and value is not None
    )
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    wanted = [name for name in outputs if getattr(config, name, None)]
    guidance = getattr(config, "guidance_scale", None)
    for is_so, what in (
        (model.config.is_encoder_decoder, "an encoder-decoder model"),
        (not input_ids.shape[1], "a prompt without token ids (inputs_embeds)"),
        ((config.num_beams or 1) > 1, f"num_beams={config.num_beams}"),
        (synced_gpus, "synced_gpus=True"),
        (streamer is not None and len(input_ids) > 1, "a streamer for several prompts"),
        (bool(wanted), f"{', '.join(wanted)}=True"),
        (guidance is not None and guidance != 1, f"guidance_scale={guidance}, which keeps state"),
        (kind is not None and not kind.startswith("dynamic"), f"cache_implementation={kind!r}"),
        (cache is not None and cache.get_seq_length() > 0, "past_key_values of an earlier call"),
        (bool(others), f"the model's arguments {', '.join(others)}"),
    ):
        if is_so:
            raise ValueError(f"custom_generate=rsk.decode.generate does not do {what}")


def _left_padding(input_ids: Tensor, mask: Tensor | None) -> list[int]:
    """How many tokens of each row are padding."""
    if mask is None:
        return [0] * len(input_ids)
    kept = mask.bool()
    if mask.shape != input_ids.shape or not bool((kept[:, 1:] >= kept[:, :-1]).all()):
        raise ValueError(
            "attention_mask: expected padding on the left alone, zeros and then ones in each row; "
            "tokenizers do so with padding_side='left'"
        )
    return (~kept).sum(1).tolist()


def _requests(
    input_ids: Tensor, mask: Tensor | None, max_length: int, seed: int | Sequence[int] | None
) -> list[Request]:
    """One for each row, without its padding."""
    rows, padding = input_ids.tolist(), _left_padding(input_ids, mask)
    seeds = arguments.seeds(seed, len(rows))
    new_tokens = max_length - input_ids.shape[1]
    return [
        Request(i, row[pad:], new_tokens, seeds[i], row[:pad])
        for i, (row, pad) in enumerate(zip(rows, padding, strict=True))
    ]


def _ending(
    criteria: Sequence[Callable[..., Any]], device: torch.device
) -> Callable[[Request, list[int]], int]:
    """What finds where the criteria end a text: see :func:`rsk.decode.loop.decode`."""

    def end(request: Request, tokens: list[int]) -> int:
        ids = torch.tensor([[*request.padding, *request.tokens, *tokens]], device=device)
        before = ids.shape[1] - len(tokens)
        for i in range(1, len(tokens) + 1):
            shown = ids[:, : before + i]
            asked = [bool(criterion(shown, None)) for criterion in criteria]
            if any(asked):
                return i
        return 0

    return end


def _streaming(streamer: BaseStreamer) -> Callable[[Emission], None]:
    """What gives a streamer each new token."""

    def stream(emission: Emission) -> None:
        for token in emission.tokens:
            streamer.put(torch.tensor([token], device="cpu"))

    return stream


def _sequences(input_ids: Tensor, texts: list[list[int]], pad: int) -> Tensor:
    """Prompts and new tokens, padded on the right."""
    longest = max(map(len, texts))
    new = torch.tensor(
        [[*text, *[pad] * (longest - len(text))] for text in texts], device=input_ids.device
    )
    return torch.cat([input_ids, new.to(input_ids.dtype)], 1)


def _sampling(processors: Sequence[Processor], do_sample: bool, batch_size: int) -> Sampling:
    """The last processors, as far as the sampler has them itself, as its own; and the others."""
    from transformers.generation import logits_process as known

    own: dict[Any, str] = {
        known.TemperatureLogitsWarper: "temperature",
        known.TopKLogitsWarper: "top_k",
        known.TopPLogitsWarper: "top_p",
        known.MinPLogitsWarper: "min_p",
    }
    if not do_sample:
        return Sampling(temperature=0, processors=processors, batch_size=batch_size)
    first, order = len(processors), list(own)
    while first and type(processors[first - 1]) in order and _is_plain(processors[first - 1]):
        first -= 1
        order = order[: order.index(type(processors[first]))]  # they come in this order
    filters = {own[type(p)]: getattr(p, own[type(p)]) for p in processors[first:]}
    return Sampling(**filters, processors=processors[:first], batch_size=batch_size)


def _is_plain(processor: Any) -> bool:
    """Whether what a filter leaves out is impossible, and it may leave out all but one."""
    plain = {"filter_value": -math.inf, "min_tokens_to_keep": 1}
    return all(getattr(processor, name, value) == value for name, value in plain.items())


def _pad_token(config: Any, texts: list[list[int]]) -> int:
    pad = getattr(config, "_pad_token_tensor", None)
    if pad is not None:
        return int(pad)
    if len({len(text) for text in texts}) > 1:
        raise ValueError("pad_token_id: expected one, as the texts differ in length, got None")
    return 0
