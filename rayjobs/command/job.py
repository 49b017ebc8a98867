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
        has_section: whether recipes hold its keys, in a section of its label (`rerank train`).
    """

    config: type[JobConfig]
    run: Callable[[Any], Outcome]
    preview: Callable[[Any], list[str]] = preview_nothing
    needs_output: bool = False
    has_section: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A console script: `NAME [VERB] ...`; the verb "" is the job itself."""

    name: str
    verbs: Mapping[str, Verb]

    def label(self, verb: str) -> str:
        """How people call the verb: `synth`, `synth gallery`."""
        return f"{self.name} {verb}".rstrip()

    def section(self, verb: str) -> str:
        """Where recipes hold the keys of a verb."""
        return self.label(verb) if self.verbs[verb].has_section else self.name

    def has_own_keys(self, verb: str) -> bool:
        """Whether the verb has other keys than the job and no section of its own: its input is what the job wrote."""
        own = self.verbs[verb]
        return own.config is not self.verbs[""].config and not own.has_section
