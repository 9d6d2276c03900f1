"""Full tuning: every weight is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.config import Config
from tunesmith.models.footprint import Footprint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape


class Full(Config):
    """Every weight is trained; 16 bytes a parameter and the most memory."""

    kind: Literal["full"] = "full"
    """Every weight is trained."""

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know."""
        return Footprint(
            masters=shape.parameters, replaced=shape.parameters, layers=shape.layers, norms=True,
            head_norms=True, head=True, embeddings=True, trained_linears=(*shape.attention, *shape.mlp),
        )  # fmt: skip

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:  # noqa: ARG002 - every method has it
        """The base in fp32, whatever the run computes in."""
        from tunesmith.models.load import load_model

        return load_model(found, "fp32")

    def put(self, model: PreTrainedModel) -> Any:
        """Return the model with all parameters trainable, as fp32 master weights."""
        return model.float().requires_grad_(True)

    def usual_rate(self, shape: Shape) -> float:
        """The learning rate with which answers are learned where nothing else is said."""
        return 2e-5 * shape.rate_by_width

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the whole model as safetensors with its config."""
        model.save_pretrained(folder, safe_serialization=True)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved weights back into a model that `put` returned. Bit for bit."""
        from safetensors.torch import load_file

        state: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            state.update(load_file(path))
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {name for name in missing if "lm_head" in name and model.config.tie_word_embeddings}
        assert not unexpected, unexpected
        assert set(missing) == tied, missing
