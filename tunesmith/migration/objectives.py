"""What is optimised: stage, pref_*, kto_*, ppo_*, and the tricks on the loss."""

from __future__ import annotations

from tunesmith.migration.jobs import STAGES
from tunesmith.migration.sheet import Sheet

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
    if not sheet.ours.offers("train", "objective.kind", kind):
        sheet.unsupported("stage", f"{kind} is not trained by this version", "Take dpo, which needs no reward model")
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
    has = sheet.ours.option
    if sheet.get("reward_model_type") == "api":
        sheet.unsupported(
            "reward_model_type", "a server is not asked for rewards", "Name a run of stage: rm in reward_model"
        )
    sheet.verdict("reward_model_type", "no effect", "the reward model's own folder says what it is")
    reward = str(sheet.get("reward_model") or "")
    if not reward:
        sheet.verdict("stage", "wrong", "LLaMA-Factory ends with an error without reward_model", lost=True)
    elif has("train", "objective.reward", "ppo"):
        sheet.became(
            "reward_model", "objective.reward", reward, "a run of objective reward, or a folder of its weights"
        )
    for key, path in (("ppo_epochs", "objective.epochs"), ("ppo_target", "objective.target")):
        if has("train", path, "ppo"):
            sheet.became(key, path, sheet.number(key))
        else:
            sheet.verdict(key, "not supported", "a fixed weight of the divergence and one pass over an experience")
    if sheet.number("ppo_buffer_size") > 1:
        sheet.verdict("ppo_buffer_size", "not supported", "an experience is one step", lost=False)
    for key in ("ppo_score_norm", "ppo_whiten_rewards"):
        if sheet.flag(key):
            sheet.verdict(key, "not supported", "advantages are whitened, scores are taken as they come")
    _read_reference(sheet)


def _read_tricks(sheet: Sheet, kind: str) -> None:
    """Label smoothing and noise on embeddings, for the objectives that have them."""
    for key, path in (
        ("label_smoothing_factor", "objective.label_smoothing"),
        ("neftune_noise_alpha", "objective.neftune_alpha"),
    ):
        value = sheet.number(key) if sheet.given(key) else 0.0
        if not value:
            continue
        if kind in {"sft", "pretrain"} and sheet.ours.option("train", path, kind):
            sheet.became(key, path, value)
        elif kind in {"sft", "pretrain"}:
            sheet.unsupported(key, "not there in this version", "Leave it out")
        else:
            sheet.unsupported(key, f"{kind} has no such option", "Leave it out")
