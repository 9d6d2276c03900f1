"""Door of one process of many: `torchrun -m tunesmith.worker RUN-FOLDER`, for a run that `tunesmith train` has prepared."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.errors import Paused, TunesmithError


def main(argv: Sequence[str] | None = None) -> int:
    """Train in a team and return the exit code. All pause together, so that only the first one's code tells of it."""
    from tunesmith.core.hardware import hush_libraries, set_environment

    words = list(sys.argv[1:] if argv is None else argv)
    launched, is_first = "--launched" in words, os.environ["RANK"] == "0"
    hush_libraries()
    set_environment()
    try:
        _train(Path(words[0]), quiet="--quiet" in words, launched=launched)
    except TunesmithError as error:
        if is_first and not launched:
            print(error, file=sys.stderr)
        return 0 if isinstance(error, Paused) and (launched or not is_first) else error.exit_code
    return 0


def _train(folder: Path, *, quiet: bool, launched: bool) -> None:
    from tunesmith.core.artifacts import as_result
    from tunesmith.core.config import load
    from tunesmith.training import launch
    from tunesmith.verbs import train

    with launch.one_of_many(folder, quiet=quiet, launched=launched) as (run, orders, team):
        config = load(train.TrainConfig, orders["config"], where=str(folder))
        made = train.work(config, run, orders, team)
        if made:
            launch.deliver(run, as_result(made), launched=launched)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        code
    )  # gloo's threads may still hold tensors, and one that lets go while Python is torn down aborts the process
