"""What generates: messages in, text out. The union is the registry; each file is one choice with `open(model)`."""

from typing import Annotated

from pydantic import Field

from tunesmith.engines.auto import Auto
from tunesmith.engines.echo import Echo
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.remote import Remote
from tunesmith.engines.transformers import Transformers

EngineConfig = Annotated[Auto | Transformers | LlamaCpp | Remote | Echo, Field(discriminator="kind")]
