"""Answers that runs share, found by what was asked, to the letter."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from mme5core.asking.answer_log import ANSWERED, PLACE_SHIFT, Entry, Head, entry_of, whole_lines

KEY_BYTES = 16


class AnswerCache:
    """Answers of other runs in a shared folder, by the key of their request.

    Memory holds 24 bytes per answer.

    Args:
        without: names of files to leave out: those that this run has copied here are in its own log.
    """

    def __init__(self, folder: Path, *, without: Collection[str] = ()) -> None:
        # pathlib's glob matches hidden files too: those that another job is copying.
        self._files = sorted(
            file for file in folder.glob("*.answers") if not file.name.startswith(".") and file.name not in without
        )
        keys, places = bytearray(), array("q")
        for number, file in enumerate(self._files):
            for offset, line in whole_lines(file):
                try:
                    head = Head.of(line)
                    key = bytes.fromhex(head.key) if head.status == ANSWERED else b""
                except ValueError:  # not ours, or damaged
                    continue
                if len(key) == KEY_BYTES:
                    keys += key
                    places.append((number << PLACE_SHIFT) + offset)
        halves = np.frombuffer(keys, ">u8").reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        # Contiguous uint64: of anything else numpy would make a copy for every search.
        self._first, self._second = (halves[order, half].astype(np.uint64) for half in (0, 1))
        self._places = np.frombuffer(places, np.int64)[order]

    def __len__(self) -> int:
        return len(self._places)

    @staticmethod
    def keep(files: Sequence[Path], folder: Path) -> None:
        """Copy the answers that this run has paid for, from log files that have changed since the last copy.

        Raises:
            OSError: they cannot be written there.
        """
        for file in files:
            copy, written = folder / file.name, file.stat().st_mtime_ns
            if copy.is_file() and copy.stat().st_mtime_ns == written:
                continue
            temporary = folder / f".{file.name}"
            try:
                with temporary.open("wb") as stream:
                    stream.writelines(line for _, line in whole_lines(file) if Head.of(line).is_paid_answer)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.utime(temporary, ns=(written, written))
                temporary.rename(copy)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def get(self, key: str) -> Entry | None:
        """The answer to a request of this key, if there is one."""
        first, second = (np.uint64(int(half, 16)) for half in (key[:16], key[16:]))
        for n in range(np.searchsorted(self._first, first), np.searchsorted(self._first, first, "right")):
            if self._second[n] == second:
                place = int(self._places[n])
                try:
                    with self._files[place >> PLACE_SHIFT].open("rb") as stream:
                        stream.seek(place & ((1 << PLACE_SHIFT) - 1))
                        return entry_of(stream.readline())
                except (OSError, ValueError):  # gone, or damaged
                    continue
        return None
