"""What a LoRA run loads of other people's code, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

FOREIGN = "{'deepspeed', 'sklearn', 'tensorflow', 'datasets', 'pyarrow', 'pandas', 'xllamacpp', 'wandb', 'triton'}"
"""Nothing of what a LoRA run does needs them. bitsandbytes is not here: peft imports it wherever it is installed."""


def test_a_lora_run_loads_no_library_that_it_does_not_use(tiny_model, rows_file, tmp_path):
    code = (
        f"import sys; from tunesmith.cli import main; main(sys.argv[1:]); sys.exit(str({FOREIGN} & set(sys.modules)))"
    )
    words = [
        "train",
        str(rows_file),
        "--model",
        str(tiny_model),
        "--out",
        str(tmp_path / "run"),
        "--optimizer.steps",
        "1",
    ]
    environment = {**os.environ, "TUNESMITH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--quiet", "--diagnosis.samples", "0"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.strip() == "set()", done.stderr
    assert (tmp_path / "run" / "result.json").is_file()
