"""A draft of a few layers that borrows the target's embedding, so that it is small on disk.

A draft needs the target's vocabulary, and with 49 152 tokens the embedding alone would be most of
a small draft. This one has layers of the target's width, reads tokens through the target's own
embedding and writes logits through its output rows for the most frequent tokens. The others have
probability 0, which a draft may give. Its folder holds the layers, 8 bits a weight with one scale a
row, and which tokens it knows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rsk.decode.errors import LoadError
from rsk.decode.packing import PackedLinear, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "rsk-borrowing-draft/1"
CONFIG, WEIGHTS = "borrowing_draft.json", "layers.safetensors"
KNOWN = "known_tokens"


class KnownTokensHead(nn.Module):
    """Logits of the known tokens, through the target's rows; minus infinity for the others."""

    def __init__(self, output: Tensor, known: Tensor) -> None:
        super().__init__()
        self.vocab_size = len(output)
        self.packed: PackedLinear | None = None
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("rows", output.detach()[known].clone(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., width]."""
        logits = self.among_known(hidden)
        every = torch.full(
            (*hidden.shape[:-1], self.vocab_size), -torch.inf,
            dtype=logits.dtype, device=logits.device,
        )  # fmt: skip
        return every.index_copy_(-1, cast(Tensor, self.known), logits)

    def among_known(self, hidden: Tensor) -> Tensor:
        """Logits [..., known tokens]."""
        if self.packed is not None:
            states: Tensor = self.packed(hidden)
            return states
        return nn.functional.linear(hidden, cast(Tensor, self.rows))

    def pack(self) -> None:
        """Pack the rows, for a CPU."""
        rows = cast(Tensor, self.rows)
        layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(rows, requires_grad=False)
        self.packed = PackedLinear(layer, shared=True)


def make(target: PreTrainedModel, layers: int, known: Tensor) -> PreTrainedModel:
    """A draft of copies of the target's layers, evenly spread from the first to the last.

    Args:
        target: a Llama.
        layers: how many.
        known: int64 [n], the tokens that it can propose.

    Raises:
        ValueError: another kind of model, or more layers than it has.
    """
    config: Any = target.config
    if config.model_type != "llama" or not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(
            f"expected a Llama of at least {layers} layers, got {config.model_type} "
            f"of {config.num_hidden_layers}"
        )
    draft = _empty(target, layers, known)
    last = config.num_hidden_layers - 1
    taken = [round(i * last / max(layers - 1, 1)) for i in range(layers)]
    theirs: Any = target
    for mine, index in zip(draft.model.layers, taken, strict=True):
        mine.load_state_dict(theirs.model.layers[index].state_dict())
    draft.model.norm.load_state_dict(theirs.model.norm.state_dict())
    return cast("PreTrainedModel", draft)


def own_state(draft: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that are the draft's own, by name: all but what it borrows."""
    return {n: t for n, t in draft.state_dict().items() if "embed_tokens" not in n}


def save(draft: PreTrainedModel, folder: Path) -> None:
    """Write a folder for :func:`load`."""
    from safetensors.torch import save_file

    model: Any = draft
    tensors: dict[str, Tensor] = {KNOWN: model.lm_head.known.to("cpu", torch.int32)}
    for name, weight in own_state(draft).items():
        weight = weight.detach().float().cpu()
        if weight.dim() == 2:
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            tensors[f"{name}.scale"] = scale.squeeze(1)
            weight = (weight / scale).round().to(torch.int8)
        tensors[name] = weight.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / WEIGHTS))
    config = {
        "format": FORMAT,
        "layers": draft.config.num_hidden_layers,
        "vocab_size": draft.config.vocab_size,
        "hidden_size": draft.config.hidden_size,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def is_one(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds such a draft."""
    return (Path(folder) / CONFIG).is_file()


def load(folder: str | os.PathLike[str], target: PreTrainedModel) -> PreTrainedModel:
    """Load a draft for the target that it was made from, on its device, in its dtype, and packed
    if the target is.

    Raises:
        LoadError: a file is missing or of another format, or it was made from another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise LoadError(f"{folder}: expected {FORMAT}, got {config['format']}")
        layers: int = config["layers"]
        borrowed: dict[str, Any] = {"model_type": "llama"}
        borrowed |= {name: config[name] for name in ("vocab_size", "hidden_size")}
        tensors = load_file(str(Path(folder) / WEIGHTS))
        known = tensors.pop(KNOWN).long()
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"cannot load the draft in {folder}: {error}") from error
    for name, value in borrowed.items():
        if getattr(target.config, name, None) != value:
            raise LoadError(
                f"the draft in {folder} borrows the embedding of a model with {name} {value}; "
                f"the target has {getattr(target.config, name, None)}"
            )
    if not 0 <= int(known.min()) <= int(known.max()) < borrowed["vocab_size"]:
        raise LoadError(f"{folder}: {WEIGHTS} names tokens outside the vocabulary")
    draft = _empty(target, layers, known)
    scales = {n: tensors.pop(n) for n in list(tensors) if n.endswith(".scale")}
    state = {
        n: t.float() * scales[f"{n}.scale"][:, None] if f"{n}.scale" in scales else t.float()
        for n, t in tensors.items()
    }
    wanted = {n: t.shape for n, t in own_state(draft).items()}
    if wanted != {n: t.shape for n, t in state.items()}:
        raise LoadError(f"{folder}: {WEIGHTS} does not hold the weights of {layers} such layers")
    draft.load_state_dict(state, strict=False)  # for it lacks what is borrowed
    if isinstance(target.get_output_embeddings(), PackedLinear):
        pack(draft, rounding=True)
        draft.lm_head.pack()
    return cast("PreTrainedModel", draft)


def _empty(target: PreTrainedModel, layers: int, known: Tensor) -> Any:
    """A draft whose layers are still to be filled, with the target's embedding as its own."""
    from transformers import LlamaConfig

    from rsk.decode.lean_llama import LeanLlama

    theirs: Any = target
    config = LlamaConfig(**{**theirs.config.to_dict(), "num_hidden_layers": layers})
    config.tie_word_embeddings = False
    draft: Any = LeanLlama(config)
    output = theirs.get_output_embeddings().weight
    draft.lm_head = KnownTokensHead(output, known.to(output.device))
    draft = draft.to(device=target.device, dtype=target.dtype)
    draft.model.embed_tokens = theirs.get_input_embeddings()
    draft.model.rotary_emb = theirs.model.rotary_emb  # frequencies that stay float32 in any dtype
    return draft.eval()
