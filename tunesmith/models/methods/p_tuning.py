"""P-tuning: virtual tokens made by a small network that is trained (Liu et al. 2021, arXiv 2103.10385)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.core.config import Config
from tunesmith.models.footprint import Footprint
from tunesmith.models.virtual import check_room, restore_virtual, save_virtual

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape

LAYERS = 2
"""LSTM layers of the paper's prompt encoder; also those peft builds an MLP encoder with."""


class PTuning(Config):
    """Virtual tokens made by a trained LSTM or MLP, which ties them together; a learning rate of about 0.005."""

    kind: Literal["p_tuning"] = "p_tuning"
    """Virtual tokens made by a trained LSTM or MLP."""
    tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Virtual tokens; each takes a place of the context."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """The network that makes them: a bidirectional LSTM with two linear layers on top as in the paper, or three linear
    layers. It is left out of what is saved for use."""
    hidden: Annotated[int, Field(ge=1)] = 128
    """Width of the network."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """LSTM layers; null takes 2. An MLP has none to choose."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout between LSTM layers while training."""

    @model_validator(mode="after")
    def _only_what_is_used(self) -> PTuning:
        if self.encoder == "mlp" and (self.layers is not None or self.dropout):
            raise ValueError("layers and dropout belong to the lstm encoder")
        if self.layers == 1 and self.dropout:
            raise ValueError("dropout stands between LSTM layers, so one layer has none")
        return self

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know."""
        width, hidden = shape.hidden, self.hidden
        trained = self.tokens * width
        if self.encoder == "mlp":
            trained += (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        else:  # four gates with two biases, both ways; then two linear layers
            inputs = [width] + [2 * hidden] * ((self.layers or LAYERS) - 1)
            trained += sum(2 * 4 * hidden * (given + hidden + 2) for given in inputs)
            trained += (2 * hidden + 1) * (2 * hidden + width)
        return Footprint(adapters=trained, passed=shape.layers, virtual=self.tokens)

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`; it stays frozen in it."""
        from tunesmith.models.load import load_model

        return load_model(found, precision)

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in its precision, encoder trainable in fp32."""
        from peft import PromptEncoderConfig, get_peft_model

        from tunesmith.models.scoring import task_of

        check_room(model, self.tokens)
        config = PromptEncoderConfig(
            num_virtual_tokens=self.tokens, encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.hidden, encoder_num_layers=self.layers or LAYERS, encoder_dropout=self.dropout,
            task_type=task_of(model),
        )  # fmt: skip
        return get_peft_model(model, config)

    def usual_rate(self, shape: Shape) -> float:  # noqa: ARG002 - every method has it
        """The learning rate with which answers are learned where nothing else is said; an LSTM bears more than an MLP."""
        return 5e-3 if self.encoder == "lstm" else 2e-3

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the virtual tokens in peft's own layout, and the encoder that a resumed run needs."""
        save_virtual(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put a saved encoder back into a model that `put` returned. Bit for bit."""
        restore_virtual(model, folder)
