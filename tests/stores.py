"""Putting things into an object store that speaks S3's protocol."""

from __future__ import annotations

from pyarrow import fs

from mme5core.storage import Address, locate


def put(address: str, data: bytes) -> None:
    store, path = fs.FileSystem.from_uri(address)
    with store.open_output_stream(path) as stream:
        stream.write(data)


def below(bucket: str, name: str) -> str:
    place = locate(bucket)
    assert isinstance(place, Address)
    return str(place / name)
