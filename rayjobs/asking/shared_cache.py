"""`teacher.cache` and its siblings: a folder of answers that several runs share."""

from __future__ import annotations

import sys
from pathlib import Path

from mme5core.asking.answer_cache import AnswerCache
from mme5core.asking.answer_log import log_files
from mme5core.asking.settings import ServerSettings
from mme5core.errors import InputError, first_line


def make_shared_cache(server: ServerSettings, role: str) -> None:
    """Make the folder, if one is set.

    Raises:
        InputError: it cannot be made.
    """
    if server.cache:
        try:
            Path(server.cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{role}.cache {server.cache!r} cannot be a folder: {error.strerror}") from None


def keep_in_shared_cache(server: ServerSettings, role: str, log: Path) -> None:
    """Add a run's answers to the folder. A failure is only said: the run's own rows do not depend on it."""
    if server.cache:
        try:
            AnswerCache.keep([file for own in log_files(log).values() for file in own], Path(server.cache))
        except OSError as error:
            print(f"{role}.cache: this run's answers are not all kept in it ({first_line(error)})", file=sys.stderr)
