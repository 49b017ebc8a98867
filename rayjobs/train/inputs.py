"""What can be known to be wrong with the settings of `train` at once: shared by the run and its preview."""

from __future__ import annotations

from mme5core.errors import InputError
from mme5core.model_folder import model_width
from mme5core.prompt_styles import check_style
from rayjobs.train.config import TrainConfig
from rayjobs.training import check_run


def check(config: TrainConfig) -> None:
    """What can be known to be wrong before the first second of training.

    Raises:
        InputError: naming the setting.
    """
    check_run(config)
    if config.loss.kind != "info_nce" and not config.num_negatives:
        raise InputError(f"loss.kind={config.loss.kind} compares hard negatives: num_negatives must be >= 1")
    try:
        check_style(config.prompt_style)
        width = model_width(config.model)
    except ValueError as error:
        raise InputError(str(error)) from None
    for dim in config.loss.matryoshka_dims:
        if dim < 1 or (width and dim > width):
            raise InputError(f"loss.matryoshka_dims: {dim} does not fit vectors of width {width}")
