"""Files that ask a tuned model or export it: do_predict, chat and api, export_dir."""

from __future__ import annotations

from typing import Any

from tunesmith.migration.sheet import Sheet

PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}


def read_answers(sheet: Sheet) -> None:
    """How words are chosen, which engine answers, what an export holds."""
    if "evaluate" in sheet.verbs:
        _read_evaluate(sheet)
    if "chat" in sheet.verbs:
        _read_talk(sheet)
    if "export" in sheet.verbs:
        _read_export(sheet)
    if sheet.given("infer_backend") and "talk" in sheet.active:
        engine = str(sheet.get("infer_backend")).lower()
        if engine in {"huggingface", "hf"}:
            sheet.verdict("infer_backend", "became", "engine.kind: transformers")
        else:
            text = f"{engine} is not started here; the same weights answer through engine.kind: transformers"
            sheet.verdict("infer_backend", "not supported", text)


def _read_evaluate(sheet: Sheet) -> None:
    generates = "ask" in sheet.active
    sheet.put("evaluate", "metrics", ["bleu"] if generates else ["perplexity"], "what LLaMA-Factory measures")
    sheet.put(
        "evaluate", "base", None, "LLaMA-Factory asks one model; auto compares it with the one it was trained from"
    )
    if generates:
        _read_sampling(sheet, "evaluate", "sampling.")
    if "train" not in sheet.verbs:
        sheet.verdict("cutoff_len", "no effect", "questions are not cut")


def _read_sampling(sheet: Sheet, verb: str, prefix: str) -> None:
    """Temperature, top_p and the longest answer. LLaMA-Factory draws where nobody says otherwise."""
    draws = sheet.flag("do_sample")
    values: dict[str, Any] = {
        "temperature": sheet.number("temperature") if draws else 0.0,
        "top_p": sheet.number("top_p") if draws else 1.0,
        "max_new_tokens": sheet.number("max_new_tokens"),
    }
    names = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens"}
    for key, value in values.items():
        if sheet.ours.option(verb, f"{prefix}{names[key]}"):
            sheet.became(
                key,
                f"{prefix}{names[key]}",
                value,
                "" if draws or key == "max_new_tokens" else "do_sample is false",
                verb=verb,
            )
    sheet.verdict("do_sample", "default" if draws else "became", "temperature as given" if draws else "temperature: 0")
    sheet.verdict(
        "max_length", "wrong", "LLaMA-Factory never looks at it: max_new_tokens, with 1024 of its own, comes first"
    )


def _read_talk(sheet: Sheet) -> None:
    for verb in ("chat", "serve"):
        _read_sampling(sheet, verb, "")
        sheet.put(verb, "engine.kind", "transformers", "infer_backend")
    precision = str(sheet.get("infer_dtype"))
    if precision in PRECISIONS:
        for verb in ("chat", "serve"):
            sheet.became("infer_dtype", "engine.precision", PRECISIONS[precision], verb=verb)
    elif precision != "auto":
        sheet.verdict("infer_dtype", "not supported", f"{precision} is not computed in; engine.precision: auto")
    sheet.verdict("infer_dtype", "default", "engine.precision: auto")
    if sheet.given("default_system"):
        sheet.became("default_system", "system", sheet.get("default_system"), verb="chat")


def _read_export(sheet: Sheet) -> None:
    bits, precision = sheet.get("export_quantization_bit"), str(sheet.get("infer_dtype"))
    if bits:
        do = "Set gguf: q8_0 in export.yaml for a smaller file that is proven against the original"
        sheet.unsupported("export_quantization_bit", "GPTQ is not made", do)
    else:
        sheet.put("export", "gguf", None, "LLaMA-Factory writes no GGUF; q8_0 makes one for llama.cpp and Ollama")
    if precision in PRECISIONS:
        sheet.became("infer_dtype", "precision", PRECISIONS[precision], verb="export")
    elif precision != "auto":
        sheet.verdict("infer_dtype", "not supported", f"{precision} is not written; precision: base")
    sheet.verdict(
        "infer_dtype", "default", "precision: base, that of the model; LLaMA-Factory takes bf16 for one in fp32"
    )
