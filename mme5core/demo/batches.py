"""The demo teacher's Batch API, after OpenAI's: files and batches are kept in memory."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

Reply = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body, further headers."""


class DemoBatches:
    """Files and batches.

    Args:
        reply: computes the reply to the body of one chat completion.
        batch_s: returns the duration of a batch in seconds.
    """

    def __init__(self, reply: Callable[[bytes], Reply], batch_s: Callable[[], float]) -> None:
        self._reply, self._batch_s = reply, batch_s
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def post(self, path: str, body: bytes, content_type: str) -> dict[str, Any] | None:
        """A new file or batch; None for other paths."""
        if path == "/v1/files":
            file_id = f"file-{uuid.uuid4().hex}"
            self._files[file_id] = _uploaded(body, content_type)
            return self._file_object(file_id)
        if path == "/v1/batches":
            wanted = json.loads(body)
            batch: dict[str, Any] = {
                "id": f"batch_{uuid.uuid4().hex}",
                "object": "batch",
                "status": "in_progress",
                "created_at": int(time.time()),
                "bytes": len(self._files[wanted["input_file_id"]]),
                "size": self._files[wanted["input_file_id"]].count(b"\n"),
                "ends_s": time.monotonic() + self._batch_s(),
                "output_file_id": None,
                "error_file_id": None,
            }
            with self._lock:
                self._batches[batch["id"]] = batch | wanted
            return self._batches[batch["id"]]
        return None

    def get(self, path: str, query: str) -> dict[str, Any] | bytes | None:
        """A batch, all batches, or the content of a file; None if there is none at the path."""
        if path == "/v1/batches":
            return self._list(parse_qs(query).get("after", [""])[0])
        if match := re.fullmatch(r"/v1/batches/(\w+)", path):
            return self._batch(match[1])
        if match := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
            return self._files.get(match[1])
        return None

    def delete(self, path: str) -> dict[str, Any] | None:
        """Remove a file; None if it does not exist."""
        match = re.fullmatch(r"/v1/files/([\w-]+)", path)
        if not match or self._files.pop(match[1], None) is None:
            return None
        return {"id": match[1], "object": "file", "deleted": True}

    def _list(self, after: str) -> dict[str, Any]:
        batches = list(reversed(self._batches.values()))
        ids = [batch["id"] for batch in batches]
        first = ids.index(after) + 1 if after in ids else 0
        page = batches[first : first + 20]
        return {"object": "list", "data": page, "has_more": len(batches) > first + 20}

    def _batch(self, batch_id: str) -> dict[str, Any] | None:
        with self._lock:
            batch = self._batches.get(batch_id)
            if batch is not None and batch["status"] == "in_progress" and time.monotonic() >= batch["ends_s"]:
                self._finish(batch)
            return batch

    def _finish(self, batch: dict[str, Any]) -> None:
        lines: dict[bool, list[str]] = {True: [], False: []}
        for line in self._files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            status, body, _ = self._reply(json.dumps(request["body"], ensure_ascii=False).encode())
            response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
            reply = {"id": uuid.uuid4().hex, "custom_id": request["custom_id"], "response": response, "error": None}
            lines[status == 200].append(json.dumps(reply, ensure_ascii=False))
        for is_good, name in ((True, "output_file_id"), (False, "error_file_id")):
            if lines[is_good]:
                batch[name] = f"file-{uuid.uuid4().hex}"
                self._files[batch[name]] = "\n".join(lines[is_good]).encode()
        batch["status"] = "completed"

    def _file_object(self, file_id: str) -> dict[str, Any]:
        size = len(self._files[file_id])
        return {"id": file_id, "object": "file", "bytes": size, "created_at": int(time.time()), "purpose": "batch"}


def _uploaded(body: bytes, content_type: str) -> bytes:
    """The part named `file` of a multipart form."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        raise ValueError("no multipart form")
    for part in body.split(b"--" + boundary[1].encode()):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("no file in the form")
