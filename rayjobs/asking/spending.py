"""What asking has cost, for the manifest and for the line of a job whose budget is spent."""

from __future__ import annotations

from typing import Any

from mme5core.asking.pricing import Price
from mme5core.asking.rates import Usage
from mme5core.asking.settings import BudgetSettings


def costs(usage: Usage, price: Price | None) -> dict[str, Any]:
    """Counters of the manifest; "usd" only where a price is known or was."""
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    in_money = {"usd": usage.usd} if price is not None or usage.usd else {}
    return {"calls": usage.calls} | tokens | in_money


def budget_line(budget: BudgetSettings, usage: Usage) -> str:
    spent = []
    if budget.calls is not None and usage.calls >= budget.calls:
        spent.append(f"{usage.calls:,} calls of budget.calls={budget.calls}")
    if budget.usd is not None:
        spent.append(f"{usage.usd:,.2f} USD of budget.usd={budget.usd:g}")
    return f"the budget is spent ({', '.join(spent)}); raise it to go on"
