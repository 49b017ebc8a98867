"""The JSON object in the text of an answer: behind a thinking block, in a fence, doubly encoded, among other words."""

from __future__ import annotations

import json
import re
from typing import Any

MOST_STARTS = 200  # places at which an object is looked for
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_THINKING = re.compile(r"^.*</(think|thinking|thought|reasoning)>|^.*◁/think▷", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r'"(?:\\.|[^"\\])*"|[{}]', re.DOTALL)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)


def read_json(text: str) -> tuple[Any, bool]:
    """The JSON of an answer, and whether it had to be repaired.

    It repairs the usual defects of servers without a schema: a thinking block before the object, a Markdown fence or
    words around it, trailing commas, JSON in a JSON string, a list around the object.

    Raises:
        ValueError: the text contains no JSON object.

    >>> read_json('Here it is: ```json {"a": [1, 2,]} ``` Have fun!')
    ({'a': [1, 2]}, True)
    >>> read_json('<think>The form is {"a": [...]}.</think>{"a": 1}'), read_json('"{}"')
    (({'a': 1}, True), ({}, True))
    """
    try:
        return _read(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def holds_json(text: str) -> bool:
    """Whether an object can be read in the text."""
    try:
        return isinstance(read_json(text)[0], dict)
    except ValueError:
        return False


def _read(text: str) -> tuple[Any, bool]:
    try:
        whole = json.loads(text)
    except ValueError as error:
        return _object_within(text, error), True
    if isinstance(whole, str):
        return _read(whole)[0], True
    if isinstance(whole, list) and len(whole) == 1 and isinstance(whole[0], dict):
        return whole[0], True
    return whole, False


def _object_within(text: str, error: ValueError) -> dict[str, Any]:
    """The object in a text that is more than JSON; of several the longest, behind a thinking block if there is one."""
    behind = _THINKING.sub("", text, count=1)
    fenced = [match[1] for match in _FENCE.finditer(behind)]
    for part in (*fenced, behind, *([text] if behind != text else [])):
        start, end = part.find("{"), part.rfind("}")
        if 0 <= start < end:
            for slice_ in (part[start : end + 1], _TRAILING_COMMA.sub(r"\1", part[start : end + 1])):
                try:
                    return _as_object(json.loads(slice_))
                except RecursionError:
                    raise
                except ValueError:
                    pass
            longest = _longest_object(_TRAILING_COMMA.sub(r"\1", part))
            if longest is not None:
                return longest
    raise error


def _longest_object(text: str) -> dict[str, Any] | None:
    """The longest object in the text; none that lies in braces which are no JSON, as of a broken answer."""
    decoder, start, longest, length = json.JSONDecoder(), text.find("{"), None, 2  # `{}` is no answer
    for _ in range(MOST_STARTS):
        if start < 0:
            break
        try:
            decoded, end = decoder.raw_decode(text, start)
        except ValueError:
            decoded, end = None, _end_of_braces(text, start)
        if isinstance(decoded, dict) and end - start > length:
            longest, length = decoded, end - start
        start = text.find("{", end)
    return longest


def _end_of_braces(text: str, start: int) -> int:
    """Where the braces that open at `start` are closed; the text's end where they never are."""
    depth = 0
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return len(text)


def _as_object(decoded: Any) -> dict[str, Any]:
    if not isinstance(decoded, dict):
        raise ValueError("no object")
    return decoded
