"""The names of what lies in a job's folder."""

MANIFEST, SUCCESS, WORK, QUARANTINE_FOLDER = "_manifest.json", "_SUCCESS", "_work", "_quarantine"
