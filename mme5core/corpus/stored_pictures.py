"""The pictures of a corpus, read again where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mme5core.corpus.fetched_pictures import is_fetched, read_fetched
from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers import ReadOptions, read_picture
from mme5core.storage import locate, without_credentials


@dataclass(frozen=True, slots=True)
class StoredPictures:
    """Travels to the workers.

    Args:
        shards: of the corpus, by the number that a picture's place names.
        labels: of the shards, see `readers.shards.labels`.
        options: of reading them.
        index: the folder of the index, which has the pictures that the scan has fetched.
    """

    shards: tuple[str, ...]
    labels: tuple[str, ...]
    options: ReadOptions
    index: Path

    def read(self, place: Mapping[str, Any]) -> bytes:
        """The encoded bytes of a picture.

        Args:
            place: its "id", and its "shard", "offset" and "num_bytes" as the index has them.

        Raises:
            BadImage: the picture is gone; `unreachable_image`: its file cannot be read now.
            OSError: naming a file of the job's own folder.
        """
        if is_fetched(place["offset"]):
            return read_fetched(self.index, place["shard"], place["offset"], place["num_bytes"])
        shard = locate(self.shards[place["shard"]])
        options = replace(self.options, label=self.labels[place["shard"]])
        try:
            return read_picture(shard, place["id"], place["offset"], place["num_bytes"], options)
        except OSError as error:  # one shard that is gone leaves the others
            raise BadImage("unreachable_image", without_credentials(f"{shard}: {first_line(error)}")) from None
