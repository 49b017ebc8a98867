"""Measurements: see run.py."""

import importlib.util

import torch

OPERATORS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")

if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
    # The published torchvision has its operators for CUDA alone and does not import beside a torch for the CPU, where
    # sentence-transformers needs it for Qwen2-VL. None of them is called.
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor a) -> Tensor")
        library.define(f"_{name}_backward(Tensor a) -> Tensor")
