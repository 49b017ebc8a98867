"""UniME-V2's question to a served MLLM: a query and a candidate in, the share of Yes by the logprobs out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mme5core.asking.answer_log import ANSWERED, Entry, entries_of, when_seen
from mme5core.asking.question import Record, Unsuitable, verdict_of
from mme5core.asking.request import Request, sendable
from mme5core.images import image_bytes
from mme5core.judge.candidates import JudgeTables, ToJudge
from mme5core.judge.judged_parts import COUNTS
from mme5core.judge.judged_rows import NO_CANDIDATE, JudgedRows
from mme5core.judge.prompt import NO, YES, parts_of
from mme5core.parts import NewPart
from mme5core.schemas import JUDGED
from mme5core.tasks import Item
from mme5core.types import Content, Rejected

TOP_LOGPROBS = 20
"""The most that the protocol gives."""
LONGEST_TEXT = 8192
"""Characters of the text of a query or a candidate; what is longer is judged by its beginning."""
POSITIVE = -1
_SMALLEST = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class JudgePairs:
    """`Records`: the pairs of each block of samples, the positive first."""

    to_judge: ToJudge

    @property
    def starts(self) -> np.ndarray:
        """int64 [files + 1]"""
        of_samples = self.to_judge.plan.starts
        num_candidates = of_samples[1:] - of_samples[:-1]
        pairs = np.where(num_candidates > 0, num_candidates + 1, 0)  # without candidates nothing is worth a call
        until = np.concatenate([[0], np.cumsum(pairs)])
        return until[[0, *(stop for _, stop in self.to_judge.blocks())]]

    def rows(self, file: int) -> Sequence[Record]:
        start, stop = list(self.to_judge.blocks())[file]
        return [
            {"id": f"{sample}/{place}", "sample": sample, "candidate": candidate}
            for sample in range(start, stop)
            for place, candidate in enumerate(self._candidates(sample))
        ]

    def _candidates(self, sample: int) -> list[int]:
        candidates = self.to_judge.plan.candidates(sample).tolist()
        return [POSITIVE, *candidates] if candidates else []


@dataclass(frozen=True, eq=False)
class JudgeQuestion:
    """A `Question` about the pairs of `JudgePairs`.

    Args:
        max_picture_side: pixels; pictures with a longer side are scaled down before they are sent; None: as they are.
    """

    samples: Path
    candidates: tuple[Path, ...] | None
    max_picture_side: int | None = None

    def request(self, record: Record) -> Request:
        tables = opened(self.samples, self.candidates)
        sample = tables.samples[record["sample"]]
        candidate = sample.positive if record["candidate"] == POSITIVE else tables.candidate(record["candidate"])
        return judge_request(sample.query, candidate, sample.instruction, max_picture_side=self.max_picture_side)

    def verdict(self, answer: Mapping[str, Any], record: Record) -> list[float] | Rejected | Unsuitable:
        """The score of the pair."""
        if len(answer.get("top_logprobs") or ()) < 2:
            if answer.get("finish_reason") == "content_filter":
                return Rejected(record["id"], "content_filter", str(answer.get("text", ""))[:200])
            return Unsuitable(
                "the server gives no logprobs of its answers, or of one token, and a judge is read by two"
            )
        score = score_of(answer["top_logprobs"])
        if score is None:
            likely = ", ".join(repr(token) for token, _ in answer["top_logprobs"][:3])
            detail = f"neither {YES} nor {NO} is among the {TOP_LOGPROBS} most likely tokens, which begin with {likely}"
            return Rejected(record["id"], "no_yes_or_no", detail)
        return [score]


@cache
def opened(samples: Path, candidates: tuple[Path, ...] | None) -> JudgeTables:
    """The tables, mapped once for each process."""
    return JudgeTables(samples, candidates)


def judge_request(
    query: Content, candidate: Content, instruction: str | None, *, max_picture_side: int | None = None
) -> Request:
    """One call about one pair.

    Raises:
        BadImage: a picture cannot be shown.
    """
    pictures = [sendable(image_bytes(image), max_picture_side) for image in (*query.images, *candidate.images)]
    waiting = iter(pictures)
    shown = [Content((part.text or "")[:LONGEST_TEXT] or None, images=part.images) for part in (query, candidate)]
    parts = parts_of(shown[0], shown[1], instruction)
    return Request.of_parts([next(waiting) if part is None else part for part in parts], top_logprobs=TOP_LOGPROBS)


def score_of(top_logprobs: Sequence[Sequence[Any]]) -> float | None:
    """p(Yes) / (p(Yes) + p(No)) of the most likely token that begins each word; None if neither is there.

    A word that is missing is less likely than all that are there: it gets the lowest probability among them.

    >>> round(score_of([["Yes", -0.1], ["No", -2.4]]), 4)
    0.9089
    >>> score_of([["Hm", -0.1]]) is None
    True
    """
    yes, no = (_of_word(top_logprobs, word, other) for word, other in ((YES, NO), (NO, YES)))
    if yes is None and no is None:
        return None
    lowest = min(float(logprob) for _, logprob in top_logprobs)
    log_odds = (lowest if yes is None else yes) - (lowest if no is None else no)
    if math.isnan(log_odds):  # neither is possible
        return None
    share = 0.5 * (1.0 + math.tanh(0.5 * log_odds))
    return min(max(share, _SMALLEST), 1 - _SMALLEST)


def _of_word(top_logprobs: Sequence[Sequence[Any]], word: str, other: str) -> float | None:
    begins = [
        float(logprob)
        for token, logprob in top_logprobs
        if (text := str(token).strip()) and word.startswith(text) and not other.startswith(text)
    ]
    return max(begins, default=None)


@dataclass(frozen=True, slots=True)
class WriteJudged:
    """A task: writes the samples of some files of pairs from the answers about them.

    A sample is pending as long as one of its pairs has no answer.

    Args:
        folder: of the parts.
    """

    to_judge: ToJudge
    rows: JudgedRows
    question: JudgeQuestion
    folder: Path

    def __call__(self, item: Item) -> Iterator[Item]:
        """Reports the item with COUNTS and "pending"."""
        counts = Counter[str]()
        pairs, tables = JudgePairs(self.to_judge), self.to_judge.tables()
        blocks, starts = list(self.to_judge.blocks()), pairs.starts
        with NewPart(self.folder, JUDGED) as part:
            for file, answers in zip(item["files"], item["answers"], strict=True):
                entries, number = entries_of(when_seen(answers)), int(starts[file])
                for position in range(*blocks[file]):
                    candidates = self.to_judge.plan.candidates(position)
                    own = range(number, number + (1 + len(candidates) if len(candidates) else 0))
                    number = own.stop
                    row = self._row(position, [entries.get(n) for n in own], tables, counts)
                    if isinstance(row, Rejected):
                        part.refused.append(row)
                    elif row is not None:
                        counts["kept"] += 1
                        part.writer.write_table(pa.Table.from_pylist([row], JUDGED))
            yield item | {name: counts[name] for name in (*COUNTS, "pending")} | part.close()

    def _row(
        self, position: int, entries: Sequence[Entry | None], tables: JudgeTables, counts: Counter[str]
    ) -> dict[str, Any] | Rejected | None:
        """A row, a refusal, or None where the sample is pending."""
        if not entries:
            return Rejected(tables.samples.id_of(position), "no_candidate", NO_CANDIDATE)
        scores = np.full(len(entries), np.nan, np.float32)
        for place, entry in enumerate(entries):
            if entry is None:
                counts["pending"] += 1
                return None
            score = self._score(entry)
            if isinstance(score, Rejected):
                if place == 0:
                    return Rejected(tables.samples.id_of(position), score.reason, score.detail)
                counts["unshown"] += 1
            else:
                scores[place] = score
        counts["pairs"] += int((~np.isnan(scores)).sum())
        sample, contents = self.to_judge.contents(position, tables)
        ids = [tables.candidate_id(int(candidate)) for candidate in self.to_judge.plan.candidates(position)]
        return self.rows.row(sample, contents, ids, scores, counts)

    def _score(self, entry: Entry) -> float | Rejected:
        if entry.status != ANSWERED:
            return Rejected("", entry.answer["reason"], entry.answer["detail"])
        verdict = verdict_of(self.question, entry.answer, {"id": ""})
        return float(verdict[0]) if isinstance(verdict, list) else _refusal(verdict)


def _refusal(verdict: Any) -> Rejected:
    return verdict if isinstance(verdict, Rejected) else Rejected("", "unreadable_answer", str(verdict.reason))
