"""A corpus indexed on disk: its rows, their distinct contents, and operations on more rows than memory holds."""
