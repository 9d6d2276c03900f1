"""Prefix tuning: trained keys and values before every conversation, in every layer (Li & Liang 2021, arXiv 2101.00190)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.core.config import Config
from tunesmith.models.footprint import Footprint
from tunesmith.models.virtual import check_room, draw_states, restore_virtual, save_virtual

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape

HIDDEN = 512
"""Width of the projection in the paper's table-to-text experiments."""


class Prefix(Config):
    """Trained keys and values before every conversation, in every layer; a learning rate of about 0.01."""

    kind: Literal["prefix"] = "prefix"
    """Trained keys and values before every conversation, in every layer."""
    tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Virtual tokens; each takes a place of the context."""
    projection: bool = False
    """While it is trained, make the prefix by a small network from random embeddings, as the paper does; the network is
    left out of what is saved for use. false trains keys and values themselves, from those of drawn words on."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Width of the middle of that network; null takes 512."""

    @model_validator(mode="after")
    def _only_what_is_used(self) -> Prefix:
        if self.hidden is not None and not self.projection:
            raise ValueError("hidden is the width of the projection, which is off")
        return self

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know."""
        width = shape.key_value_heads * shape.head_size
        every = 2 * shape.layers * width  # keys and values of a token
        hidden = self.hidden or HIDDEN
        projection = self.tokens * width + (width + 1) * hidden + (hidden + 1) * every
        trained = projection if self.projection else self.tokens * every
        return Footprint(adapters=trained, passed=shape.layers, prefix=self.tokens, recomputes=False)

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`; it stays frozen in it."""
        from tunesmith.models.load import load_model

        return load_model(found, precision)

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in its precision, prefix (or its projection) trainable in fp32.

        Keys and values start as those of tokens drawn from the vocabulary: the paper (section 7.4) found that activations
        of real words start far better than random numbers, which drown the conversation at first.
        """
        from peft import PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_past_key_values

        from tunesmith.models.scoring import task_of

        check_room(model, self.tokens)
        drawn = None if self.projection else draw_states(model, self.tokens)
        config = PrefixTuningConfig(
            num_virtual_tokens=self.tokens, prefix_projection=self.projection,
            encoder_hidden_size=self.hidden or HIDDEN, task_type=task_of(model),
        )  # fmt: skip
        tuned = get_peft_model(model, config)
        if drawn:
            initialize_kv_prefix_from_past_key_values(tuned, past_key_values=drawn)
        return tuned

    def usual_rate(self, shape: Shape) -> float:  # noqa: ARG002 - every method has it
        """The learning rate with which answers are learned where nothing else is said; a network before it bears less."""
        return 1e-3 if self.projection else 1e-2

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the prefix in peft's own layout, and the projection that a resumed run needs."""
        save_virtual(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put a saved prefix, or its projection, back into a model that `put` returned. Bit for bit."""
        restore_virtual(model, folder)
