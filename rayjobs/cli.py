"""The command line that all jobs share: NAME [VERB] --config RECIPE [key.sub=value ...]."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NoReturn

from pydantic import BaseModel

from mme5core.errors import first_line
from mme5core.storage import without_credentials
from rayjobs.config import (
    VERB_CONFIGS,
    ConfigError,
    JobConfig,
    config_of,
    load_config,
    recipe_names,
    resolve_paths,
)

# What the libraries below print of themselves; the job's own lines are what people read. Workers inherit it.
QUIET_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # every actor would take all cores, and warn after a fork
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}

DONE, FAILED, BAD_INPUT, RESUMABLE = 0, 1, 2, 3
SAME_SIGNAL_S = 1.0
STOPPED = "stopped; the same command goes on where this one ended"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its exit code, why in a few words, its counters, and what it wrote if not `output`."""

    counters: dict[str, Any] = field(default_factory=dict)
    code: int = DONE
    reason: str = "done"
    output: str = ""


class JobFailed(RuntimeError):
    """A failure that a person can act on; the message is one line."""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C: what is done is kept."""


Verb = Callable[[Any], Outcome]


def main(job: str, verbs: dict[str, Verb], argv: Sequence[str] | None = None) -> NoReturn:
    """Run one job and exit with its code; the last line printed is one JSON object.

    Args:
        verbs: what the job can do; "" is the job itself.
    """
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    outcome, output = _run(job, verbs, list(sys.argv[1:] if argv is None else argv))
    sys.stderr.flush()
    summary = {
        "job": job,
        "code": outcome.code,
        "reason": without_credentials(outcome.reason),
        "output": output,
        "counters": outcome.counters,
    }
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    sys.exit(outcome.code)


def _run(job: str, verbs: dict[str, Verb], argv: list[str]) -> tuple[Outcome, str]:
    output = ""
    try:
        signal.signal(signal.SIGTERM, _stop)
        verb, recipe, overrides, dry_run = _parse(job, verbs, argv)
        config = load_config(_with_keys(job, verb), recipe, overrides)
        if not config.output and verb == "":
            raise ConfigError("'output' is required: the folder to write")
        config = resolve_paths(config)
        output = config.output
        if dry_run:
            return _dry_run(job, config), output
        outcome = verbs[verb](config)
        if outcome.code:
            outcome = replace(outcome, reason=_end(job, outcome.code, outcome.reason).reason)
        return outcome, outcome.output or output
    except ConfigError as error:
        return _end(job, BAD_INPUT, str(error)), output
    except JobFailed as error:
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


def _end(job: str, code: int, reason: str) -> Outcome:
    reason = without_credentials(reason)
    print(f"{job}: {reason}", file=sys.stderr)
    return Outcome(code=code, reason=reason)


def _unexpected(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="mme5-", suffix=".traceback", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return f"unexpected {type(error).__name__}: {first_line(error)} (traceback in {file.name})"


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


@contextlib.contextmanager
def stopping_softly(grace_s: float) -> Iterator[threading.Event]:
    """While this is open SIGTERM and Ctrl-C set the event that it gives. A second of them, or the end of the grace,
    stops the job at once, as everywhere else. So does an error meanwhile: others may have got the signal too.
    """
    asked, is_over, is_late = threading.Event(), threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGINT)
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    asked_s = 0.0

    def insist(number: int) -> None:
        if not is_over.wait(grace_s):
            is_late.set()
            os.kill(os.getpid(), number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        if not asked.is_set():
            asked.set()
            asked_s = time.monotonic()
            threading.Thread(target=insist, args=(number,), daemon=True).start()
        elif is_late.is_set() or time.monotonic() - asked_s > SAME_SIGNAL_S:  # else it was sent to our group as well
            raise Stopped

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield asked
    except Exception as error:
        if asked.is_set():
            print(without_credentials(f"while stopping: {first_line(error)}"), file=sys.stderr)
            raise Stopped from None
        raise
    finally:
        is_over.set()
        restore()


def _parse(job: str, verbs: dict[str, Verb], argv: list[str]) -> tuple[str, str | None, list[str], bool]:
    verb, recipe, overrides, dry_run = "", None, [], False
    words = iter(argv)
    for position, word in enumerate(words):
        if word in ("-h", "--help"):
            print(help_text(job, verbs))
            sys.exit(DONE)
        elif word == "--dry-run":
            dry_run = True
        elif word == "--config" or word.startswith("--config="):
            recipe = word.partition("=")[2] or next(words, None)
            if not recipe:
                raise ConfigError("--config needs a recipe: a YAML file or one of " + ", ".join(recipe_names()))
        elif word.startswith("-"):
            raise ConfigError(f"unknown option {word!r}; options are --config, --dry-run and --help")
        elif "=" in word:
            overrides.append(word)
        elif position == 0:
            if word not in verbs:
                named = ", ".join(sorted(name for name in verbs if name)) or "none"
                raise ConfigError(f"unknown verb {word!r}; verbs of {job}: {named}; settings are key=value")
            verb = word
        else:
            raise ConfigError(f"cannot read {word!r}: overrides are key=value or key.sub=value")
    return verb, recipe, overrides, dry_run


def help_text(job: str, verbs: dict[str, Verb]) -> str:
    """Usage, and every key with its type, default and meaning."""
    named = [name for name in verbs if name]
    verb = f"[{'|'.join(named)}] " if named else ""
    lines = [
        f"usage: {job} {verb}--config RECIPE [key.sub=value ...] [--dry-run]",
        "",
        f"RECIPE is a YAML file, or one of: {', '.join(recipe_names())}.",
        "--dry-run prints the effective configuration and what would be read, and does nothing.",
        "Exit codes: 0 done, 1 failed, 2 bad configuration or input, 3 stopped and resumable.",
        "",
        "keys:",
    ]
    for name in ("", *named):
        if name and _with_keys(job, name) == job:
            continue
        if name:
            lines += ["", f"keys of {job} {name}:"]
        for key, kind, default, description in _keys(config_of(_with_keys(job, name))):
            lines += [f"  {key}  ({kind}; {default})", f"      {description}"]
    return "\n".join(lines)


def _with_keys(job: str, verb: str) -> str:
    """Whose keys a verb takes: its own, or the job's."""
    return f"{job} {verb}" if f"{job} {verb}" in VERB_CONFIGS else job


def _keys(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    rows = []
    for name, field_ in model.model_fields.items():
        annotation = field_.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += _keys(annotation, f"{prefix}{name}.")
            continue
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        default = "required" if field_.is_required() else f"default {json.dumps(field_.default, default=str)}"
        rows.append((prefix + name, kind, default, field_.description or ""))
    return rows


def _dry_run(job: str, config: JobConfig) -> Outcome:
    from rayjobs.dry_run import describe

    print(without_credentials(describe(job, config)))
    return Outcome(reason="dry run: nothing was done")
