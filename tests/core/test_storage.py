"""An object store is read as a disk is: listing, seeking, Parquet, tars; tested on a server of the S3 protocol."""

from __future__ import annotations

import io
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from mme5core import web
from mme5core.errors import InputError
from mme5core.images import BadImage, image_bytes, load_rgb
from mme5core.readers import find_shards, input_files, input_identity, read_rows
from mme5core.storage import Address, locate
from tests.core.contents import picture
from tests.stores import below, put


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_corpus_in_a_store_has_the_rows_of_the_same_corpus_on_disk(bucket: str, tmp_path: Path) -> None:
    put(below(bucket, "pictures/cat.png"), png(1))
    rows = [{"id": "a", "text": "a cat"}, {"id": "b", "image": png(2)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "y.jsonl").write_text('{"id": "c", "text": "a dog"}\n{"id": "d", "image_path": "nowhere.png"}\n')
    for name in ("x.parquet", "y.jsonl"):
        put(below(bucket, f"mixed/{name}"), (tmp_path / name).read_bytes())
    there, here = find_shards([below(bucket, "mixed")]), find_shards([str(tmp_path)])
    assert [shard.name for shard in there] == ["x.parquet", "y.jsonl"]
    assert input_files(there) == input_files(here)

    def seen(shards: list) -> list:
        return [(r.id, r.text, r.image, r.refused and r.refused.reason) for s in shards for r in read_rows(s)]

    assert seen(there) == seen(here)
    assert seen(there)[-1] == ("d", None, None, "missing_image")


def test_a_picture_may_be_named_by_its_address(bucket: str) -> None:
    put(below(bucket, "one.png"), png(3))
    assert load_rgb(below(bucket, "one.png")).tobytes() == picture(3).tobytes()
    with pytest.raises(BadImage, match="missing_image"):
        load_rgb(below(bucket, "none.png"))
    with pytest.raises(BadImage, match="missing_image"):
        load_rgb("nosuch://bucket/one.png")


def test_what_is_not_there_is_one_line(bucket: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_shards([below(bucket, "none")])
    with pytest.raises(InputError, match="nosuch://corpus"):
        find_shards(["nosuch://corpus"])
    with pytest.raises(InputError, match="regoin"):  # and not that a library for s3 is missing, which is not needed
        find_shards(["s3://corpus?regoin=eu-west-1"])


def test_a_folder_of_pictures_is_one_shard_with_its_paths_for_ids(bucket: str, tmp_path: Path) -> None:
    names = ["b.png", "a/2.PNG", "a/1.png", "a/deep/3.png", "_DSC1.jpg"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
        put(below(bucket, f"tree/{name}"), png(number))
    for passed_over in ("a/notes.txt", ".hidden.png", ".thumbs/4.png"):
        (tmp_path / passed_over).parent.mkdir(exist_ok=True)
        (tmp_path / passed_over).write_bytes(b"x")
    (shard,) = find_shards([str(tmp_path)], pictures=True)
    rows = list(read_rows(shard))
    assert [row.id for row in rows] == sorted(names)
    assert {row.id: row.image for row in rows} == {name: png(number) for number, name in enumerate(names)}
    (in_store,) = find_shards([below(bucket, "tree")], pictures=True)
    identities = [input_identity(input_files([folder])) for folder in (in_store, shard)]
    assert list(read_rows(in_store)) == rows and identities[0] == identities[1]
    (tmp_path / "b.png").write_bytes(png(9) + b"x")
    assert input_identity(input_files([shard])) != identities[0]
    with pytest.raises(InputError, match=r"holds no \.tar, \.parquet, \.jsonl file$"):
        find_shards([str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="file and no picture"):
        find_shards([str(tmp_path / "empty")], pictures=True)


def test_an_address_has_the_parts_of_a_path() -> None:
    shard = locate("s3://bucket/a/b.tar?region=eu")
    assert isinstance(shard, Address)
    assert (str(shard.with_suffix(".txt")), str(shard.parent)) == (
        "s3://bucket/a/b.txt?region=eu", "s3://bucket/a?region=eu"
    )  # fmt: skip
    assert locate("file:///a/b.tar") == Path("/a/b.tar")


def test_a_pattern_means_its_matches_in_a_store_too(bucket: str) -> None:
    for name in ("1.jsonl", "2.jsonl", "3.txt"):
        put(below(bucket, f"many/{name}"), b'{"id": "a", "text": "b"}')
    assert [shard.name for shard in find_shards([below(bucket, "many/*.jsonl")])] == ["1.jsonl", "2.jsonl"]
    with pytest.raises(InputError, match="holds no"):
        find_shards([below(bucket, "many/*.tar")])


def test_a_name_with_a_question_mark_is_a_picture_like_others(bucket: str) -> None:
    address = locate(below(bucket, "odd"))
    assert isinstance(address, Address)
    store, path = fs.FileSystem.from_uri(str(address))
    with store.open_output_stream(f"{path}/what?.png") as stream:
        stream.write(png(5))
    (shard,) = find_shards([str(address)], pictures=True)
    assert [(row.id, row.image) for row in read_rows(shard)] == [("what?.png", png(5))]


def test_the_query_of_a_web_address_is_a_part_of_it() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = png(int(self.path.rpartition("=")[2]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/render?id="
        assert [load_rgb(f"{address}{n}").tobytes() for n in (1, 2)] == [picture(n).tobytes() for n in (1, 2)]
        server.shutdown()


def test_keys_in_an_address_are_in_no_message() -> None:
    with pytest.raises(BadImage) as caught:
        load_rgb("nosuch://AKIA:SECRET@bucket/none.png?signature=KEY")
    assert "bucket/none.png" in str(caught.value)
    assert not [word for word in ("AKIA", "SECRET", "KEY") if word in str(caught.value)]


def test_a_server_that_is_busy_is_asked_again_and_one_that_stays_so_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "_WAITS_S", (0.01, 0.01))
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            is_good = self.path == "/slow" and asked.count("/slow") == 3
            self.send_response(200 if is_good else 503 if self.path == "/slow" else int(self.path[1:]))
            body = image_bytes(picture(1)) if is_good else b""
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert load_rgb(f"{address}/slow").tobytes() == picture(1).tobytes()
        for status, reason in ((404, "missing_image"), (429, "unreachable_image"), (500, "unreachable_image")):
            times = 1 if reason == "missing_image" else 3
            with pytest.raises(BadImage, match=f"HTTP {status}") as caught:
                load_rgb(f"{address}/{status}")
            assert caught.value.reason == reason and asked.count(f"/{status}") == times
        server.shutdown()
    with pytest.raises(BadImage, match="refused") as caught:
        load_rgb(f"{address}/200")
    assert caught.value.reason == "unreachable_image"
