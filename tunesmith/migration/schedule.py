"""Batches, optimizer, precision, evaluation and checkpoints: what transformers' TrainingArguments say in a LLaMA-Factory file."""

from __future__ import annotations

from typing import Any

from tunesmith.migration.sheet import Sheet

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
OPTIMIZERS = {
    "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor",
}  # fmt: skip
TRACKERS = ("tensorboard", "wandb", "swanlab", "trackio", "mlflow")
ADAMW = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adamw_torch_xla",
    "paged_adamw",
    "paged_adamw_32bit",
)
"""AdamW with two moments in 32 bits, by whoever computes it."""


def read_schedule(sheet: Sheet) -> None:
    """All that says how long, how fast and how often. Only for files that train."""
    if "train" not in sheet.verbs:
        sheet.verdict("seed", "no effect", "nothing is drawn here")
        return
    _read_batch(sheet)
    _read_rate(sheet)
    _read_optimizer(sheet)
    _read_precision(sheet)
    _read_evaluation(sheet)
    _read_saving(sheet)
    sheet.became("seed", "seed", sheet.number("seed"))
    _read_trackers(sheet)


def _read_batch(sheet: Sheet) -> None:
    note = "rows in each process"
    sheet.became("per_device_train_batch_size", "batch.rows", sheet.number("per_device_train_batch_size"), note)
    sheet.became("gradient_accumulation_steps", "batch.accumulate", sheet.number("gradient_accumulation_steps"))
    sheet.became("group_by_length", "batch.group_by_length", sheet.flag("group_by_length"))
    neat, packed = sheet.flag("neat_packing"), sheet.given("packing") and sheet.flag("packing")
    if neat and sheet.get("stage") != "sft":
        sheet.verdict("neat_packing", "wrong", "LLaMA-Factory ends with an error: only with stage: sft")
    if sheet.get("stage") == "pt":
        text = "documents are laid end to end and cut at the cutoff"
        given_up = sheet.given("packing") and not packed
        sheet.verdict("packing", "not supported" if given_up else "default", text, lost=given_up)
    elif packed or neat:
        cutoff = sheet.get("cutoff_len")
        text = f"a batch goes through the model as one sequence without padding, and no row sees another. A row of LLaMA-Factory's batch holds up to {cutoff} tokens of several rows: raise batch.rows to {cutoff} / the mean length of a row for steps as large"  # fmt: skip
        text += "" if neat else ". LLaMA-Factory's packed rows see each other without neat_packing"
        for key in ("packing", "neat_packing"):
            if sheet.given(key):
                sheet.verdict(key, "not supported", text)


def _read_rate(sheet: Sheet) -> None:
    sheet.became("learning_rate", "optimizer.learning_rate", sheet.number("learning_rate"))
    steps = sheet.number("max_steps")
    if steps > 0:
        sheet.became("max_steps", "optimizer.steps", steps)
        sheet.verdict("num_train_epochs", "no effect", "max_steps replaces it, in LLaMA-Factory too")
    else:
        sheet.verdict("max_steps", "default", "epochs count")
        sheet.became("num_train_epochs", "optimizer.epochs", sheet.number("num_train_epochs"))
    schedule = str(sheet.get("lr_scheduler_type"))
    if schedule not in SCHEDULES:
        sheet.unsupported(
            "lr_scheduler_type", f"{schedule} is no schedule of Tunesmith", f"Take one of {', '.join(SCHEDULES)}"
        )
    else:
        sheet.became("lr_scheduler_type", "optimizer.schedule", SCHEDULES[schedule])
    share, count = sheet.number("warmup_ratio"), sheet.number("warmup_steps")
    key, other = ("warmup_steps", "warmup_ratio") if count else ("warmup_ratio", "warmup_steps")
    if schedule == "constant":
        sheet.put("train", "optimizer.warmup", 0.0, "lr_scheduler_type: constant")
        for name in (key, other):
            sheet.verdict(
                name,
                "wrong" if sheet.number(name) else "default",
                "schedule constant has no warmup in LLaMA-Factory; constant_with_warmup has",
            )
        return
    sheet.became(key, "optimizer.warmup", count or share)
    if sheet.given(other):
        said = f"{key} wins, in LLaMA-Factory too" if sheet.number(other) else "what LLaMA-Factory takes without it"
        sheet.verdict(other, "no effect" if sheet.number(other) else "default", said)


def _read_optimizer(sheet: Sheet) -> None:
    name = str(sheet.get("optim"))
    if name in ADAMW:
        sheet.verdict("optim", "default", "AdamW, fused")
    elif name in OPTIMIZERS:
        sheet.became("optim", "optimizer.kind", OPTIMIZERS[name])
    else:
        sheet.unsupported("optim", f"{name} is no optimizer of Tunesmith", "Leave it out for AdamW")
    if sheet.flag("use_muon"):
        sheet.became("use_muon", "optimizer.kind", "muon")
    note = "biases and norms too" if sheet.number("weight_decay") else ""
    sheet.became("weight_decay", "optimizer.weight_decay", sheet.number("weight_decay"), note)
    norm = sheet.number("max_grad_norm")
    sheet.became("max_grad_norm", "optimizer.max_gradient_norm", norm or None)
    betas = [sheet.number("adam_beta1"), sheet.number("adam_beta2")]
    _adam(sheet, ("adam_beta1", "adam_beta2"), "optimizer.betas", betas, is_standard=betas == [0.9, 0.999])
    epsilon = sheet.number("adam_epsilon")
    _adam(sheet, ("adam_epsilon",), "optimizer.epsilon", epsilon, is_standard=epsilon == 1e-8)


def _adam(sheet: Sheet, keys: tuple[str, ...], path: str, value: Any, *, is_standard: bool) -> None:
    for key in keys:
        if is_standard:
            sheet.verdict(key, "default", "AdamW's own")
        elif sheet.given(key):
            sheet.became(key, path, value)


def _read_precision(sheet: Sheet) -> None:
    bf16, fp16, pure = sheet.flag("bf16"), sheet.flag("fp16"), sheet.flag("pure_bf16")
    if bf16 or pure:
        sheet.put("train", "precision", "bf16", "pure_bf16: true" if pure else "bf16: true")
    for key, wanted in (("bf16", bf16), ("pure_bf16", pure)):
        note = "; what is trained stays in fp32" if key == "pure_bf16" else ""
        sheet.verdict(
            key,
            "became" if wanted else "default",
            f"precision: bf16{note}" if wanted else "what LLaMA-Factory takes without it",
        )
    if fp16:
        text = "precision: auto, which is bf16 where the processor has it and fp32 elsewhere; fp16 overflows, so it is not computed in"
        sheet.verdict("fp16", "not supported", text)
    off, asked = sheet.flag("disable_gradient_checkpointing"), sheet.get("gradient_checkpointing")
    if off:
        sheet.became("disable_gradient_checkpointing", "memory.checkpointing", "off")
    auto = "memory.checkpointing: auto recomputes only where the plan needs it; the numbers are the same"
    sheet.verdict("disable_gradient_checkpointing", "default", auto)
    if asked is False and not off:
        text = "LLaMA-Factory recomputes all the same: disable_gradient_checkpointing turns it off"
        sheet.verdict("gradient_checkpointing", "wrong", f"{text}. Here: {auto}")
    elif asked and off:
        sheet.verdict(
            "gradient_checkpointing", "wrong", "disable_gradient_checkpointing wins in LLaMA-Factory, and here"
        )
    sheet.verdict("gradient_checkpointing", "no effect", auto)


def _interval(sheet: Sheet, key: str, every: float) -> int | None:
    """Steps between two events; a share below 1 is of all steps. None where that cannot be known."""
    if every >= 1:
        return int(every)
    an_epoch, steps = sheet.steps_an_epoch(), sheet.number("max_steps")
    if steps <= 0 and an_epoch is None:
        sheet.verdict(key, "not supported", "a share of all steps, whose number is not known here")
        return None
    total = steps if steps > 0 else (an_epoch or 0) * sheet.number("num_train_epochs")
    return max(1, -int(-total * every // 1))


def _read_evaluation(sheet: Sheet) -> None:
    strategy = str(sheet.get("eval_strategy")).lower()
    held_out = sheet.given("eval_dataset") or sheet.number("val_size") > 0
    best = sheet.flag("load_best_model_at_end")
    sheet.became("load_best_model_at_end", "evaluation.keep_best", best)
    metric = str(sheet.get("metric_for_best_model") or "loss").removeprefix("eval_")
    if metric != "loss" and best:
        sheet.unsupported("metric_for_best_model", "the best checkpoint has the lowest held-out loss", "Leave it out")
    sheet.verdict("metric_for_best_model", "default", "the held-out loss")
    if sheet.given("early_stopping_steps"):
        sheet.became(
            "early_stopping_steps",
            "evaluation.patience",
            sheet.number("early_stopping_steps"),
            "evaluations, not steps, as in LLaMA-Factory",
        )
    if not held_out or strategy in {"no", "false"}:  # YAML 1.1 reads a bare no as false
        why = (
            "no rows are held out"
            if not held_out
            else "rows are scored before the first step, after the last and every 50"
        )
        sheet.verdict("eval_strategy", "no effect", why)
        sheet.verdict(
            "eval_steps", "no effect", why if not held_out else "eval_strategy is no: LLaMA-Factory does not look at it"
        )
        return
    if strategy == "epoch":
        an_epoch = sheet.steps_an_epoch()
        if an_epoch is None:
            sheet.verdict(
                "eval_strategy", "not supported", "an epoch's steps are not known here: evaluation.every_steps stays 50"
            )
        else:
            sheet.became("eval_strategy", "evaluation.every_steps", an_epoch, "steps of an epoch")
        sheet.verdict("eval_steps", "no effect", "eval_strategy is epoch")
        return
    typed = sheet.said.get("logging_steps")
    every = sheet.number("eval_steps") if sheet.given("eval_steps") else float(typed) if typed else 500.0
    steps = _interval(sheet, "eval_steps", every)
    if steps:
        key = "eval_steps" if sheet.given("eval_steps") else "eval_strategy"
        sheet.became(
            key, "evaluation.every_steps", steps, "" if key == "eval_steps" else "logging_steps, without eval_steps"
        )
    sheet.verdict("eval_strategy", "became", "evaluation.every_steps")


def _read_saving(sheet: Sheet) -> None:
    strategy, steps = str(sheet.get("save_strategy")).lower(), None
    if strategy == "steps":
        steps = _interval(sheet, "save_steps", sheet.number("save_steps"))
        if steps:
            sheet.became("save_steps", "save.every_steps", steps)
        sheet.verdict("save_strategy", "became", "save.every_steps")
    elif strategy == "epoch":
        steps = sheet.steps_an_epoch()
        if steps:
            sheet.became("save_strategy", "save.every_steps", steps, "steps of an epoch")
    sheet.verdict(
        "save_strategy", "no effect", f"a checkpoint every {steps or 100} steps and after the last; save.keep stay"
    )
    sheet.verdict("save_steps", "no effect", f"save_strategy is {strategy}")
    if sheet.given("save_total_limit"):
        sheet.became(
            "save_total_limit", "save.keep", sheet.number("save_total_limit"), "the best one stays beside them"
        )


def _read_trackers(sheet: Sheet) -> None:
    words = [word.lower() for word in sheet.words("report_to") if word.lower() != "none"]
    wanted = [word for word in words if word in TRACKERS]
    if wanted:
        sheet.became("report_to", "track", wanted)
    others = [word for word in words if word not in wanted]
    if others:
        text = f"{', '.join(others)}: not a tracker of Tunesmith, which has {', '.join(TRACKERS)}"
        sheet.verdict("report_to", "not supported", text)
    sheet.verdict("report_to", "default", "events.jsonl, loss.png")
    if sheet.flag("use_swanlab"):
        sheet.became("use_swanlab", "track", [*wanted, *(["swanlab"] if "swanlab" not in wanted else [])])
