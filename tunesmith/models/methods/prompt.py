"""Prompt tuning: trained embeddings before every conversation (Lester et al. 2021, arXiv 2104.08691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError
from tunesmith.models.footprint import Footprint
from tunesmith.models.virtual import check_room, restore_virtual, save_virtual

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunesmith.models.load import PRECISIONS, Found
    from tunesmith.models.shape import Shape


class Prompt(Config):
    """Trained embeddings before every conversation; the smallest files, and a learning rate of about 0.03."""

    kind: Literal["prompt"] = "prompt"
    """Trained embeddings before every conversation."""
    tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Virtual tokens; each takes a place of the context. The paper sees little gain beyond 20."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """The virtual tokens start as the embeddings of this text, repeated where it is shorter; null starts them as
    embeddings drawn from the vocabulary."""

    def footprint(self, shape: Shape) -> Footprint:
        """What planning has to know."""
        return Footprint(adapters=self.tokens * shape.hidden, passed=shape.layers, virtual=self.tokens)

    def load(self, found: Found, precision: PRECISIONS) -> PreTrainedModel:
        """The base in `precision`; it stays frozen in it."""
        from tunesmith.models.load import load_model

        return load_model(found, precision)

    def put(self, model: PreTrainedModel) -> Any:
        """Return a peft model: base frozen in its precision, virtual tokens trainable in fp32.

        Raises UsageError when the text has more tokens than there are virtual ones.
        """
        from peft import PromptTuningConfig, get_peft_model

        from tunesmith.models.scoring import task_of

        check_room(model, self.tokens)
        start: dict[str, Any] = {"prompt_tuning_init": "SAMPLE_VOCAB"}
        if self.text:
            folder = str(model.config.name_or_path)
            self._check_text(folder)
            start = {
                "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": self.text, "tokenizer_name_or_path": folder,
            }  # fmt: skip
        config = PromptTuningConfig(num_virtual_tokens=self.tokens, task_type=task_of(model), **start)
        return get_peft_model(model, config)

    def _check_text(self, folder: str) -> None:
        from transformers import AutoTokenizer

        count = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(self.text)["input_ids"])
        if count > self.tokens:
            raise UsageError(
                "method.text", f"has {count} tokens, more than the {self.tokens} virtual ones",
                do=f"Shorten it or set method.tokens to {count}",
            )  # fmt: skip

    def usual_rate(self, shape: Shape) -> float:  # noqa: ARG002 - every method has it
        """The learning rate with which answers are learned where nothing else is said."""
        return 3e-2

    def rate_factor(self, name: str) -> float:  # noqa: ARG002 - every method has it
        """Every parameter learns at the rate of the schedule."""
        return 1.0

    def save(self, model: Any, folder: Path) -> None:
        """Write the virtual tokens in peft's own layout."""
        save_virtual(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Put saved virtual tokens back into a model that `put` returned. Bit for bit."""
        restore_virtual(model, folder)
