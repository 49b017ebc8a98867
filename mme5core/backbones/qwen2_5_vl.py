"""Qwen2.5-VL: windowed attention in the tower; the same interface as Qwen2-VL."""

from mme5core.backbones.qwen_vl import QwenVL


class Qwen25VL(QwenVL):
    pass
