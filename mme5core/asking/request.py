"""One request to a multimodal LLM, whatever the server: messages, pictures, and the wanted form of the answer."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mme5core.asking.pricing import prompt_tokens
from mme5core.images import load_rgb, picture_size, to_jpeg

# How an answer's form is asked for, the strictest first.
SCHEMA, JSON_MODE, PLAIN = FORMS = ("json_schema", "json_object", "plain")
# The names of the limit of an answer's tokens: everybody's, and that of OpenAI's reasoning models.
MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"

_SENT_AS_THEY_ARE = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a server draws an answer.

    Args:
        max_answer_tokens: of one answer at most.
    """

    temperature: float = 1.0
    max_answer_tokens: int = 2048

    def fields(self, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """The fields of a chat completion; `limit` is the server's name for the limit of tokens."""
        return {"temperature": self.temperature, limit: self.max_answer_tokens}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        images: encoded bytes (JPEG, PNG or WebP), shown after the user's text; see `sendable`.
        schema: JSON schema of the answer; `schema_in_words` says the same for servers that take no schema.
        seed: for the server's sampling. It is a part of the request's key: equal prompts with other seeds are other
            requests.
        completion_tokens: to expect of the answer, for estimates of the cost.
    """

    system: str
    user: str
    images: Sequence[bytes]
    schema: dict[str, Any]
    schema_in_words: str
    seed: int
    schema_name: str = "answer"
    completion_tokens: int = 500

    def body(self, model: str, sampling: Sampling, *, form: str = SCHEMA, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """The body of a chat completion."""
        user = self.user if form == SCHEMA else f"{self.user}\n\n{self.schema_in_words}"
        content: list[dict[str, Any]] = [{"type": "text", "text": user}]
        content += [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in self.images]
        body = {
            "model": model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": content}],
            "seed": self.seed,
        } | sampling.fields(limit)
        if form == SCHEMA:
            schema = {"name": self.schema_name, "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form == JSON_MODE:
            body["response_format"] = {"type": "json_object"}
        return body

    def key(self, model: str, sampling: Sampling) -> str:
        """32 hex digits over all that the answer depends on, pictures by their content."""
        fields = sorted(sampling.fields().items())
        digest = hashlib.sha256(json.dumps([model, fields, self.schema, self.seed]).encode())
        for part in (self.system.encode(), self.user.encode(), *self.images):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:32]

    def prompt_sha256(self) -> str:
        """Of the prompt's text, to name what was asked beside the answer."""
        return prompt_hash(self.system, self.user)

    def estimated_prompt_tokens(self, model: str) -> int:
        """A rule of thumb, for servers that count no tokens and before anything is sent."""
        return prompt_tokens(self.system + self.user, [picture_size(data) for data in self.images], model)


def prompt_hash(system: str, user: str) -> str:
    """sha256 of a prompt's text."""
    return hashlib.sha256(f"{system}\n{user}".encode()).hexdigest()


def sendable(data: bytes) -> bytes:
    """The picture as servers take it: JPEG, PNG and WebP as they are, other formats (GIF, BMP, TIFF) as JPEG.

    Raises:
        BadImage: it cannot be read.
    """
    if data.startswith(_SENT_AS_THEY_ARE) or data[8:12] == b"WEBP":
        return data
    return to_jpeg(load_rgb(data), quality=95)


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
