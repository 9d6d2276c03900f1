"""What can be wrong with a run. Each file is one disease: `lacks(record)`, `find(record)`, and FOLLOWS, the diseases of which
it is a mere consequence; its thresholds stand there with their reasons.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from tunesmith.training.diseases import (
    collapse,
    diverging,
    end_token_never_learned,
    exploding_gradients,
    forgetting,
    learning_rate_too_high,
    learning_rate_too_low,
    not_converging,
    nothing_trained,
    overfitting,
    repeated_data_order,
    repetition,
    too_few_rows,
)

DISEASES: dict[str, ModuleType] = {
    "nothing_trained": nothing_trained,
    "end_token_never_learned": end_token_never_learned,
    "too_few_rows": too_few_rows,
    "repeated_data_order": repeated_data_order,
    "diverging": diverging,
    "exploding_gradients": exploding_gradients,
    "learning_rate_too_high": learning_rate_too_high,
    "learning_rate_too_low": learning_rate_too_low,
    "not_converging": not_converging,
    "overfitting": overfitting,
    "forgetting": forgetting,
    "repetition": repetition,
    "collapse": collapse,
}
DiseaseName = Literal[
    "nothing_trained", "end_token_never_learned", "too_few_rows", "repeated_data_order", "diverging",
    "exploding_gradients", "learning_rate_too_high", "learning_rate_too_low", "not_converging", "overfitting",
    "forgetting", "repetition", "collapse",
]  # fmt: skip
