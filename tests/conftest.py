"""An object store, for all tests that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyarrow import fs

import tests.torchvision_operators  # noqa: F401


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of an empty bucket, with what a client must be told of the server."""
    from moto.server import ThreadedMotoServer  # not where only a part of the tests is run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        options = f"endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&scheme=http&allow_bucket_creation=true"
        store, path = fs.FileSystem.from_uri(f"s3://corpus/?{options}")
        store.create_dir(path)
        yield f"s3://corpus?{options}"
        server.stop()
