"""One request to a multimodal LLM, whatever the server: messages, pictures, and the wanted form of the answer."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mme5core.asking.pricing import prompt_tokens
from mme5core.images import load_rgb, picture_size, to_jpeg

# How an answer's form is asked for, the strictest first.
SCHEMA, JSON_MODE, PLAIN = FORMS = ("json_schema", "json_object", "plain")
# The names of the limit of an answer's tokens: everybody's, and that of OpenAI's reasoning models.
MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
TEMPERATURE, SEED = "temperature", "seed"

_SENT_AS_THEY_ARE = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a server draws an answer.

    Args:
        max_answer_tokens: of one answer at most.
        extra: further fields of the request, as the server documents them.
        omit: names of fields that the server does not take: `OMITTABLE`.
    """

    temperature: float = 1.0
    max_answer_tokens: int = 2048
    extra: Mapping[str, Any] = field(default_factory=dict)
    omit: Sequence[str] = ()

    def fields(self, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """The fields of a chat completion; `limit` is the server's name for the limit of tokens."""
        fields = {TEMPERATURE: self.temperature, MAX_TOKENS: self.max_answer_tokens}
        kept = {name: setting for name, setting in fields.items() if name not in self.omit}
        return {(limit if name == MAX_TOKENS else name): setting for name, setting in kept.items()} | dict(self.extra)


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        images: encoded bytes (JPEG, PNG or WebP), shown after the user's text; see `sendable`.
        schema: JSON schema of the answer; `schema_in_words` says the same in every form, since servers take a schema
            and ignore it.
        seed: for the server's sampling. It is a part of the request's key: equal prompts with other seeds are other
            requests.
        completion_tokens: to expect of the answer, for estimates of the cost.
        parts: texts and pictures in the order in which they are shown, in place of `user` and `images`, which then
            repeat them for estimates and keys.
        top_logprobs: the probabilities of so many tokens at each position of the answer are asked for; 0: none.
    """

    system: str
    user: str
    images: Sequence[bytes]
    schema: dict[str, Any] | None
    schema_in_words: str
    seed: int
    schema_name: str = "answer"
    completion_tokens: int = 500
    parts: Sequence[str | bytes] = ()
    top_logprobs: int = 0

    @classmethod
    def of_parts(cls, parts: Sequence[str | bytes], *, top_logprobs: int, seed: int = 0) -> Request:
        """A request for a first token, from texts and pictures in their order."""
        text = "\n".join(part for part in parts if isinstance(part, str))
        images = [part for part in parts if isinstance(part, bytes)]
        return cls("", text, images, None, "", seed, completion_tokens=1, parts=parts, top_logprobs=top_logprobs)

    def body(self, model: str, sampling: Sampling, *, form: str = SCHEMA, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """The body of a chat completion."""
        parts = self.parts or (f"{self.user}\n\n{self.schema_in_words}", *self.images)
        messages: list[dict[str, Any]] = [{"role": "user", "content": [_shown(part) for part in parts]}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        body: dict[str, Any] = {"model": model, "messages": messages} | sampling.fields(limit)
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if SEED not in sampling.omit:
            body.setdefault(SEED, self.seed)
        if self.schema is None:
            return body
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
        if self.parts:
            order = ["picture" if isinstance(part, bytes) else len(part) for part in self.parts]
            digest.update(json.dumps([order, self.top_logprobs]).encode())
        return digest.hexdigest()[:32]

    def prompt_sha256(self) -> str:
        """Of the prompt's text, to name what was asked beside the answer."""
        return prompt_hash(self.system, self.user)

    def estimated_prompt_tokens(self, model: str) -> int:
        """A rule of thumb, for servers that count no tokens and before anything is sent."""
        text = self.system + self.user + self.schema_in_words
        return prompt_tokens(text, [picture_size(data) for data in self.images], model)


def prompt_hash(system: str, user: str) -> str:
    """sha256 of a prompt's text."""
    return hashlib.sha256(f"{system}\n{user}".encode()).hexdigest()


def sendable(data: bytes, max_side: int | None = None) -> bytes:
    """The picture as servers take it: JPEG, PNG and WebP as they are, other formats (GIF, BMP, TIFF) as JPEG.

    Args:
        max_side: pixels; a picture with a longer side is scaled down to it.

    Raises:
        BadImage: it cannot be read.
    """
    is_large = max_side is not None and max(picture_size(data)) > max_side
    if not is_large and (data.startswith(_SENT_AS_THEY_ARE) or data[8:12] == b"WEBP"):
        return data
    picture = load_rgb(data)
    if max_side is not None and is_large:
        picture.thumbnail((max_side, max_side))
    return to_jpeg(picture, quality=95)


def _shown(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": data_url(part)}}


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
