"""Virtual tokens: trained states that stand before every conversation (prompt tuning, prefix tuning, P-tuning).

How many a model has, what they leave in the cache of keys and values, and how they are saved. Knows no method's options.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UsageError
from tunesmith.core.examples import IGNORED

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import DynamicCache

METHODS = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix", "P_TUNING": "p_tuning"}
"""What peft calls the methods of virtual tokens -> our names."""
ENCODER = "encoder.safetensors"
"""The network that makes the virtual tokens while they are trained; peft's own file holds only what it makes."""


def virtual_tokens(model: Any) -> int:
    """How many virtual tokens stand before a conversation; 0 for a model without, or while they are switched off."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or model._adapters_disabled:
        return 0
    return config.num_virtual_tokens


def check_room(model: Any, tokens: int) -> None:
    """Raise UsageError where virtual tokens would leave no place for a conversation."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and tokens >= longest:
        raise UsageError(
            "method.tokens", f"would fill the model's context of {longest} tokens", got=tokens, do="Take fewer"
        )


def leading_logits(model: Any) -> int:
    """Logits that the model gives for positions before the first token: those of virtual embeddings, none for a prefix."""
    count = virtual_tokens(model)
    return 0 if count and model.active_peft_config.peft_type == "PREFIX_TUNING" else count


def with_places(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch (input_ids, attention_mask, labels, each (B, T)) with a place for each virtual embedding before its rows.

    The first token stays untrained, as it is without virtual tokens, although they could predict it.
    """
    from torch.nn.functional import pad

    count = leading_logits(model)
    if not count:
        return batch
    fillers = {"input_ids": 0, "attention_mask": 1, "labels": IGNORED}
    longer = {name: pad(batch[name], (count, 0), value=filler) for name, filler in fillers.items()}
    longer["labels"][:, count] = IGNORED
    return longer


@contextmanager
def embedded(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """What to call the model with for token ids (1, N) at `positions` (1, N), virtual embeddings in their places.

    While it lasts the model puts nothing in front by itself.
    """
    count = leading_logits(model)
    if not count:
        yield {"input_ids": ids}
        return
    states = model.get_input_embeddings()(ids)  # (1, N, D)
    made = model.get_prompt(batch_size=1)[0].to(states.dtype)  # (count, D)
    ours = (positions < count)[..., None]
    with model.disable_adapter():
        yield {"inputs_embeds": made[positions.clamp(max=count - 1)].where(ours, states)}


@dataclass(frozen=True, slots=True)
class Opened:
    """A model to be fed token by token: every conversation begins with a `cache()` of its own."""

    model: Any
    """Without the wrapper that would put the virtual tokens in front at every step anew."""
    states: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Keys and values (1, heads, tokens, width) of the virtual tokens, layer by layer."""
    tokens: int = 0
    """Virtual tokens, which stand at the positions from 0 on."""

    def cache(self) -> DynamicCache:
        """A cache in which the virtual tokens have been read already."""
        from transformers import DynamicCache

        return DynamicCache(self.states)


def opened(model: Any) -> Opened:
    """Read the virtual tokens once; a model without them comes back as it is."""
    import torch
    from transformers import DynamicCache

    count = virtual_tokens(model)
    if not count:
        return Opened(model)
    inner = model.get_base_model()
    with torch.no_grad():
        made = model.get_prompt(batch_size=1)
        if leading_logits(model):
            cache: Any = DynamicCache()
            embedded = made.to(inner.get_input_embeddings().weight.dtype)  # (1, tokens, D)
            inner(inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=1)
        else:
            cache = made
    return Opened(inner, tuple((layer.keys, layer.values) for layer in cache.layers), count)


def draw_states(model: Any, tokens: int) -> DynamicCache:
    """Keys and values that a model makes of tokens drawn from its vocabulary."""
    import torch
    from transformers import DynamicCache

    ids = torch.randint(0, model.config.get_text_config().vocab_size, (1, tokens), device=model.device)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def save_virtual(model: Any, folder: Path) -> None:
    """Write peft's own layout (adapter_model.safetensors, adapter_config.json), and the encoder where there is one.

    peft keeps what the encoder makes and forgets the encoder, which a resumed run needs.
    """
    from safetensors.torch import save_file

    encoder = model.prompt_encoder[model.active_adapter]
    was_training = encoder.training
    encoder.eval()  # peft runs it to save what it makes: without dropout, and without a draw that a resumed run lacks
    model.save_pretrained(folder, safe_serialization=True)
    encoder.train(was_training)
    state = encoder.state_dict()
    if len(state) > 1:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / ENCODER)


def restore_virtual(model: Any, folder: Path) -> None:
    """Put saved virtual tokens, or the encoder that makes them, back into the model. Bit for bit.

    A reward model's head, which peft saves beside them, too.
    """
    from safetensors.torch import load_file

    from tunesmith.models.scoring import head_of
    from tunesmith.models.whole import trained_part

    saved = load_file(folder / "adapter_model.safetensors")
    made, encoder = saved.pop("prompt_embeddings"), model.prompt_encoder[model.active_adapter]
    if len(encoder.state_dict()) > 1:
        encoder.load_state_dict(load_file(folder / ENCODER))
    else:
        encoder.load_state_dict({"embedding.weight": made})
    if saved:
        trained_part(head_of(model)).load_state_dict({name.rpartition(".")[2]: value for name, value in saved.items()})
