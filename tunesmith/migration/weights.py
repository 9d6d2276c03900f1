"""The model and the method: model_name_or_path, adapters, quantization, lora_*, freeze_*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.files import read_object
from tunesmith.migration.sheet import Sheet

PLAIN_TEMPLATES = ("default", "empty", "vanilla", "alpaca", "vicuna", "fewshot")
"""Templates of LLaMA-Factory that are no model's own."""
PISSA = {-1: "pissa", 4: "pissa_niter_4", 16: "pissa_niter_16"}


def read_model(sheet: Sheet) -> None:
    """Which model, with which adapter; the same in every document. Raises UsageError where none is named."""
    typed, adapters = sheet.get("model_name_or_path"), sheet.words("adapter_name_or_path")
    if not typed and not adapters:
        raise UsageError("model_name_or_path", "is required", do="Name the model")
    base = as_model(str(typed)) if typed else ""
    for verb in sheet.verbs:
        tuned = verb == "evaluate" and "train" in sheet.verbs
        chosen = sheet.outs["train"] if tuned else adapters[0] if adapters else base
        origin = "output_dir" if tuned else "adapter_name_or_path" if adapters else f"model_name_or_path: {typed}"
        sheet.put(verb, "model", chosen, origin)
    if not adapters:
        sheet.verdict("model_name_or_path", "became", f"model: {base}")
    else:
        _read_adapter(sheet, adapters, str(typed or ""))
    template = sheet.get("template")
    if template in PLAIN_TEMPLATES:
        text = "no model's own: rows and questions go through the template that lies beside the model, which every server uses. Put another into its tokenizer_config.json to train with it"  # fmt: skip
        sheet.verdict("template", "not supported", text)
    elif template:
        text = "rows and questions go through the template that lies beside the model; LLaMA-Factory has a copy of its own, which servers do not know"  # fmt: skip
        sheet.verdict("template", "no effect", text)


def _read_adapter(sheet: Sheet, adapters: tuple[str, ...], typed: str) -> None:
    adapter, *more = adapters
    if more:
        do = "Export the base with the first ones, then name that package as model_name_or_path"
        sheet.unsupported("adapter_name_or_path", f"{1 + len(more)} adapters are not merged over each other", do)
    fresh = sheet.flag("create_new_adapter")
    text = f"model: {adapter}"
    if "train" in sheet.verbs:
        text += "; it is merged, and a new one is trained on top"
        text += "" if fresh else ", where LLaMA-Factory goes on with the old one"
        if sheet.get("stage") == "dpo" and not fresh:
            text += ". The reference is what you begin with; LLaMA-Factory compares with the model below the adapter"
        sheet.verdict("create_new_adapter", "became" if fresh else "default", "a new adapter is trained on top")
    sheet.verdict("adapter_name_or_path", "became", text)
    note = Path(adapter) / "adapter_config.json"
    known = _base_of(note)
    if known and typed and Path(known).name != Path(typed).name:
        sheet.verdict("model_name_or_path", "wrong", f"{note} says that the adapter was trained on {known}: that one is taken", lost=True)  # fmt: skip
    sheet.verdict("model_name_or_path", "no effect", "the adapter names its base itself (adapter_config.json)")


def _base_of(note: Path) -> str:
    try:
        return str(read_object(note).get("base_model_name_or_path") or "") if note.is_file() else ""
    except DataError:
        return ""  # a broken note is named when the model is loaded


def as_model(typed: str) -> str:
    """A model as `model:` takes it: a folder that is there, or hf:ID for what looks like a hub's name."""
    looks_like_id = typed.count("/") == 1 and not typed.startswith((".", "/", "~"))
    return typed if Path(typed).exists() or not looks_like_id else f"hf:{typed}"


def read_method(sheet: Sheet) -> None:
    """How weights may change. Files that train nothing only name it."""
    kind = sheet.get("finetuning_type")
    if "train" not in sheet.verbs:
        for key in ("finetuning_type", "quantization_bit"):
            sheet.verdict(key, "no effect", "nothing is trained here; the weights are taken as they are stored")
        return
    if kind not in {"lora", "freeze", "full", "p_tuning"}:
        sheet.unsupported("finetuning_type", f"{kind} is no method of Tunesmith", "Take lora, freeze or full")
        return
    if kind != "lora":
        note = "P-tuning v2, as the first year's files mean it" if kind == "p_tuning" else ""
        sheet.became("finetuning_type", "method.kind", "prefix" if kind == "p_tuning" else kind, note)
        if sheet.given("quantization_bit"):
            text = (
                f"LLaMA-Factory ends with an error: {kind} cannot train quantized weights. Take finetuning_type: lora"
            )
            sheet.verdict("quantization_bit", "wrong", text, lost=True)
        if kind == "freeze":
            _read_freeze(sheet)
        if kind == "p_tuning":
            sheet.became("pre_seq_len", "method.tokens", sheet.number("pre_seq_len"))
            sheet.became("prefix_projection", "method.projection", sheet.flag("prefix_projection"))
        return
    four_bits = _read_quantization(sheet)
    sheet.became(
        "finetuning_type",
        "method.kind",
        "qlora" if four_bits else "lora",
        "because of quantization_bit" if four_bits else "",
    )
    _read_lora(sheet, four_bits=four_bits)


def _read_quantization(sheet: Sheet) -> bool:
    if not sheet.given("quantization_bit"):
        return False
    bits, how = sheet.get("quantization_bit"), str(sheet.get("quantization_method")).lower()
    if bits != 4:
        sheet.unsupported(
            "quantization_bit",
            f"weights are trained beside 4 bits or whole, not beside {bits}",
            "Take 4, or leave it out",
        )
        return False
    sheet.verdict("quantization_bit", "became", "method.kind: qlora (NF4)")
    if how not in {"bnb", "bitsandbytes"}:
        sheet.unsupported("quantization_method", "four bits are NF4 of bitsandbytes", "Leave it out")
    sheet.verdict("quantization_method", "default", "method.kind: qlora is bitsandbytes")
    if sheet.get("quantization_type") != "nf4":
        sheet.unsupported("quantization_type", "four bits are NF4", "Leave it out")
    sheet.verdict("quantization_type", "default", "method.kind: qlora is NF4")
    return True


def _read_lora(sheet: Sheet, *, four_bits: bool) -> None:
    rank = sheet.number("lora_rank")
    sheet.became("lora_rank", "method.rank", rank)
    alpha = sheet.number("lora_alpha") if sheet.given("lora_alpha") else 2 * rank
    sheet.became("lora_alpha", "method.alpha", alpha)
    sheet.became("lora_dropout", "method.dropout", sheet.number("lora_dropout"))
    targets = sheet.words("lora_target")
    sheet.became("lora_target", "method.targets", "all-linear" if targets == ("all",) else list(targets))
    sheet.became("additional_target", "method.full_modules", list(sheet.words("additional_target")))
    sheet.became(
        "loraplus_lr_ratio",
        "method.plus_ratio",
        sheet.number("loraplus_lr_ratio") if sheet.given("loraplus_lr_ratio") else 1.0,
    )
    sheet.became("use_rslora", "method.rslora", sheet.flag("use_rslora"))
    sheet.became("use_dora", "method.dora", sheet.flag("use_dora"))
    if four_bits:
        sheet.became("double_quantization", "method.double_quantization", sheet.flag("double_quantization"))
    if sheet.flag("pissa_init"):
        _read_pissa(sheet, four_bits=four_bits)


def _read_pissa(sheet: Sheet, *, four_bits: bool) -> None:
    turns: Any = sheet.number("pissa_iter")
    for key in ("pissa_iter", "pissa_convert"):
        sheet.verdict(key, "no effect", "see pissa_init; the adapter is always saved as plain LoRA of twice the rank")
    if four_bits:
        text = "LLaMA-Factory ends with an error: PiSSA takes parts out of weights, which four bits cannot give. Take one of the two"
        sheet.verdict("pissa_init", "wrong", text, lost=True)
        return
    note = "" if turns in PISSA else f"all singular values exactly, where {turns} iterations come near them"
    sheet.became("pissa_init", "method.init", PISSA.get(turns, "pissa"), note)


def _read_freeze(sheet: Sheet) -> None:
    layers = sheet.number("freeze_trainable_layers")
    if layers < 0:
        sheet.unsupported(
            "freeze_trainable_layers",
            f"the first {-layers} layers cannot be chosen, only the last",
            "Give a number above 0",
        )
    else:
        sheet.became("freeze_trainable_layers", "method.layers", layers)
    modules = sheet.words("freeze_trainable_modules")
    sheet.became("freeze_trainable_modules", "method.modules", "all" if "all" in modules else list(modules))
    sheet.became("freeze_extra_modules", "method.extra", list(sheet.words("freeze_extra_modules")))
