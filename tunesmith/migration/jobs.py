"""What a LLaMA-Factory file asks for: training, questions, a talk, an export; and where the results go."""

from __future__ import annotations

from tunesmith.migration.sheet import Sheet

STAGES = {"pt": "pretrain", "sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
BOARD, FIRST = ("top.", "train.", "eval."), ("peft_config", "dist_config", "train_dataset", "init_config")
"""How the keys of a saved form of LLaMA Board begin; keys of the layout that LLaMA-Factory calls v1."""


def find_jobs(sheet: Sheet, name: str) -> None:
    """Fill `verbs`, `active` and `outs`; say what became of the keys that ask. `name` is that of the file."""
    train, predict, score = sheet.flag("do_train"), sheet.flag("do_predict"), sheet.flag("do_eval")
    generate = sheet.flag("predict_with_generate")
    asks = predict or score or generate
    if sheet.given("export_dir"):
        _use(sheet, "export")
        sheet.outs["export"] = str(sheet.get("export_dir"))
        sheet.verdict("export_dir", "became", f"tunesmith export export.yaml --out {sheet.outs['export']}")
    elif train or (not asks and sheet.given("dataset") and sheet.given("output_dir")):
        _use(sheet, "train")
        if not train:
            sheet.verdict("dataset", "wrong", "do_train is missing: LLaMA-Factory reads model and rows and ends without training. Read as do_train: true")  # fmt: skip
        if predict or generate:
            _use(sheet, "evaluate")
    elif asks:
        _use(sheet, "evaluate")
    else:
        _use(sheet, "chat", "serve")
    if train:
        sheet.verdict("do_train", "became", "train.yaml")
    _say_where(sheet, name)
    _say_asked(sheet, predict=predict, score=score, generate=generate)
    _activate(sheet)


def _use(sheet: Sheet, *verbs: str) -> None:
    sheet.verbs = (*sheet.verbs, *verbs)
    for verb in verbs:
        sheet.documents.setdefault(verb, {})


def _say_where(sheet: Sheet, name: str) -> None:
    if "train" in sheet.verbs:
        sheet.outs["train"] = str(sheet.get("output_dir") or f"runs/{name}")
        sheet.verdict("output_dir", "became", f"tunesmith train train.yaml --out {sheet.outs['train']}")
    else:
        sheet.verdict("output_dir", "no effect", "results lie where --out says")
    if sheet.flag("overwrite_output_dir"):
        text = "a folder that holds something is never written over. Choose another --out, or remove it"
        sheet.verdict("overwrite_output_dir", "no effect", text)
    if sheet.given("resume_from_checkpoint") and sheet.get("resume_from_checkpoint") is not False:
        if "train" in sheet.verbs and sheet.get("resume_from_checkpoint") is not True:
            do = "Continue it there, or name it in adapter_name_or_path to train on top of it"
            sheet.unsupported("resume_from_checkpoint", "a checkpoint of LLaMA-Factory holds no run of Tunesmith", do)
        else:
            sheet.verdict(
                "resume_from_checkpoint",
                "no effect",
                "an interrupted run continues with: tunesmith train FOLDER --resume",
            )
    else:
        sheet.verdict("resume_from_checkpoint", "default", "what LLaMA-Factory takes without it")


def _say_asked(sheet: Sheet, *, predict: bool, score: bool, generate: bool) -> None:
    if "evaluate" in sheet.verbs:
        said = (
            "evaluate.yaml: answers are generated and measured" if predict or generate else "evaluate.yaml: perplexity"
        )
    elif "train" in sheet.verbs:
        said = "held-out rows are scored before the first step, while training and after the last"
    else:
        said = "no rows are asked here"
    outcome = "no effect" if said.startswith("no ") else "became"
    for key, wanted in (("do_eval", score), ("do_predict", predict), ("predict_with_generate", generate)):
        if wanted:
            sheet.verdict(key, outcome, said)
    if predict and not generate and sheet.get("stage") == "sft":
        sheet.verdict("do_predict", "wrong", "LLaMA-Factory ends with an error without predict_with_generate")


def _activate(sheet: Sheet) -> None:
    verbs, stage, active = sheet.verbs, sheet.get("stage"), sheet.active
    generates = sheet.flag("do_predict") or sheet.flag("predict_with_generate")
    conditions = {
        "train": "train" in verbs, "talk": "chat" in verbs, "export": "export" in verbs,
        "ask": "chat" in verbs or ("evaluate" in verbs and generates) or ("train" in verbs and stage == "ppo"), "talk_or_export": bool({"chat", "export"} & set(verbs)),
    }  # fmt: skip
    active |= {name for name, holds in conditions.items() if holds}
    if "train" not in verbs:
        return
    active |= {key for key in ("quantization_bit", "adapter_name_or_path") if sheet.given(key)}
    active |= {stage} | {"dpo_or_kto" for _ in [0] if stage in {"dpo", "kto"}}
    active |= {"dpo_or_kto_or_ppo" for _ in [0] if stage in {"dpo", "kto", "ppo"}}
    active |= {"simpo"} if stage == "dpo" and sheet.get("pref_loss") == "simpo" else set()
    active |= {str(sheet.get("finetuning_type"))}
    active |= {"pissa_init"} if sheet.get("finetuning_type") == "lora" and sheet.flag("pissa_init") else set()
