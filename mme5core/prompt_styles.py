"""The one function that builds what a model sees, for training and for inference."""

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
"""What stands for a picture in one family or another. A text that holds one would be taken for a row with a picture."""


def _mme5(content: Content, instruction: str | None, pictures: str) -> str:
    # A query is "[pictures]instruction text\n"; a document without instruction is its text, verbatim.
    text = content.text or ""
    if instruction:
        text = f"{instruction} {text}\n" if text else f"{instruction}\n"
    return pictures + text


def _plain(content: Content, instruction: str | None, pictures: str) -> str:
    # What a model sees that was never trained on instructions, as CLIP: they would only blur its texts.
    return pictures + (content.text or "")


# Each takes the content, its instruction and what stands for all its pictures.
PROMPT_STYLES = {"mme5": _mme5, "plain": _plain}


def render(content: Content, instruction: str | None, *, style: str, image_prefix: str) -> str:
    r"""The prompt of one content, before the tokenizer and processor add their own tokens.

    Args:
        instruction: what the embedding is for; None or empty for none.
        style: a name in `PROMPT_STYLES`.
        image_prefix: what stands for a picture in the backbone's family; of several, once for each, before the text.

    >>> render(Content(text="a cat"), "Find the picture:", style="mme5", image_prefix="<image>")
    'Find the picture: a cat\n'
    >>> render(Content(image=b"..."), "Represent the given image.", style="mme5", image_prefix="<image>")
    '<image>Represent the given image.\n'
    >>> render(Content("Compare.", images=("a.png", "b.png")), None, style="mme5", image_prefix="<image>\n")
    '<image>\n<image>\nCompare.'
    >>> render(Content(text=" a cat "), None, style="mme5", image_prefix="<image>")
    ' a cat '
    >>> render(Content(text="a cat"), "Find the picture:", style="plain", image_prefix="")
    'a cat'

    Raises:
        ValueError: for an unknown style.
    """
    return PROMPT_STYLES[check_style(style)](content, instruction, image_prefix * len(content.images))


def check_style(style: str) -> str:
    if style not in PROMPT_STYLES:
        raise ValueError(f"unknown prompt style {style!r}; known: {sorted(PROMPT_STYLES)}")
    return style
