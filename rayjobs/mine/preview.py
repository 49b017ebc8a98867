"""What `mine` would do: queries, candidates, rules, output."""

from __future__ import annotations

from rayjobs.mine.config import MineConfig
from rayjobs.mine.inputs import mine_folder, mine_inputs
from rayjobs.preview_lines import output_lines


def preview(config: MineConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    inputs = mine_inputs(config)
    num_queries = inputs.num_queries(config.limit)
    num_products = num_queries * len(inputs.candidates)
    return [
        f"{num_queries:,} queries and {len(inputs.candidates):,} candidates, vectors of width {inputs.queries.width:,}",
        f"{num_products * 2 * inputs.queries.width / 1e12:,.1f} TFLOP of products",
        f"rules: {', '.join(rule.name for rule in inputs.rules)}",
        *output_lines(config.output, mine_folder(config, inputs)),
    ]
