"""Reports of scores: a table for the terminal, and a self-contained HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader
from markupsafe import escape

from mme5core.evaluation.retrieval import NOT_RANKED, Ranking, Scores
from mme5core.images import thumbnail_url
from mme5core.languages import RIGHT_TO_LEFT, language_name
from mme5core.types import Content

COLUMNS = ("recall@1", "recall@5", "recall@10", "mrr")
COLOURS = ("#1f5f99", "#b9c7d6", "#e0a030", "#6aa56a", "#a05a8a")
THUMBNAIL = 96
CHART_WIDTH, CHART_HEIGHT, CHART_LEFT, CHART_TOP = 860, 260, 44, 12


@dataclass(frozen=True)
class ScoreSet:
    """One set of scores, and the name under which the report shows it."""

    name: str
    model: str
    benchmark: str
    scores: Scores


def table(sets: Sequence[ScoreSet]) -> str:
    """A plain text table: one row for each language and one for the mean, a group of columns for each set."""
    width = max(len(column) for column in COLUMNS)
    name_width = max(len("mean"), *(len(language_name(code)) for s in sets for code in s.scores.by_language))
    group = (width + 1) * len(COLUMNS) - 1
    lines = ["  ".join([" " * name_width, *(f"{s.name:<{group}}"[:group] for s in sets)])]
    header = " ".join(f"{column:>{width}}" for column in COLUMNS)
    lines.append("  ".join([" " * name_width, *([header] * len(sets))]))
    languages = dict.fromkeys(code for s in sets for code in s.scores.by_language)
    for code in languages:
        cells = [_cells(s.scores.by_language.get(code), width) for s in sets]
        lines.append("  ".join([f"{language_name(code):<{name_width}}", *cells]))
    lines.append("  ".join([f"{'mean':<{name_width}}", *(_cells(s.scores.mean, width) for s in sets)]))
    return "\n".join(lines)


def html(title: str, sets: Sequence[ScoreSet], contents: Mapping[str, Content], *, num_examples: int) -> str:
    """The page: table, chart, and rankings of the first set with their pictures; all text is escaped.

    Args:
        contents: candidates by id.
        num_examples: number of rankings shown, evenly spread from the best to the worst.
    """
    environment = Environment(loader=PackageLoader("mme5core.evaluation"), autoescape=True)
    main = sets[0].scores
    return environment.get_template("report.html").render(
        title=title,
        sets=sets,
        columns=COLUMNS,
        colours=COLOURS,
        languages=[
            (code, language_name(code)) for code in dict.fromkeys(c for s in sets for c in s.scores.by_language)
        ],
        chart=_chart(sets),
        examples=[_example(ranking, contents) for ranking in choose_examples(main.rankings, num_examples)],
    )


def choose_examples(rankings: Sequence[Ranking], count: int) -> list[Ranking]:
    """Rankings spread over the languages and, within them, from best to worst."""
    by_language: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_language.setdefault(ranking.query.language, []).append(ranking)
    shares = dict.fromkeys(sorted(by_language), 0)
    left = min(count, len(rankings))
    while left:
        for language in shares:
            if left and shares[language] < len(by_language[language]):
                shares[language] += 1
                left -= 1
    picked = {}
    for language, share in shares.items():
        ranked = sorted(by_language[language], key=lambda r: (r.rank, r.query.id))
        picked[language] = [ranked[int((place + 0.5) / share * len(ranked))] for place in range(share)]
    rounds = range(max(shares.values(), default=0))
    return [picked[language][turn] for turn in rounds for language in shares if turn < shares[language]]


def _example(ranking: Ranking, contents: Mapping[str, Content]) -> dict[str, object]:
    query = ranking.query
    return {
        "text": (query.content.text or "") if query.content is not None else "",
        "instruction": query.instruction or "",
        "language": language_name(query.language),
        "code": query.language,
        "direction": "rtl" if query.language in RIGHT_TO_LEFT else "ltr",
        "rank": None if ranking.rank == NOT_RANKED else ranking.rank,
        "positive": _shown(contents.get(query.positive_id)),
        "first": [
            {"is_positive": candidate == query.positive_id} | _shown(contents.get(candidate))
            for candidate in ranking.first_ids
        ],
    }


def _shown(content: Content | None) -> dict[str, str]:
    if content is None:
        return {"text": "", "image": ""}
    return {"text": content.text or "", "image": thumbnail_url(content.image, THUMBNAIL)}


def _chart(sets: Sequence[ScoreSet]) -> str:
    """An SVG bar chart of Recall@10 by language, with one colour for each set."""
    languages = list(dict.fromkeys(code for s in sets for code in s.scores.by_language))
    groups = [*languages, "mean"]
    plot_height = CHART_HEIGHT - CHART_TOP - 28
    step = (CHART_WIDTH - CHART_LEFT) / len(groups)
    bar = min(34.0, 0.8 * step / len(sets))
    svg = io.StringIO()
    svg.write(f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="Recall@10 by language">')
    for tick in range(0, 101, 25):
        y = CHART_TOP + plot_height * (1 - tick / 100)
        svg.write(f'<line x1="{CHART_LEFT}" x2="{CHART_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        svg.write(f'<text x="{CHART_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 100:.2f}</text>')
    for number, group in enumerate(groups):
        code, label = group, escape(group)
        middle = CHART_LEFT + step * (number + 0.5)
        for place, score_set in enumerate(sets):
            scores = score_set.scores.mean if code == "mean" else score_set.scores.by_language.get(code)
            if scores is None:
                continue
            height = plot_height * scores["recall@10"]
            x = middle + (place - len(sets) / 2) * bar
            svg.write(
                f'<rect x="{x:.1f}" y="{CHART_TOP + plot_height - height:.1f}" width="{bar - 2:.1f}" '
                f'height="{height:.1f}" fill="{COLOURS[place % len(COLOURS)]}">'
                f"<title>{label}: {scores['recall@10']:.3f}</title></rect>"
            )
        svg.write(f'<text x="{middle:.1f}" y="{CHART_HEIGHT - 8}" text-anchor="middle">{label}</text>')
    svg.write("</svg>")
    return svg.getvalue()


def _cells(scores: Mapping[str, float] | None, width: int) -> str:
    if scores is None:
        return " ".join(f"{'-':>{width}}" for _ in COLUMNS)
    return " ".join(f"{scores[column]:>{width}.3f}" for column in COLUMNS)
