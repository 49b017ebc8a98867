"""The function that builds a model's prompt, the same one for training and for inference."""

from __future__ import annotations

from mme5core.types import Content

DEFAULT_STYLE = "mme5"
PICTURE_TOKENS = (
    "<|image|>",
    "<|image_",  # <|image_pad|>, <|image_1|>, ...
    "<|vision_start|>",
    "<|media_pad|>",
    "<image>",
    "<image_soft_token>",
    "<image_placeholder>",
    "<start_of_image>",
    "<IMG_CONTEXT>",
    "<fake_token_around_image>",
    "[IMG]",
)
"""Texts that mark a picture in some family. A model would read a text that contains one as a row with a picture."""


def _mme5(content: Content, instruction: str | None, pictures: str) -> str:
    # A query is "[pictures]instruction text\n"; a document without instruction is its text, verbatim.
    text = content.text or ""
    if instruction:
        text = f"{instruction} {text}\n" if text else f"{instruction}\n"
    return pictures + text


def _plain(content: Content, instruction: str | None, pictures: str) -> str:
    # For models such as CLIP that were not trained on instructions, which would only distort the text's embedding.
    return pictures + (content.text or "")


def _unime_v2(content: Content, instruction: str | None, pictures: str) -> str:
    # As VLM2Vec's data has it: a bare picture token on a line of its own, without what Qwen's template puts around it.
    for mark in ("<|vision_start|>", "<|vision_end|>"):
        pictures = pictures.replace(mark, "")
    text = _mme5(content, instruction, "")
    return f"{pictures}\n{text}" if pictures and text else pictures + text


# Each takes the content, its instruction and the marks of all its pictures.
PROMPT_STYLES = {"mme5": _mme5, "plain": _plain, "unime-v2": _unime_v2}


def render(content: Content, instruction: str | None, *, style: str, image_prefix: str) -> str:
    r"""The prompt of one content, before the tokenizer and processor add their own tokens.

    Args:
        instruction: the purpose of the embedding; None or empty for none.
        style: a name in `PROMPT_STYLES`.
        image_prefix: the mark of a picture in the backbone's family; it precedes the text, once for each picture.

    >>> render(Content(text="a cat"), "Find the picture:", style="mme5", image_prefix="<image>")
    'Find the picture: a cat\n'
    >>> render(Content(image=b"..."), "Represent the given image.", style="mme5", image_prefix="<image>")
    '<image>Represent the given image.\n'
    >>> render(Content("Compare.", images=("a.png", "b.png")), None, style="mme5", image_prefix="<image>\n")
    '<image>\n<image>\nCompare.'
    >>> render(Content(text=" a cat "), None, style="mme5", image_prefix="<image>")
    ' a cat '
    >>> qwen = "<|vision_start|><|image_pad|><|vision_end|>"
    >>> render(Content("What is it?", "a.png"), "Answer:", style="unime-v2", image_prefix=qwen)
    '<|image_pad|>\nAnswer: What is it?\n'
    >>> render(Content(text="a cat"), "Find the picture:", style="plain", image_prefix="")
    'a cat'

    Raises:
        ValueError: the style is unknown.
    """
    return PROMPT_STYLES[check_style(style)](content, instruction, image_prefix * len(content.images))


def check_style(style: str) -> str:
    if style not in PROMPT_STYLES:
        raise ValueError(f"unknown prompt style {style!r}; known: {sorted(PROMPT_STYLES)}")
    return style
