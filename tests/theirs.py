"""A LLaMA-Factory file as a mapping, read with the data of tests/migration."""

from __future__ import annotations

from pathlib import Path

from tunesmith import verbs
from tunesmith.migration.llamafactory import VERBS, Migrated, read
from tunesmith.migration.sheet import Ours, Verdict

MIGRATION = Path(__file__).parent / "migration"
OURS = Ours({verb: verbs.config_class(verb) for verb in VERBS})
DATA = str(MIGRATION / "data")
TRAIN = {"model_name_or_path": "a/b", "do_train": True, "dataset_dir": DATA, "output_dir": "o", "dataset": "lamps"}


def migrate(**document: object) -> Migrated:
    """What becomes of a file with these keys."""
    return read(document, MIGRATION / "their.yaml", OURS, Path("out"))


def verdict(migrated: Migrated, key: str) -> Verdict:
    """The verdict on a key."""
    return next(verdict for verdict in migrated.verdicts if verdict.key == key)
