"""How weights may change. The union is the registry; each file is one choice with `put(model)` and what it saves."""

from typing import Annotated

from pydantic import Field

from tunesmith.models.methods.bottleneck import Bottleneck
from tunesmith.models.methods.freeze import Freeze
from tunesmith.models.methods.full import Full
from tunesmith.models.methods.lora import Lora
from tunesmith.models.methods.p_tuning import PTuning
from tunesmith.models.methods.prefix import Prefix
from tunesmith.models.methods.prompt import Prompt
from tunesmith.models.methods.qlora import Qlora

Method = Annotated[Full | Freeze | Lora | Qlora | Prompt | Prefix | PTuning | Bottleneck, Field(discriminator="kind")]

BESIDE = ("prompt", "prefix", "p_tuning", "bottleneck")
"""Methods that change no weights: what they train can only stand beside them, never in a merged model or a GGUF file."""
