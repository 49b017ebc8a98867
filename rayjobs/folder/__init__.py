"""A job's folder: identity, ownership, parts, quarantine, manifest."""

from rayjobs.folder.files import MANIFEST, QUARANTINE_FOLDER, SUCCESS
from rayjobs.folder.folder import JobFolder, job_folder, nothing_kept
from rayjobs.folder.run import Run

__all__ = ["MANIFEST", "QUARANTINE_FOLDER", "SUCCESS", "JobFolder", "Run", "job_folder", "nothing_kept"]
