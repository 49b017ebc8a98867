"""How the processes of a run end before its last step: stopped, or by a failure that a second try cannot mend."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from mme5core.durable import write_json
from mme5core.errors import WorkFailed, first_line
from mme5core.training.run_files import ended_file

LASTING_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
LASTING = (WorkFailed, FloatingPointError, OSError, SafetensorError)
"""Errors of which some would come again with every try (`lasting`)."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why all processes end.

    Args:
        kind: "refused" for a setting that the model does not fit.
    """

    kind: Literal["stopped", "failed", "refused"]
    reason: str = ""

    def write(self, work: Path, owner: str) -> None:
        write_json(ended_file(work, owner), asdict(self))


def read_ending(work: Path, owner: str) -> Ending | None:
    """The ending that a process of this run has left in the work folder; None if there is none."""
    try:
        return Ending(**json.loads(ended_file(work, owner).read_text()))
    except FileNotFoundError:
        return None


def lasting(error: Exception, *, place: str) -> Ending | None:
    """The ending of a failure that would come again with every try; None for one that may pass.

    Args:
        place: where was written, if the error does not name it.
    """
    if isinstance(error, WorkFailed | FloatingPointError):
        return Ending("failed", first_line(error))
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC or "os error 28" in str(error) or "No space left" in str(error):
        where = getattr(error, "filename", None) or place
        return Ending("failed", f"no space left on the disk of {where}: free some, then run it again")
    if number in LASTING_ERRNOS:
        return Ending("failed", f"{getattr(error, 'filename', None) or place}: {getattr(error, 'strerror', error)}")
    return None
