"""What is optimised. Each file is one choice: the kinds of its ROWS, what it counts in a batch, and the loss of a batch.

ppo and grpo learn from answers that they draw, which they `prepare` first.
"""

from typing import Annotated

from pydantic import Field

from tunesmith.training.objectives.dpo import Dpo
from tunesmith.training.objectives.grpo import Grpo
from tunesmith.training.objectives.kto import Kto
from tunesmith.training.objectives.ppo import Ppo
from tunesmith.training.objectives.pretrain import Pretrain
from tunesmith.training.objectives.reward import Reward
from tunesmith.training.objectives.sft import Sft

Objective = Annotated[Pretrain | Sft | Reward | Dpo | Kto | Ppo | Grpo, Field(discriminator="kind")]
