"""How an answer ended, by what servers write as its finish reason."""

from __future__ import annotations

from typing import Literal

Ending = Literal["complete", "cut", "filtered", "unknown"]

_NAMES: dict[Ending, str] = {
    "complete": "stop eos eos_token end_turn stop_sequence stop_token end complete completed finish finished done "
    "normal tool_calls tool_use function_call finish_reason_stop",
    "cut": "length max_tokens max_output_tokens max_completion_tokens max_length model_length token_limit incomplete "
    "context_length_exceeded context_window_exceeded model_context_window_exceeded finish_reason_max_tokens",
    "filtered": "content_filter content_filtered refusal safety recitation blocklist prohibited_content spii "
    "image_safety moderation sensitive guardrail_intervened",
}
_ENDINGS = {name: ending for ending, names in _NAMES.items() for name in names.split()}


def ending_of(finish_reason: object) -> Ending:
    """What a finish reason means, in any case. No reason is complete: many servers give none.

    What is in no list (`error`, `abort`, `insufficient_system_resource`) says nothing of the model's answer.

    >>> ending_of("stop"), ending_of("MAX_TOKENS"), ending_of("content_filter"), ending_of("abort"), ending_of(None)
    ('complete', 'cut', 'filtered', 'unknown', 'complete')
    """
    if finish_reason is None or finish_reason == "":
        return "complete"
    name = str(finish_reason).strip().casefold().replace("-", "_").replace(" ", "_").rpartition(".")[2]
    return _ENDINGS.get(name, "unknown")
