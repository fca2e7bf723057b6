"""Loading a target, a draft and their tokenizer, without running or unpickling what they carry."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from rsk.base import machine
from rsk.decode import distilled_draft
from rsk.decode.arguments import shown
from rsk.decode.errors import LoadError
from rsk.decode.fetching import PUBLIC_MODELS, folder, is_fetched
from rsk.decode.packing import PackedLinear, can_pack, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NGRAM = "ngram"
"""In place of a draft model: prompt lookup."""
SMALL_MODEL = 20_000_000
"""Parameters of a model that one thread runs fastest."""
LEAST_SHARED = 0.9
"""Of two vocabularies that differ in padding only, the smaller is at least this share."""

_LOADER = "rsk.decode.loop.load_pair loads models by folder or hub id"


class LoadedPair(NamedTuple):
    """What :func:`load_pair` returns."""

    target: PreTrainedModel
    draft: PreTrainedModel | str | None
    tokenizer: PreTrainedTokenizerBase


def shipped_pair() -> tuple[Path, Path]:
    """Folders of the small target and draft that come with rsk."""
    from rsk.base.folders import data_dir

    return data_dir() / "models" / "target", data_dir() / "models" / "draft"


def shipped_draft(target: str | os.PathLike[str]) -> Path | None:
    """Folder of the draft that comes with rsk for a public model, if there is one."""
    from rsk.base.folders import data_dir

    name = os.fspath(target)
    folder = data_dir() / "models" / f"{name}-draft"
    return folder if name in PUBLIC_MODELS and distilled_draft.is_one(folder) else None


def load_pair(
    target: str | os.PathLike[str],
    draft: str | os.PathLike[str] | None,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
) -> LoadedPair:
    """Load a target, a draft and the target's tokenizer, each by folder or hub id.

    No code from a model folder is run and no pickle is read: weights must be safetensors. With
    ``HF_HUB_OFFLINE=1`` only folders and models fetched earlier are used.

    Args:
        target: folder or hub id, or the name of a public model that ``rsk fetch`` fetched.
        draft: the same, or "ngram" or ``None``, which are passed on.
        device: as for :func:`rsk.base.machine.device`.
        dtype: of the weights; by default as stored (usually 16 bits) on a GPU, and float32 on a
            CPU, where a large model's weights are packed (:mod:`rsk.decode.packing`).

    Raises:
        LoadError: not found, not reachable, not safetensors, or not a model transformers knows.
        ValueError: another device, or one that is not there; or the two have different
            vocabularies; names the first token that differs. Vocabularies that are padded to
            different sizes are one.
    """
    device = machine.device(device)
    target, draft = resolved(target), None if draft is None else resolved(draft)
    tokenizer = load_tokenizer(target)
    borrows = draft is not None and draft != NGRAM and distilled_draft.is_one(draft)
    has_model = draft is not None and draft != NGRAM
    if has_model and not borrows:  # before any weights are read
        _check_tokenizers(tokenizer, load_tokenizer(cast("str", draft)))
    target_model = load_model(target, device=device, dtype=dtype)
    if dtype is None and parameters(target_model) >= SMALL_MODEL and can_pack(target_model):
        pack(target_model)
    if not has_model:
        return LoadedPair(target_model, None if draft is None else NGRAM, tokenizer)
    if borrows:
        return LoadedPair(
            target_model, distilled_draft.load(cast("str", draft), target_model), tokenizer
        )
    draft_model = load_model(cast("str", draft), device=device, dtype=dtype)
    check_models(target_model, draft_model)
    return LoadedPair(target_model, draft_model, tokenizer)


def missing(source: str | os.PathLike[str] | None) -> bool:
    """Whether this names a public model that is still to be fetched."""
    name = "" if source is None else os.fspath(source)
    return name in PUBLIC_MODELS and not Path(name).is_dir() and not is_fetched(name)


def resolved(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of a fetched public model in place of its name; all else as it is.

    Raises:
        LoadError: it was not fetched.
    """
    if missing(source):
        raise LoadError(f"{source} is not here yet: rsk fetch {source}")
    name = os.fspath(source)
    return folder(name) if name in PUBLIC_MODELS and not Path(name).is_dir() else source


def parameters(model: PreTrainedModel) -> int:
    """Number of a model's parameters; those that two layers share are counted once."""
    packed = sum(each.numel for each in model.modules() if isinstance(each, PackedLinear))
    return packed + sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def fitting_threads(pair: LoadedPair) -> Iterator[None]:
    """One thread for a small model on a CPU: it loses more by sharing its work than it gains."""
    small = pair.target.device.type == "cpu" and parameters(pair.target) < SMALL_MODEL
    with machine.pinned_threads(1 if small else None):
        yield


def load_model(
    source: str | os.PathLike[str], *, device: torch.device, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load one causal language model for inference; see :func:`load_pair`."""
    from transformers import AutoModelForCausalLM

    if dtype is None and device.type == "cpu":
        dtype = torch.float32  # few processors compute in 16 bits, and none faster at batch size 1
    with _loading(source) as only_here:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=only_here,
        )
    return cast("PreTrainedModel", model.to(device).eval())


def load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load one tokenizer; see :func:`load_pair`."""
    from transformers import AutoTokenizer

    with _loading(source) as only_here:
        return AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=only_here
        )


@contextmanager
def _loading(source: str | os.PathLike[str]) -> Iterator[bool]:
    """Turn what may go wrong in loading into one clear line; draw no bar for a folder's weights.

    Yields:
        Whether only files that are here already can be had.
    """
    from transformers.utils import logging

    name = os.fspath(source)
    is_folder, is_hub_id = Path(name).is_dir(), re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name)
    if not is_folder and (isinstance(source, os.PathLike) or not is_hub_id):
        raise LoadError(f"there is no model folder {name}")
    obstacle = None if is_folder else _obstacle_to_the_hub()
    had_bars = logging.is_progress_bar_enabled()
    if is_folder:
        logging.disable_progress_bar()
    try:
        yield is_folder or obstacle is not None
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if is_folder:
            raise LoadError(f"cannot load the folder {name}: {reason}") from error
        if obstacle is not None and isinstance(error, OSError) and error.errno is None:
            reason = f"{obstacle}, and it was not fetched earlier"
        raise LoadError(
            f"{name} is neither a folder here nor fetched from the Hugging Face hub: {reason}"
        ) from error
    finally:
        if had_bars:
            logging.enable_progress_bar()


def _obstacle_to_the_hub() -> str | None:
    """Why nothing can be fetched from the hub, where its client would try for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host = urlsplit(constants.ENDPOINT).hostname
    if getproxies():  # then it is for the proxy to find the host
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"there is no network ({host}: {error.strerror})"
    return None


def _check_tokenizers(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> None:
    """Equal sizes do not make equal vocabularies: each id must mean the same text to both."""
    special = set(target.all_special_ids) | set(draft.all_special_ids)
    theirs = {token_id: token for token, token_id in draft.get_vocab().items()}
    for token, token_id in sorted(target.get_vocab().items(), key=lambda item: item[1]):
        other = theirs.get(token_id, token)
        if other != token and token_id not in special:
            raise ValueError(
                "draft and target must share one vocabulary: "
                f"token {token_id} is {token!r} to the target and {other!r} to the draft"
            )


def check_models(target: PreTrainedModel, draft: PreTrainedModel | str | None) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless ``draft`` can draft for ``target``."""
    if not hasattr(target, "config"):
        raise TypeError(f"target: expected a model, got {shown(target)}; {_LOADER}")
    wanted = f"draft: expected a model, {NGRAM!r} or None"
    if isinstance(draft, str):
        if draft != NGRAM:
            raise ValueError(f"{wanted}, got {draft!r}; {_LOADER}")
        return
    if draft is None:
        return
    if not hasattr(draft, "config"):
        raise TypeError(f"{wanted}, got {shown(draft)}; {_LOADER}")
    sizes = target.config.vocab_size, draft.config.vocab_size
    if min(sizes) < LEAST_SHARED * max(sizes):  # one may be padded further than the other
        raise ValueError(
            "draft and target must share one vocabulary: "
            f"the target has {sizes[0]} tokens, the draft {sizes[1]}"
        )
    if target.device != draft.device:
        raise ValueError(
            f"draft and target must be on one device: the target is on {target.device}, "
            f"the draft on {draft.device}"
        )
