"""Where a model lies: embedded, a path, Hugging Face or ModelScope. Brings safetensors only, never code."""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.core.errors import MissingExtra, ModelError

EMBEDDED = "embedded"
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
CONFIG = ["config.json"]


def cache_folder() -> Path:
    """Where Tunesmith keeps what it can make again: $TUNESMITH_CACHE or ~/.cache/tunesmith."""
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith").expanduser()


def locate(model: str, *, only_config: bool = False) -> Path:
    """Return the folder of a model that is named by path, `hf:ID`, bare ID or `ms:ID`.

    With `only_config` nothing but config.json is fetched. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured by
    huggingface_hub itself.
    Raises ModelError in one line when there is no such model, MissingExtra when the hub's client is not installed.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith("ms:"):
        return _model_scope(model.removeprefix("ms:"), only_config=only_config)
    if model.startswith("hf:"):
        return _hugging_face(model.removeprefix("hf:"), model, only_config=only_config)
    looks_like_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not looks_like_id:
        raise ModelError(
            model, "no such model folder", do=f"Give {EMBEDDED!r}, a folder, hf:OWNER/NAME or ms:OWNER/NAME"
        )
    return _hugging_face(model, model, only_config=only_config)


def _hugging_face(identifier: str, typed: str, *, only_config: bool) -> Path:
    try:
        from huggingface_hub import errors as hub
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtra(typed, "needs huggingface_hub", do="pip install 'tunesmith[train]'") from None
    try:
        folder = Path(snapshot_download(identifier, allow_patterns=CONFIG if only_config else WANTED))
    except hub.LocalEntryNotFoundError:
        raise ModelError(
            typed,
            "is not in the local cache and the hub was not asked or did not answer",
            do="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder",
        ) from None
    except hub.GatedRepoError:
        raise ModelError(typed, "needs permission on the hub", do="Accept its licence there and set HF_TOKEN") from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        raise ModelError(typed, "no such folder and no such model on the hub") from None
    except hub.HfHubHTTPError as error:
        raise ModelError(typed, f"the hub answered with an error: {str(error).splitlines()[0]}") from None
    return folder if only_config else _checked(folder, typed)


def _model_scope(identifier: str, *, only_config: bool) -> Path:
    try:
        from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]
        from requests import HTTPError  # pyright: ignore[reportMissingModuleSource]
    except ModuleNotFoundError:
        raise MissingExtra(f"ms:{identifier}", "needs modelscope", do="pip install 'tunesmith[modelscope]'") from None
    try:
        folder = Path(snapshot_download(identifier, allow_patterns=CONFIG if only_config else WANTED))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        status = error.response.status_code if isinstance(error, HTTPError) and error.response is not None else None
        if status == 404:
            raise ModelError(f"ms:{identifier}", "no such model on ModelScope", do="Check the id") from None
        raise ModelError(f"ms:{identifier}", f"cannot be had from ModelScope: {str(error).splitlines()[0]}") from None
    return folder if only_config else _checked(folder, f"ms:{identifier}")


def _checked(folder: Path, typed: str) -> Path:
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            typed, "has no safetensors weights", do="Other formats can run code when loaded; convert it first"
        )
    return folder
