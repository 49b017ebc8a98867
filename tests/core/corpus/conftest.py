"""A server of pictures, for the tests of corpora."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mme5core import web
from tests.core.corpus.picture_server import PictureServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureServer]:
    monkeypatch.setattr(web, "_WAITS_S", ())
    running = PictureServer()
    yield running
    running.http.shutdown()
