"""What a kind of training makes of a step's samples: contents to run through the model, and a loss of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mme5core.training.gradcache import ShareOfLoss
from mme5core.types import Content, Sample


@dataclass(frozen=True, slots=True)
class StepRows:
    """The contents of a whole batch.

    Args:
        share: from the vectors of the contents, in their order, to the share of some samples of the loss.
    """

    contents: Sequence[Content]
    token_ids: Sequence[list[int]]
    share: ShareOfLoss


class StepTask(Protocol):
    def rows(self, samples: Sequence[Sample], step: int) -> StepRows:
        """The contents of a step's samples; alike on all processes."""
        ...
