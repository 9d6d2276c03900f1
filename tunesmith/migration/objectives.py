"""What is optimised: stage, pref_*, kto_*, ppo_*, and the tricks on the loss."""

from __future__ import annotations

from pathlib import Path

from tunesmith.migration.jobs import STAGES
from tunesmith.migration.sheet import Implied, Sheet

KL = 0.2
"""What the trainer under LLaMA-Factory takes for a nat of divergence (init_kl_coef of TRL 0.9)."""
LOSSES = ("sigmoid", "hinge", "ipo", "orpo", "simpo")


def read_objective(sheet: Sheet) -> None:
    """The stage and what belongs to it. Files that train nothing only name it."""
    stage = sheet.get("stage")
    if "train" not in sheet.verbs:
        sheet.verdict("stage", "no effect", "nothing is trained here")
        return
    kind = STAGES.get(stage)
    if kind is None:
        sheet.verdict("stage", "wrong", f"no stage of LLaMA-Factory, which has {', '.join(STAGES)}", lost=True)
        return
    sheet.became("stage", "objective.kind", kind)
    reader = {"dpo": _read_dpo, "kto": _read_kto, "ppo": _read_ppo}.get(kind)
    if reader:
        reader(sheet)
    _read_tricks(sheet, kind)


def _read_dpo(sheet: Sheet) -> None:
    loss = sheet.get("pref_loss")
    if loss not in LOSSES:
        sheet.unsupported("pref_loss", f"{loss} is no variant here", f"Take one of {', '.join(LOSSES)}, or stage: kto")
        return
    sheet.became("pref_loss", "objective.variant", loss)
    sheet.became("pref_beta", "objective.beta", sheet.number("pref_beta"))
    if loss == "simpo":
        sheet.became("simpo_gamma", "objective.margin", sheet.number("simpo_gamma"))
    smoothing = sheet.number("dpo_label_smoothing")
    if smoothing and loss != "sigmoid":
        sheet.verdict(
            "dpo_label_smoothing", "wrong", "LLaMA-Factory ends with an error: only with pref_loss: sigmoid", lost=True
        )
    else:
        sheet.became("dpo_label_smoothing", "objective.label_smoothing", smoothing)
    weight = sheet.number("pref_ftx")
    if weight and loss == "orpo":
        sheet.unsupported("pref_ftx", "orpo has the better answer's loss already", "Leave it out")
    else:
        sheet.became("pref_ftx", "objective.sft_weight", weight)
    for key in ("pref_bco_weight", "ld_alpha"):
        if sheet.given(key) and sheet.number(key):
            sheet.unsupported(key, "no part of the loss here", "Leave it out")
    _read_reference(sheet)


def _read_kto(sheet: Sheet) -> None:
    sheet.became("pref_beta", "objective.beta", sheet.number("pref_beta"))
    sheet.became("kto_chosen_weight", "objective.good_weight", sheet.number("kto_chosen_weight"))
    sheet.became("kto_rejected_weight", "objective.bad_weight", sheet.number("kto_rejected_weight"))
    if sheet.number("pref_ftx"):
        sheet.unsupported("pref_ftx", "KTO has no such part here", "Leave it out")
    _read_reference(sheet)


def _read_reference(sheet: Sheet) -> None:
    """The reference is the untrained model; naming it is the same, naming another is not."""
    if not sheet.given("ref_model"):
        return
    if sheet.get("ref_model") == sheet.get("model_name_or_path") and not sheet.given("adapter_name_or_path"):
        sheet.verdict("ref_model", "default", "the reference is the model before training")
    else:
        do = "Train on top of it: name it in model_name_or_path"
        sheet.unsupported("ref_model", "the reference is the model that is trained, before training", do)


def _read_ppo(sheet: Sheet) -> None:
    reward = str(sheet.get("reward_model") or "")
    if not reward:
        sheet.verdict("stage", "wrong", "LLaMA-Factory ends with an error without reward_model", lost=True)
    elif sheet.get("reward_model_type") == "api":
        do = "Name a run of stage: rm in reward_model, or a function as objective.reward: file.py:function"
        sheet.unsupported("reward_model_type", "a server is not asked for rewards", do)
    elif any(Path(reward).glob("value_head.*")):
        text = f"{reward} keeps its head in LLaMA-Factory's own file. Train it here: the same file with stage: rm"
        sheet.unsupported("reward_model", text)
    else:
        sheet.became("reward_model", "objective.reward", reward, "a run of stage: rm, or a classifier with one label")
    sheet.verdict("reward_model_type", "no effect", "the reward model's own folder says what it is")
    sheet.became("ppo_epochs", "objective.epochs", sheet.number("ppo_epochs"))
    sheet.became("ppo_target", "objective.kl_target", sheet.number("ppo_target"))
    sheet.put("train", "objective.kl", KL, "LLaMA-Factory's trainer begins with it, and no key changes it")
    sheet.implied.append(Implied("stage", "objective.kl", KL))
    sheet.became("max_new_tokens", "objective.answer_tokens", sheet.number("max_new_tokens"))
    for key in ("do_sample", "temperature", "top_p"):
        text = "answers are drawn at temperature 1 from the whole policy, which is what the ratios in the loss are of"
        sheet.verdict(key, "not supported", text)
    sheet.verdict("max_length", "wrong", "LLaMA-Factory never looks at it: max_new_tokens comes first")
    if sheet.number("ppo_buffer_size") > 1:
        sheet.verdict(
            "ppo_buffer_size",
            "not supported",
            "every update takes all answers of its step: raise batch.accumulate instead",
        )
    for key in ("ppo_score_norm", "ppo_whiten_rewards"):
        if sheet.flag(key):
            sheet.verdict(key, "not supported", "advantages are whitened, scores are taken as they come")
    _read_reference(sheet)


def _read_tricks(sheet: Sheet, kind: str) -> None:
    """Label smoothing and noise on embeddings, for the objectives that have them."""
    smoothing = sheet.number("label_smoothing_factor")
    if smoothing and kind == "sft":
        sheet.became("label_smoothing_factor", "objective.label_smoothing", smoothing)
    elif smoothing and kind == "pretrain":
        sheet.unsupported("label_smoothing_factor", "pretrain has no such option", "Leave it out")
    elif smoothing:
        sheet.verdict("label_smoothing_factor", "wrong", "LLaMA-Factory never looks at it in this stage")
    noise = sheet.number("neftune_noise_alpha") if sheet.given("neftune_noise_alpha") else 0
    if noise and sheet.ours.option("train", "objective.neftune_alpha", kind):
        sheet.became("neftune_noise_alpha", "objective.neftune_alpha", noise)
    elif noise:
        sheet.unsupported("neftune_noise_alpha", f"{kind} has no such option", "Leave it out")
