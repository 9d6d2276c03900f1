"""From a training config and what is known of data and memory to the loop's job. Knows every part, trains none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from tunesmith import models
from tunesmith.core.files import sources_sha256
from tunesmith.models.load import identity
from tunesmith.models.shape import read_shape
from tunesmith.training.distributed import own_device
from tunesmith.training.loop import Job
from tunesmith.training.objectives import Grpo, Ppo
from tunesmith.training.passes import batch_of, shared_once
from tunesmith.training.untrained import untrained_of
from tunesmith.training.watch import watch_over

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Dataset, MemoryPlan
    from tunesmith.core.run import Run
    from tunesmith.data.dataset import Rows
    from tunesmith.models.load import Found
    from tunesmith.training.distributed import Team
    from tunesmith.training.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Ready:
    """What is known before any weights are loaded."""

    found: Found
    tokenizer: Any
    dataset: Dataset
    plan: MemoryPlan


def load_for(config: Any, ready: Ready, splits: dict[str, Rows], run: Run) -> Any:
    """The base model with the method put on it, in the precision that the plan counts with; `config` is train's.

    What the objective wants to know of the untrained model is asked before the method changes it.
    """
    from tunesmith.models.lean import make_lean
    from tunesmith.models.recompute import recompute_activations
    from tunesmith.models.split import frozen_layers
    from tunesmith.training.activation_cache import attach_states
    from tunesmith.training.reference import add_reference

    found, plan = ready.found, ready.plan
    torch.manual_seed(config.seed)
    model = config.method.load(replace(found, is_reward=config.objective.kind == "reward"), plan.precision)
    # where the policy will compute, so that both round alike; weights that are to be spread may have no room there
    is_spread = config.devices.spreads_weights
    if not is_spread:
        make_lean(model)
    key = {
        "weights": identity(found), "data": ready.dataset.data_sha256, "precision": plan.precision,
        "stored": str(model.dtype), "quantized": str(getattr(model.config, "quantization_config", None)),
        "libraries": [torch.__version__, transformers.__version__], "modules": sources_sha256(models),
        "device": "cpu" if is_spread else torch.device(own_device()).type,
    }  # fmt: skip
    entry = attach_states(config, model, read_shape(found.base), splits, key, run)
    if config.objective.uses_reference:
        add_reference(model, splits, key, run)
    torch.manual_seed(config.seed)
    model = config.method.put(model)
    if not is_spread:
        make_lean(model)
    assert not entry or entry <= frozen_layers(model), "a layer whose states are read from disk is trained"
    if plan.checkpointing:
        recompute_activations(model)
    if isinstance(config.objective, Ppo):
        from tunesmith.models.critic import ActorCritic

        return ActorCritic(model, config.objective.kl)
    return model


def make_job(config: Any, ready: Ready, model: Any, splits: dict[str, Rows], team: Team, run: Run) -> Job:
    """The job of this process; `config` is train's."""
    has_critic, tokenizer = isinstance(config.objective, Ppo), ready.tokenizer

    def write_weights(trained: Any, folder: Path) -> None:
        config.method.save(trained.policy if has_critic else trained, folder)
        tokenizer.save_pretrained(folder)
        if has_critic:
            trained.save(folder)

    def read_weights(trained: Any, folder: Path) -> None:
        config.method.restore(trained.policy if has_critic else trained, folder)
        if has_critic:
            trained.restore(folder)

    batch = batch_of(config, own_device().split(":")[0], splits["train"].each)
    base = {"model": config.model, "weights_sha256": identity(ready.found)}
    template = ready.dataset.template_sha256
    return Job(
        model=model, objective=config.objective, batch=batch, optimizer=config.optimizer,
        rows=splits["train"], held_out=splits["held_out"], evaluation=config.evaluation, save=config.save,
        shared=partial(shared_once, config, read_shape(ready.found.base)),
        precision=ready.plan.precision, seed=config.seed, pad_token=tokenizer.pad_token_id or 0,
        devices=config.devices, team=team, rate_factor=config.method.rate_factor,
        write_weights=write_weights, read_weights=read_weights, rollout=_rollout(config, ready, model, splits),
        facts={"base": base, "method": config.method.model_dump(), "template_sha256": template},
        watch=watch_over(config, ready, splits), untrained=untrained_of(config, ready, splits, batch, run),
    )  # fmt: skip


def _rollout(config: Any, ready: Ready, model: Any, splits: dict[str, Rows]) -> Rollout | None:
    """How answers are drawn and scored, for objectives that learn from their own."""
    if not isinstance(config.objective, Ppo | Grpo):
        return None
    from tunesmith.core.files import read_jsonl
    from tunesmith.engines.transformers import end_token_ids
    from tunesmith.training.rewards import open_rewards
    from tunesmith.training.rollout import Rollout, without_adapter

    policy, precision, tokenizer = getattr(model, "policy", model), ready.plan.precision, ready.tokenizer
    if config.objective.kl:
        with without_adapter(policy):  # refuses before the long work
            pass
    return Rollout(
        objective=config.objective, reward=open_rewards(config.objective.reward, tokenizer, precision),
        prompts={
            split: (rows, [row for _, row in read_jsonl(ready.dataset.dataset / f"{split}.jsonl")])
            for split, rows in splits.items()
        },
        end_ids=end_token_ids(policy, tokenizer), pad_token=tokenizer.pad_token_id or 0,
        rows_at_once=config.batch.rows, seed=config.seed, precision=precision,
    )  # fmt: skip
