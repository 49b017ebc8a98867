"""Qwen2-VL."""

from mme5core.backbones.qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    pass
