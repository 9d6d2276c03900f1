"""Merge a tuned model into a package (safetensors, GGUF, Ollama) and prove that it behaves as trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import DataError, ModelError, ProofError, UsageError
from tunesmith.exporting.certificate import UNDECIDED, Proof, merged_answers, merged_logits
from tunesmith.exporting.gguf import OutType
from tunesmith.exporting.package import WEIGHTS
from tunesmith.exporting.prompts import ProofConfig
from tunesmith.exporting.unquantized import trained_in_four_bits, unquantized_base

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.artifacts import Package
    from tunesmith.core.examples import Conversation
    from tunesmith.core.run import Run
    from tunesmith.exporting.greedy import Compared, Recorded
    from tunesmith.exporting.merge import Precision
    from tunesmith.exporting.package import Origin
    from tunesmith.models.load import Found

SUBJECT = "model"


class ExportConfig(Config):
    """What to export, and how."""

    model: str
    """What to export: a run, a checkpoint, a model folder, embedded, hf:ID or ms:ID."""
    gguf: OutType | None = "q8_0"
    """Weights of the GGUF file for llama.cpp and Ollama; null makes none."""
    precision: Literal["base", "fp32", "bf16"] = "base"
    """Precision of the safetensors; base keeps that of the base model. Merging itself is always done in fp32."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Name of the package and its folder; null takes that of the training run or of the model."""
    proof: ProofConfig = ProofConfig()
    """How the package is proven."""


def preview(config: ExportConfig) -> str:
    """What would happen, in words."""
    gguf = f", convert to GGUF {config.gguf} with an Ollama Modelfile" if config.gguf else ""
    rows = config.proof.data or "held-out rows of the run (or built-in questions)"
    return f"export {config.model}: merge, save safetensors ({config.precision}){gguf}; prove it on {config.proof.prompts} of {rows}"


def run(config: ExportConfig, run: Run) -> Package:
    """Make the package `<run>/<name>`; one that fails a proof ends as `<name>.failed` and is not done.

    Raises ProofError for it; ModelError, DataError, CapacityError or MissingExtra before anything is kept.
    """
    from tunesmith.core import files
    from tunesmith.core.artifacts import Package
    from tunesmith.exporting.package import weight_files

    job = _look(config, run)
    target = run.folder / job.name
    with files.new_folder(target, kind="package") as folder:
        compared, answers, ends = _merge(config, job, folder, run)
        how = "saved" if job.beside else "merged"
        proofs = [
            merged_logits(compared, job.precision, how),
            merged_answers(compared, job.precision, config.proof.agreement, how),
        ]
        four_bits = trained_in_four_bits(job.found)
        if four_bits:
            proofs.append(unquantized_base(job.found, folder / WEIGHTS, four_bits, job.tokenizer, job.rows))
        proofs += _convert_and_ask(config, job, folder, answers, ends, run)
        for proof in proofs:
            tell(proof, run)
        _write_papers(config, job, folder, proofs, answers)
        failed = [proof for proof in proofs if proof.passed is False]
        if failed:
            _set_aside(folder, target, failed)
        sizes = weight_files(folder)
    run.say(f"package   {target} ({sum(sizes.values()) / 2**20:.0f} MiB of weights)")
    return Package(
        package=target, files=sizes, proofs={proof.name: proof.passed for proof in proofs if proof.passed is not None},
        not_made={proof.name: proof.line for proof in proofs if proof.passed is None},
        details={proof.name: proof.measured for proof in proofs},
    )  # fmt: skip


def tell(proof: Proof, run: Run) -> None:
    """One line of a proof on screen and in events.jsonl."""
    run.event("proof", name=proof.name, passed=proof.passed, line=proof.line)
    style = {True: "green", False: "bold red", None: "yellow"}[proof.passed]
    run.say(f"proof     {proof.name:<15} {proof.verdict:<8} {proof.line}", style=style)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported, looked at before anything is loaded."""

    name: str
    found: Found
    origin: Origin
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    rows: list[Conversation]
    rows_from: str
    prompts: list[list[int]]
    """Token ids of the rows' questions, with the beginning of the answer."""
    beside: str | None
    """The method whose adapter changes no weights and is saved beside them; None for all others."""


def _look(config: ExportConfig, run: Run) -> _Job:
    """Everything that can be wrong is found here, before the long work."""
    from tunesmith.data.render import render_text, template_fingerprint, token_ids
    from tunesmith.exporting.gguf import converter
    from tunesmith.exporting.merge import stored_precision
    from tunesmith.exporting.package import origin_of
    from tunesmith.exporting.prompts import proof_rows, question
    from tunesmith.models.load import find, load_tokenizer, method_beside, note_of, safe_config
    from tunesmith.models.quantized import need_bitsandbytes

    found = find(config.model)
    note = note_of(found.adapter) if found.adapter else {}
    beside = method_beside(note)
    if beside and config.gguf:
        raise UsageError(
            "gguf", f"method {beside} changes no weights, so llama.cpp cannot carry it", got=config.gguf,
            do="Give --gguf null: the package serves it with the transformers engine",
        )  # fmt: skip
    if config.gguf:
        converter()
    if trained_in_four_bits(found):
        need_bitsandbytes()
    if not any(found.base.glob("*.safetensors")):
        raise ModelError(f"model: {config.model}", "has no safetensors weights to export")
    tokenizer, origin = load_tokenizer(found), origin_of(config.model, found)
    if origin.template_sha256 not in {"", template_fingerprint(tokenizer)}:
        raise ModelError(
            str(found.tokenizer_folder), "has another chat template or vocabulary than it was trained with"
        )
    rows, rows_from = proof_rows(config.proof, origin.dataset)
    prompts = [token_ids(tokenizer, render_text(tokenizer, question(row), generation_prompt=True)) for row in rows]
    room = getattr(safe_config(found.base), "max_position_embeddings", None) or 1 << 20
    room -= note.get("num_virtual_tokens", 0)
    fitting = [number for number, ids in enumerate(prompts) if len(ids) + config.proof.tokens <= room]
    if not fitting:
        raise DataError(
            rows_from, f"no question fits the model's {room} tokens", do="Give --proof.data or fewer --proof.tokens"
        )
    run.say(f"model     {found.name}" + (f" over {origin.base}" if found.adapter else ""))
    run.say(f"asked     {len(fitting)} {rows_from}, at most {config.proof.tokens} tokens an answer")
    return _Job(
        config.name or origin.name, found, origin, tokenizer,
        stored_precision(found.base) if config.precision == "base" else config.precision,
        [rows[number] for number in fitting], rows_from, [prompts[number] for number in fitting], beside,
    )  # fmt: skip


def _merge(config: ExportConfig, job: _Job, folder: Path, run: Run) -> tuple[list[Compared], list[Recorded], list[int]]:
    """Ask the model with its adapter, merge where that can be, save, load what was saved and compare. One model in memory
    at a time.

    Returns the comparisons, the greedy answers of the saved model, and its end tokens.
    """
    from tunesmith.exporting import merge
    from tunesmith.exporting.greedy import compare, record
    from tunesmith.models.load import Found, load_model

    model = merge.load_exact(job.found)
    ends = merge.end_ids(model, job.tokenizer)
    recorded = []
    with run.progress("ask the trained model", len(job.prompts), "questions") as progress:
        for ids in job.prompts:
            recorded.append(record(model, ids, ends, config.proof.tokens))
            progress.advance()
    told = f"{folder.name.partition('.tmp-')[0]}/{WEIGHTS} in {job.precision}"
    if job.beside:
        del model
        made = merge.save_beside(job.found, job.tokenizer, folder, job.precision)
        run.say(f"saved     {told}, and what {job.beside} trained beside it")
    else:
        merge.save(merge.merge(model, job.found), job.tokenizer, folder / WEIGHTS, job.precision)
        del model
        made = Found(job.name, folder / WEIGHTS)
        run.say(f"merged    {told}")
    saved = load_model(made, "fp32").eval()
    compared = [compare(saved, one, tie=UNDECIDED[job.precision]) for one in recorded]
    answers = [
        one if seen.differs_at is None else record(saved, one.prompt_ids, ends, config.proof.tokens)
        for one, seen in zip(recorded, compared, strict=True)
    ]
    kept = saved.generation_config.eos_token_id if saved.generation_config else None
    return compared, answers, merge.as_list(kept)


def _convert_and_ask(
    config: ExportConfig, job: _Job, folder: Path, answers: list[Recorded], ends: list[int], run: Run
) -> list[Proof]:
    """Convert to GGUF, ask llama.cpp, write the Modelfile; the proofs on tokens, ends and answers."""
    from tunesmith.data.render import render_text
    from tunesmith.exporting import certificate
    from tunesmith.exporting.gguf import convert
    from tunesmith.exporting.merge import trained_end
    from tunesmith.exporting.ollama import write_modelfile
    from tunesmith.exporting.prompts import question, template_cases
    from tunesmith.models.load import Found, load_tokenizer

    end, cases, questions = (
        trained_end(job.tokenizer),
        template_cases(job.tokenizer),
        [question(row) for row in job.rows],
    )
    names = [" + ".join(message.role for message in messages) for messages in cases] + [row.source for row in job.rows]
    trained = certificate.read_by(job.tokenizer, cases, job.rows)
    saved = load_tokenizer(Found(job.name, folder / WEIGHTS))
    readers = {"the saved tokenizer": certificate.read_by(saved, cases, job.rows)}
    if not config.gguf:
        why = f"llama.cpp cannot carry method {job.beside}" if job.beside else "no GGUF file was asked for"
        return [
            certificate.template_tokens(trained, readers, names),
            certificate.end_tokens(end, ends, None, job.tokenizer),
            *(Proof(name, None, why) for name in ("gguf_answers", "ollama_template")),
        ]
    path = folder / f"model-{config.gguf}.gguf"
    convert(folder / WEIGHTS, path, config.gguf, name=job.name, log=run.folder / "convert.log")
    run.say(f"converted {path.name} ({path.stat().st_size / 2**20:.0f} MiB)")
    texts = [render_text(job.tokenizer, row.messages) for row in job.rows]
    room = max(64, max(map(len, job.prompts)) + config.proof.tokens)
    heard = certificate.interview(path, cases, texts, questions, tokens=config.proof.tokens, context=room)
    readers["llama.cpp"] = heard.read
    return [
        certificate.template_tokens(trained, readers, names),
        certificate.gguf_answers(answers, heard, job.tokenizer, weights=config.gguf, agreement=config.proof.agreement),
        certificate.end_tokens(end, ends, heard.facts, job.tokenizer),
        write_modelfile(job.tokenizer, folder, path.name, heard.facts),
    ]


def _write_papers(config: ExportConfig, job: _Job, folder: Path, proofs: list[Proof], answers: list[Recorded]) -> None:
    """certificate.json, package.json and the model card."""
    from tunesmith.core import files
    from tunesmith.data.render import template_fingerprint
    from tunesmith.exporting.merge import trained_end
    from tunesmith.exporting.package import BESIDE, CERTIFICATE, licence_of, versions, write_card, write_facts
    from tunesmith.exporting.prompts import question
    from tunesmith.models.stored import weights_fingerprint

    origin, end = job.origin, trained_end(job.tokenizer)
    verdicts = {proof.name: proof.passed for proof in proofs}
    facts = {
        "name": job.name, "weights": WEIGHTS, "adapter": BESIDE if job.beside else None,
        "gguf": f"model-{config.gguf}.gguf" if config.gguf else None,
        "base_model": origin.base, "base_sha256": weights_fingerprint(job.found.base),
        "licence": licence_of(job.found, origin.base),
        "method": job.beside or (origin.config.get("method") or {}).get("kind"),
        "run": str(origin.run) if origin.run else None, "precision": job.precision,
        "template_sha256": template_fingerprint(job.tokenizer),
        "end_token": job.tokenizer.convert_ids_to_tokens(end) if end is not None else None,
        "proofs": verdicts, "versions": versions(),
    }  # fmt: skip
    texts = [job.tokenizer.decode(answer.answer_ids, skip_special_tokens=True) for answer in answers]
    asked = [
        {"source": row.source, "question": question(row)[-1].content, "answer": text}
        for row, text in zip(job.rows, texts, strict=True)
    ]
    files.write_json(folder / CERTIFICATE, {
        "package": job.name, "passed": False not in verdicts.values(), "asked": job.rows_from,
        "proofs": {proof.name: {"passed": proof.passed, "line": proof.line, **proof.measured} for proof in proofs},
        "answers": asked, "versions": facts["versions"],
    })  # fmt: skip
    write_facts(folder, facts)
    write_card(folder, facts, origin, [(proof.name, proof.verdict, proof.line) for proof in proofs])


def _set_aside(folder: Path, target: Path, failed: list[Proof]) -> None:
    """Keep a package that failed for inspection, never under its good name."""
    aside = target.with_name(f"{target.name}.failed")
    folder.rename(aside)
    names = ", ".join(proof.name for proof in failed)
    raise ProofError(
        str(target), f"failed {names}: {failed[0].line}", do=f"It lies in {aside}; look at certificate.json there"
    )
