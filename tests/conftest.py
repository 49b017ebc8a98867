"""An object store, for all tests that want one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest
from pyarrow import fs


def _import_torchvision() -> None:
    """Import torchvision where it is installed, also beside a torch for which its C operators were not built.

    transformers takes other image processors as soon as it is there; they need none of these operators.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision  # noqa: F401


_import_torchvision()


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
