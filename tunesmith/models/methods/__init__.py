"""How weights may change. The union is the registry; each file is one choice with `put(model)` and what it saves."""

from typing import Annotated

from pydantic import Field

from tunesmith.models.methods.freeze import Freeze
from tunesmith.models.methods.full import Full
from tunesmith.models.methods.lora import Lora
from tunesmith.models.methods.qlora import Qlora

Method = Annotated[Full | Freeze | Lora | Qlora, Field(discriminator="kind")]
