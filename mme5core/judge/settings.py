"""The settings of a judge and of what follows from its scores."""

from __future__ import annotations

from typing import Literal

from mme5core.asking.settings import Endpoint, ServerSettings
from mme5core.model_settings import ModelSettings
from mme5core.settings import Section, key


class JudgeSettings(Endpoint, ModelSettings):
    """A judge in this cluster, or, with `base_url`, one at a server."""

    base_url: str = key(
        "",
        "OpenAI-compatible endpoint that gives logprobs, as http://host:8000/v1, key in OPENAI_API_KEY; empty: the "
        "model is loaded by workers of this job",
        rows=False,
    )
    model: str = key(
        "",
        "checkpoint, reranker, adapter folder or hub id of a vision-language model, or its name at base_url",
        names_input=True,
        path="existing",
    )

    @property
    def server(self) -> ServerSettings:
        """The settings of the endpoint: one token in plain words, drawn from what the model says without change."""
        own = {name: getattr(self, name) for name in Endpoint.model_fields}
        return ServerSettings(**own, temperature=1.0, max_answer_tokens=1, form="plain")


class SelectionSettings(Section):
    """Which judged candidates become hard negatives; the defaults are UniME-V2's numbers."""

    beta: float = key(0.01, "candidates that score above the positive's score less this are left out", ge=0)
    step: int = key(5, "interval of the cyclic choice among the survivors", ge=1)
    count: int = key(10, "hard negatives of a sample", ge=1)
    fill: Literal["fewer", "published"] = key(
        "fewer",
        "where fewer survive: take fewer; published: repeat them, and where none survives draw at random with score 1",
    )
    min_positive_score: float | None = key(
        None, "refuse samples whose positive scores lower: 0.5 refuses those judged wrong; null: none", ge=0, le=1
    )
