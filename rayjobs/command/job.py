"""What a job is to the command line: a table of its verbs, each with its keys, its work and its preview."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rayjobs.command.config import JobConfig
from rayjobs.command.outcome import Outcome


def preview_nothing(config: Any) -> list[str]:
    """The preview of a verb that reads nothing worth a line."""
    return ["nothing"]


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that a job does.

    Args:
        config: its keys.
        run: does it.
        preview: the lines that --dry-run prints behind the configuration.
        needs_output: whether `output` must be set.
    """

    config: type[JobConfig]
    run: Callable[[Any], Outcome]
    preview: Callable[[Any], list[str]] = preview_nothing
    needs_output: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A console script: `NAME [VERB] ...`; the verb "" is the job itself."""

    name: str
    verbs: Mapping[str, Verb]

    def label(self, verb: str) -> str:
        """How people call the verb: `synth`, `synth gallery`."""
        return f"{self.name} {verb}".rstrip()

    def has_own_keys(self, verb: str) -> bool:
        """Whether the verb has other keys than the job. It then takes what the job wrote as its input."""
        return self.verbs[verb].config is not self.verbs[""].config
