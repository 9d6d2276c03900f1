"""The command line: argv -> Config -> verb -> exit code. Holds no logic of any verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import __version__, verbs
from tunesmith.core.errors import Interrupted, TunesmithError, UsageError, did_you_mean

USAGE = "tunesmith VERB [config.yaml | SUBJECT] [--dotted.option VALUE]... [--out DIR] [--json]"
FLAGS = {
    "help": "list every option with its default",
    "template": "print a commented YAML with every option",
    "dry-run": "say what would happen, do nothing",
    "json": "print result.json to standard output and nothing else",
    "resume": "continue the interrupted run in --out (or in the folder given as subject)",
    "replay": "run the run folder given as subject again, in a new folder, and compare the two",
    "quiet": "say nothing but warnings and errors",
}


@dataclass
class Words:
    """argv taken apart."""

    subject: str | None = None
    out: str | None = None
    flags: set[str] = field(default_factory=set)
    overrides: list[tuple[str, Any]] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code of the error tree (0 when all went well)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(Interrupted("tunesmith", "stopped by Ctrl-C"), file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from tunesmith.core.files import as_capacity

        known = as_capacity(error, Path(str(error.filename or "disk")))
        if not isinstance(known, TunesmithError):
            known = UsageError(str(error.filename or "system"), error.strerror or str(error))
        print(known, file=sys.stderr)
        return known.exit_code


def _main(words: list[str]) -> int:
    if not words or words[0] in {"--help", "-h", "help"}:
        print(_overview())
        return 0
    if words[0] in {"--version", "version"}:
        print(f"tunesmith {__version__}")
        return 0
    verb = words[0]
    if verb not in verbs.VERBS:
        raise UsageError("tunesmith", f"unknown verb {verb!r}", do=did_you_mean(verb, verbs.VERBS))
    typed = parse(words[1:], verb)
    if "help" in typed.flags:
        from tunesmith.core.manual import help_text

        print(help_text(verb, verbs.summary(verb), verbs.verb_module(verb).SUBJECT, verbs.config_class(verb), FLAGS))
        return 0
    if "template" in typed.flags:
        from tunesmith.core.manual import template

        print(template(verb, verbs.config_class(verb)), end="")
        return 0
    return _perform(verb, typed)


def _perform(verb: str, typed: Words) -> int:
    from tunesmith.core.config import load
    from tunesmith.core.files import to_json
    from tunesmith.core.hardware import hush_libraries

    module, overrides = verbs.verb_module(verb), list(typed.overrides)
    voice = {"quiet": "quiet" in typed.flags, "screen_is_stderr": "json" in typed.flags}
    where, document, replay_of = f"tunesmith {verb}", {}, None
    if "resume" in typed.flags and "replay" not in typed.flags:
        _resume(verb, typed)
    if "replay" in typed.flags:
        replay_of = _replay(typed)
        config = verbs.locked_config(verb, replay_of)
    else:
        if typed.subject and typed.subject.endswith((".yaml", ".yml")):
            where = typed.subject
            document, typed.out = verbs.read_document(verb, where, typed.out, dry="dry-run" in typed.flags, **voice)
            if "resume" in typed.flags and any(name.startswith("devices") for name, _ in overrides):
                document.pop("devices", None)  # they are named anew, not mended
        elif typed.subject:
            if any(name in {module.SUBJECT, f"{module.SUBJECT}.path"} for name, _ in overrides):
                raise UsageError(
                    where, f"takes {module.SUBJECT} once", got=typed.subject, do=f"Leave it or --{module.SUBJECT} out"
                )
            overrides.insert(0, (module.SUBJECT, typed.subject))
        config = load(verbs.config_class(verb), document, overrides, where)
    if "dry-run" in typed.flags:
        print(module.preview(config))
        return 0
    hush_libraries()
    _, folder = verbs.perform(verb, config, typed.out, resume="resume" in typed.flags, replay_of=replay_of, **voice)
    if "json" in typed.flags:
        from tunesmith.core.files import read_json
        from tunesmith.core.run import RESULT

        print(to_json(read_json(folder / RESULT)))
    return 0


def _resume(verb: str, typed: Words) -> None:
    """`--resume` means the config of the run folder, in the run folder."""
    from tunesmith.core.run import CONFIG

    if verb not in verbs.RESUMABLE:
        raise UsageError("--resume", f"{verb} has nothing to resume", do=f"Resumable: {', '.join(verbs.RESUMABLE)}")
    if typed.subject and Path(typed.subject).is_dir():
        typed.out, typed.subject = typed.subject, None
    if not typed.out or not (Path(typed.out) / CONFIG).is_file():
        raise UsageError("--resume", "needs the folder of the interrupted run", got=typed.out or "nothing")
    verbs.check_made_by(verb, Path(typed.out))
    others = [name for name, _ in typed.overrides if name.split(".")[0] not in verbs.RESUME_OPTIONS]
    if typed.subject or others:
        may = f"only {' and '.join(verbs.RESUME_OPTIONS)} may be others"
        raise UsageError("--resume", f"takes the config of the run as it is; {may}", do="Leave the other options out")
    typed.subject = str(Path(typed.out) / CONFIG)


def _replay(typed: Words) -> Path:
    """`--replay FOLDER` means the config that the folder's run was locked with, in another folder."""
    if "resume" in typed.flags:
        raise UsageError("--replay", "runs anew", do="--resume alone continues an interrupted replay")
    if typed.overrides:
        raise UsageError("--replay", "takes the config of the run as it is", do="Leave the other options out")
    if not typed.subject:
        raise UsageError("--replay", "needs a run folder", got="nothing")
    return Path(typed.subject)


def parse(words: list[str], verb: str) -> Words:
    """Take argv apart: one subject, flags, `--dotted.option value` or `--dotted.option=value` (`-` and `_` alike)."""
    typed, rest = Words(), list(words)
    while rest:
        word = rest.pop(0)
        if word in {"-h", "--help"}:
            typed.flags.add("help")
        elif not word.startswith("--"):
            if typed.subject is not None:
                raise UsageError(f"tunesmith {verb}", "takes one config or subject", got=word)
            typed.subject = word
        elif word[2:] in FLAGS:
            typed.flags.add(word[2:])
        else:
            name, equals, value = word[2:].partition("=")
            if not equals:
                if not rest:
                    raise UsageError(f"--{name}", "needs a value", do=_meant_flag(name))
                value = rest.pop(0)
            _take(typed, name, value)
    return typed


def _take(typed: Words, name: str, value: str) -> None:
    from tunesmith.core.config import parse_yaml

    if name == "out":
        if not value:
            raise UsageError("--out", "needs a folder", got="nothing")
        typed.out = value
    else:
        read = parse_yaml(value, f"--{name}")
        is_text = isinstance(read, dict) and not value.lstrip().startswith("{")  # `::`, `a: b`
        typed.overrides.append((name.replace("-", "_"), value if is_text else read))


def _meant_flag(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, FLAGS, n=1)
    return f"Did you mean --{near[0]}?" if near else ""


def _overview() -> str:
    width = max(map(len, verbs.VERBS))
    lines = [f"{verb:<{width}}  {verbs.summary(verb)}" for verb in verbs.VERBS]
    return "\n".join(
        [USAGE, "", *(f"  {line}" for line in lines), "", "tunesmith VERB --help lists the options of a verb."]
    )
