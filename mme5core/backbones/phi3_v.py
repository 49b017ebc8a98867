"""Phi-3.5-V, by the code that comes with its weights, and so only where the user allows such code.

Untested: written from that code's published interface; neither it nor the weights can be had offline.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor, nn

from mme5core.backbones.picture_tokens import PictureTokens
from mme5core.backbones.protocol import Features, PictureInputs, PictureSize, base_model, last_real_state

PICTURE_ID = -1
"""What stands for a token of the first picture: no token of the vocabulary, but a negative number."""


class Phi3V(PictureTokens):
    image_prefix = "<|image_1|>\n"
    image_token = "<|endoftext|>"  # it has no token for a picture; `token_ids` below puts its own number
    knows_tower = False
    tower: tuple[str, ...] = ()
    pixels = ("pixel_values", "image_sizes")

    def num_picture_tokens(self, size: PictureSize) -> int:
        return int(self.image_processor.calc_num_image_tokens_from_image_size(*size))

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[PictureSize | None], *, max_tokens: int
    ) -> list[list[int]]:
        found = []
        for prompt, size in zip(prompts, sizes, strict=True):
            text = prompt if size is None else prompt.removeprefix("<|image_1|>")
            ids: list[int] = self.tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
            if size is not None:
                start = len(self.tokenizer("")["input_ids"])
                ids = ids[:start] + [PICTURE_ID] * self.num_picture_tokens(size) + ids[start:]
            found.append(ids)
        return found

    def prepare_picture(self, picture: Image.Image) -> PictureInputs:
        prepared = self.image_processor([picture], return_tensors="pt")
        return {name: prepared[name] for name in self.pixels}

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs

    def pooled(self, model: nn.Module, inputs: dict[str, Tensor], features: Sequence[Features] | None = None) -> Tensor:
        # Pictures enter in the embedding layer of the decoder, so the language model's head can be left out.
        state_BSD = base_model(model).model(**inputs, use_cache=False).last_hidden_state
        return last_real_state(state_BSD, inputs["attention_mask"])
