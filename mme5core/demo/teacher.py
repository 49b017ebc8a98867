"""The demo teacher: a server with the OpenAI protocol that answers from Unicode's annotations.

It is not an MLLM, but it gets the same input: it recognises a picture by its pixels alone, and reads the requested
task, modality combination and language from the prompt alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from mme5core.demo.batches import DemoBatches, Reply
from mme5core.demo.instructions import INSTRUCTIONS
from mme5core.demo.judging import logprobs_of, query_of
from mme5core.synthesis.comparable import comparable

MODEL = "demo-teacher"
THUMBNAIL = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """The teacher's knowledge of one picture; `names` lack the languages that the benchmark holds out."""

    key: str
    subgroup: str
    names: dict[str, str]
    keywords: dict[str, list[str]]


@dataclass(slots=True)
class Faults:
    """The teacher's faults: delays in seconds, and rates in [0, 1] that are drawn for each request."""

    delay_s: float = 0.0
    batch_s: float = 0.0
    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_cut_off: float = 0.0
    rate_malformed: float = 0.0
    rate_wrong_draft: float = 0.0
    rate_wrong_revision: float = 0.0


@dataclass(slots=True)
class Served:
    """Number of requests so far, and how often each one was answered with status 200."""

    requests: int = 0
    answered: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Knowledge:
    """Entries by the pixels of their pictures."""

    def __init__(self, entries: Sequence[Entry], pictures: Sequence[Image.Image]) -> None:
        self.entries = list(entries)
        self._thumbnails = np.stack([_thumbnail(picture) for picture in pictures])
        self._by_look: dict[bytes, Entry] = {}
        for look, entry in zip(self._thumbnails, entries, strict=True):
            self._by_look.setdefault(look.tobytes(), entry)
        self._by_subgroup: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._by_subgroup[entry.subgroup].append(entry)

    def recognise(self, picture: Image.Image) -> Entry:
        """The entry whose picture looks most like this one."""
        look = _thumbnail(picture)
        if (known := self._by_look.get(look.tobytes())) is not None:
            return known
        difference = self._thumbnails - look
        return self.entries[int(np.einsum("nd,nd->n", difference, difference).argmin())]

    def siblings(self, entry: Entry, language: str) -> list[Entry]:
        """Other entries of the same subgroup, or of all if they are too few, with a different name in the language."""
        name = _folded(entry.names.get(language, ""))
        for pool in (self._by_subgroup[entry.subgroup], self.entries):
            named = (e for e in pool if e.key != entry.key and language in e.names)
            siblings = [e for e in named if _folded(e.names[language]) != name]
            if len(siblings) >= 4:
                return siblings
        return siblings


class DemoTeacher(ThreadingHTTPServer):
    """Serves /v1/chat/completions, /v1/models and the Batch API at `base_url`, on a free loopback port."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, knowledge: Knowledge, faults: Faults | None = None, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.knowledge = knowledge
        self.faults = faults or Faults()
        self.served = Served()
        self.counting = threading.Lock()
        self.batches = DemoBatches(self.reply, lambda: self.faults.batch_s)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> DemoTeacher:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def reply(self, body: bytes) -> Reply:
        """Status, body and further headers of the reply to a chat completion."""
        faults = self.faults
        name = hashlib.sha256(body).hexdigest()
        with self.counting:
            self.served.requests += 1
            attempt = self.served.requests
        # Drawn for each attempt: a retry of a failed request must be able to succeed.
        chance = random.Random(f"{name} {attempt}")
        if chance.random() < faults.rate_429:
            return 429, _error("slow down"), {"retry-after": "0.2"}
        if chance.random() < faults.rate_500:
            return 500, _error("something broke"), {}
        try:
            request = json.loads(body)
            prompt, pictures = _read_messages(request["messages"])
            if request.get("logprobs"):
                return 200, self._judged(prompt, pictures), {}
            answer = write_answer(self.knowledge, prompt, pictures, faults)
        except UnknownLanguage as error:
            with self.counting:
                self.served.answered[name] += 1
            return 200, _completion("", "stop", len(prompt) // 4, refusal=str(error)), {}
        except (ValueError, LookupError, TypeError, OSError, SyntaxError) as error:
            return 400, _error(f"cannot read the request: {error}"), {}
        text = json.dumps(answer, ensure_ascii=False)
        finish_reason = "stop"
        # Drawn for each question, not each attempt: a retry gets the same bad answer, in whatever form it is asked for.
        fate = random.Random(f"{request.get('seed')} {prompt}")
        if fate.random() < faults.rate_cut_off:
            text, finish_reason = text[: len(text) // 2], "length"
        elif fate.random() < faults.rate_malformed:
            text = text.replace('"revision"', "revision", 1)
        with self.counting:
            self.served.answered[name] += 1
        return 200, _completion(text, finish_reason, len(prompt) // 4 + 85 * len(pictures)), {}

    def _judged(self, prompt: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """A judge's answer about a text and a picture, with the probabilities of Yes and No.

        Raises:
            ValueError: it is no judge's prompt, or the candidate is no picture.
        """
        if not pictures:
            raise ValueError("the demo teacher judges pictures")
        completion = _completion("Yes", "length", len(prompt) // 4 + 85 * len(pictures))
        entry = self.knowledge.recognise(pictures[-1])
        completion["choices"][0]["logprobs"] = logprobs_of(query_of(prompt), entry.names, entry.keywords)
        return completion


class UnknownLanguage(LookupError):
    """Unicode has no name for a picture in the requested language: the demo teacher refuses."""


def write_answer(knowledge: Knowledge, prompt: str, pictures: Sequence[Image.Image], faults: Faults) -> dict[str, Any]:
    """The whole answer to one prompt: descriptions, draft, evaluation, improvements, revision.

    Raises:
        UnknownLanguage: a picture has no name in the requested language.
        ValueError: the prompt lacks the task, the combination or the number of hard negatives.
    """
    task = _requested(prompt, "Task", r"\w+")
    combination = _requested(prompt, "Modality combination", r"\w+")
    language = re.search(r"^Language: .*\((\w+)\)$", prompt, re.MULTILINE)
    code = language[1] if language else "en"
    num_negatives = int(_requested(prompt, "Hard negatives", r"\d+"))
    entries = [knowledge.recognise(picture) for picture in pictures]
    for entry in entries:
        if code not in entry.names:
            raise UnknownLanguage(f"no name of {entry.key} in {code!r}")
    random_ = random.Random(hashlib.sha256(prompt.encode() + b"".join(e.key.encode() for e in entries)).digest())
    draft = _sample(knowledge, entries, task, combination, code, num_negatives, random_)
    revision = _sample(knowledge, entries, task, combination, code, num_negatives, random_)
    is_wrong = random_.random() < faults.rate_wrong_draft
    if is_wrong:
        _spoil(draft)
    if random_.random() < faults.rate_wrong_revision:
        _spoil(revision)
    return {
        "images": [
            {
                "general": f"A drawing of {entry.names['en']}.",
                "objects": ", ".join(entry.keywords.get("en", [])[:4]) or entry.names["en"],
                "context": "A plain white background.",
                "brainstorm": f"Others of the same kind ({entry.subgroup}) are easily taken for it.",
            }
            for entry in entries
        ],
        "draft": draft,
        "evaluation": {
            "relevance": {"judgement": "The texts fit their pictures.", "score": 1 if is_wrong else 5},
            "plausibility": {"judgement": "The hard negatives are of the same kind.", "score": 4},
            "clarity": {"judgement": "The instruction could be put in other words.", "score": 3},
            "diversity": {"judgement": "Names and keywords could be varied.", "score": 3},
        },
        "improvements": "Vary the instruction and the wording.",
        "revision": revision,
    }


def _sample(
    knowledge: Knowledge,
    entries: list[Entry],
    task: str,
    combination: str,
    code: str,
    num_negatives: int,
    random_: random.Random,
) -> dict[str, Any]:
    query_side, _, document_side = combination.partition("2")
    kind = combination if task == "retrieval" else task
    sample: dict[str, Any] = {"instruction": random_.choice(INSTRUCTIONS[kind])}
    shown = list(entries)
    query = shown.pop(0) if "I" in query_side else None
    positive = shown.pop(0) if "I" in document_side else query
    if positive is None:
        raise ValueError(f"no picture for {combination}")
    if "T" in query_side:
        about = query or positive
        if task == "vqa":
            sample["query"] = f"{_keyword(about, positive, code, random_)}?"
        elif "T" in document_side and query is not None:
            sample["query"] = _keyword(about, positive, code, random_)  # a hint, not the answer itself
        elif "T" in document_side:
            sample["query"] = _keyword(about, positive, code, random_, most=2)
        else:
            sample["query"] = _text(about, code, random_)
    if "T" in document_side:
        sample["positive"] = _name(positive, code)
        if shown:  # each hard negative has a picture of its own
            sample["negatives"] = [_name(entry, code) for entry in shown]
        else:
            siblings = knowledge.siblings(positive, code)
            names = list(dict.fromkeys(_name(entry, code) for entry in siblings))
            sample["negatives"] = random_.sample(names, min(num_negatives, len(names)))
    return sample


def _spoil(sample: dict[str, Any]) -> None:
    """Make a sample wrong in a way that tests can detect: its texts begin with "wrong"."""
    for name in ("query", "positive"):
        if name in sample:
            sample[name] = f"wrong {sample[name]}"


def _text(entry: Entry, code: str, random_: random.Random) -> str:
    """The name, or at a rate of 0.2 two keywords."""
    keywords = entry.keywords.get(code, [])
    if len(keywords) > 1 and random_.random() < 0.2:
        return ", ".join(random_.sample(keywords, 2))
    return _name(entry, code)


def _keyword(entry: Entry, positive: Entry, code: str, random_: random.Random, *, most: int = 1) -> str:
    """Keywords, at most so many, that are neither the picture's name nor the positive's, which the query would be."""
    names = {_folded(_name(one, code)) for one in (entry, positive)}
    others = [word for word in entry.keywords.get(code, []) if _folded(word) not in names and _has_letters(word)]
    chosen = ", ".join(random_.sample(others, min(most, len(others))))
    if chosen and _folded(chosen) not in names:
        return chosen
    kind = entry.subgroup.replace("-", " ")
    return kind if _folded(kind) not in names else f"kind of {kind}"


@lru_cache(maxsize=1 << 18)
def _folded(name: str) -> str:
    """As texts are held against each other."""
    return comparable(name)


def _has_letters(word: str) -> bool:
    """Whether it is more than a sign: nobody could tell a lone "-" from an empty field."""
    return any(sign.isalnum() for sign in word)


def _name(entry: Entry, code: str) -> str:
    return entry.names[code]


def _requested(prompt: str, label: str, pattern: str) -> str:
    match = re.search(rf"^{label}: ({pattern})$", prompt, re.MULTILINE)
    if not match:
        raise ValueError(f"the prompt has no line '{label}: ...'")
    return match[1]


def _thumbnail(picture: Image.Image) -> np.ndarray:
    small = picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()


class _Handler(BaseHTTPRequestHandler):
    server: DemoTeacher
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.rstrip("/").endswith("/models"):
            return self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        stored = self.server.batches.get(path, query)
        if isinstance(stored, bytes):
            return self._send_bytes(200, stored, {"content-type": "application/octet-stream"})
        self._send_or_404(stored)

    def do_DELETE(self) -> None:
        self._send_or_404(self.server.batches.delete(self.path))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/v1/chat/completions":
            time.sleep(self.server.faults.delay_s)
            return self._send(*self.server.reply(body))
        self._send_or_404(self.server.batches.post(self.path, body, self.headers.get("content-type", "")))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send_or_404(self, body: dict[str, Any] | None) -> None:
        self._send(404, _error("no such path")) if body is None else self._send(200, body)

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self._send_bytes(status, data, {"content-type": "application/json"} | (headers or {}))

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _read_messages(messages: list[dict[str, Any]]) -> tuple[str, list[Image.Image]]:
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                pictures.append(_decoded(part["image_url"]["url"].partition("base64,")[2]))
    return "\n".join(texts), pictures


@lru_cache(maxsize=4096)
def _decoded(encoded: str) -> Image.Image:
    """The thumbnail of an encoded picture, by which it is recognised; cached."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    return picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)


def _completion(text: str, finish_reason: str, prompt_tokens: int, refusal: str | None = None) -> dict[str, Any]:
    completion_tokens = len(text) // 4
    return {
        "id": "demo",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "demo_teacher", "code": None}}
