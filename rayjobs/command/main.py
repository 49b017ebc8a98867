"""The command line that all jobs share: NAME [VERB] --config RECIPE [key.sub=value ...]."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import yaml

from mme5core.errors import InputError, WorkFailed, WorkPending, first_line
from mme5core.storage import without_credentials
from rayjobs.command.config import JobConfig, resolve_paths
from rayjobs.command.help import help_text
from rayjobs.command.job import Job
from rayjobs.command.load import load_config
from rayjobs.command.outcome import BAD_INPUT, DONE, FAILED, RESUMABLE, STOPPED, Outcome, Stopped
from rayjobs.command.recipes import recipe_names
from rayjobs.command.signals import stop_at_once

# Keeps the libraries below quiet: people read the job's own lines. Workers inherit it.
QUIET_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # every actor would take all cores, and warn after a fork
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


def main(job: Job, argv: Sequence[str] | None = None) -> NoReturn:
    """Run one job and exit with its code; the last line printed is one JSON object."""
    for name, setting in QUIET_ENV.items():
        os.environ.setdefault(name, setting)
    outcome, output = _run(job, list(sys.argv[1:] if argv is None else argv))
    sys.stderr.flush()
    summary = {
        "job": job.name,
        "code": outcome.code,
        "reason": without_credentials(outcome.reason),
        "output": output,
        "counters": outcome.counters,
    }
    _show(json.dumps(summary, ensure_ascii=False))
    sys.exit(outcome.code)


def _run(job: Job, argv: list[str]) -> tuple[Outcome, str]:
    output = ""
    try:
        signal.signal(signal.SIGTERM, stop_at_once)
        words = Words.parse(job, argv)
        verb = job.verbs[words.verb]
        config = load_config(job, words.verb, words.recipe, words.overrides)
        if verb.needs_output and not config.output:
            raise InputError("'output' is required: the folder to write")
        config = resolve_paths(config)
        output = config.output
        if words.is_dry_run:
            _show(without_credentials(dry_run_text(job, words.verb, config)))
            return Outcome(reason="dry run: nothing was done"), output
        outcome = verb.run(config)
        if outcome.code:
            outcome = replace(outcome, reason=_end(job, outcome.code, outcome.reason).reason)
        return outcome, outcome.output or output
    except InputError as error:
        return _end(job, BAD_INPUT, str(error)), output
    except WorkPending as error:
        return _end(job, RESUMABLE, str(error)), output
    except WorkFailed as error:
        return _end(job, FAILED, str(error)), output
    except (Stopped, KeyboardInterrupt):
        return _end(job, RESUMABLE, STOPPED), output
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = error.filename or output
            return _end(job, FAILED, f"no space left on the disk of {where}: free some, then run it again"), output
        return _end(job, FAILED, _unexpected(error)), output
    except Exception as error:  # the last resort: whatever it is, people get one line and a file to look into
        return _end(job, FAILED, _unexpected(error)), output


def dry_run_text(job: Job, verb: str, config: JobConfig) -> str:
    """What --dry-run prints.

    Raises:
        InputError: the job would be refused as it is.
    """
    lines = [
        f"# {job.label(verb)}: effective configuration",
        yaml.safe_dump(config.model_dump(), allow_unicode=True, sort_keys=False),
        "# would read",
        *job.verbs[verb].preview(config),
    ]
    return "\n".join(lines)


def _show(text: str) -> None:
    """Print what people may pipe into `head` or leave unread in a pager."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(job: Job, code: int, reason: str) -> Outcome:
    reason = without_credentials(reason)
    print(f"{job.name}: {reason}", file=sys.stderr)
    return Outcome(code=code, reason=reason)


def _unexpected(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="mme5-", suffix=".traceback", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return f"unexpected {type(error).__name__}: {first_line(error)} (traceback in {file.name})"


@dataclass(slots=True)
class Words:
    """The words of a command line, sorted by what they are."""

    verb: str = ""
    recipe: str | None = None
    overrides: list[str] = field(default_factory=list)
    is_dry_run: bool = False

    @classmethod
    def parse(cls, job: Job, argv: Sequence[str]) -> Words:
        """
        Raises:
            InputError: quoting the word that means nothing here.
        """
        words = cls()
        rest = iter(argv)
        for position, word in enumerate(rest):
            if word in ("-h", "--help"):
                _show(help_text(job))
                sys.exit(DONE)
            elif word == "--dry-run":
                words.is_dry_run = True
            elif word == "--config" or word.startswith("--config="):
                words.recipe = word.partition("=")[2] or next(rest, None)
                if not words.recipe:
                    raise InputError("--config needs a recipe: a YAML file or one of " + ", ".join(recipe_names()))
            elif word.startswith("-"):
                raise InputError(f"unknown option {word!r}; options are --config, --dry-run and --help")
            elif "=" in word:
                words.overrides.append(word)
            elif position == 0:
                if word not in job.verbs:
                    verbs = ", ".join(sorted(name for name in job.verbs if name)) or "none"
                    raise InputError(f"unknown verb {word!r}; verbs of {job.name}: {verbs}; settings are key=value")
                words.verb = word
            else:
                raise InputError(f"cannot read {word!r}: overrides are key=value or key.sub=value")
        return words
