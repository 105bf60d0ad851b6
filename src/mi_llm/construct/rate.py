"""Stage `rate`: have a language model rate dialogs of each corpus, and choose the best corpora by the numbers (paper, Figure 2).

Reads `read/<corpus>/dialogs.jsonl` and recorded answers (`llm/ask.py`). Writes `rate/cassette.jsonl`, kept from run to
run, `ratings.csv` (one row per dialog, one column per criterion), `means.csv` (by corpus and aspect, with intervals) and
`choice.csv` (which corpora the totals choose, and how often they would be chosen if the dialogs were drawn again).
"""

from typing import Any

import numpy as np
import pandas as pd

from mi_llm import prompts, storage
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.llm import ask
from mi_llm.llm.answer import parsed
from mi_llm.llm.cassette import Question, text_of
from mi_llm.stage import stage
from mi_llm.statistics import DialogBootstrap
from mi_llm.study import Study

# The four aspects with their criteria and what each is worth: appendix 1, Table S1, after the CPsyCoun authors (reference 31).
ASPECTS = {
    "Comprehensiveness": {"1.1": 1.0, "1.2": 1.0},
    "Professionalism": {"2.1": 0.5, "2.2": 0.5, "2.3": 0.5, "2.4": 0.5, "2.5": 1.0, "2.6": 1.0},
    "Authenticity": {"3.1": 1.0, "3.2": 0.5, "3.3": 1.0, "3.4": 0.5},
    "Safety": {"4.1": 0.5, "4.2": 0.5},
}
CRITERIA = {name: most for criteria in ASPECTS.values() for name, most in criteria.items()}
MOST = {aspect: sum(criteria.values()) for aspect, criteria in ASPECTS.items()}
MOST["Total"] = sum(MOST.values())
TOTALS = list(MOST)
MEANS = ["corpus", "aspect", "mean", "lo", "hi", "n", "most"]
CHOICE = ["corpus", "total", "rank", "chosen", "transcribed", "chosen_share"]


def sample(study: Study, corpus: str) -> list[Dialog]:
    """The study's number of a corpus's dialogs of two sides, or all if it has fewer: seeded, in the order drawn."""
    dialogs = [dialog for dialog in read_dialogs(study.path("read", corpus, "dialogs.jsonl")) if not dialog.one_sided]
    return study.sample(dialogs, min(study.rate.dialogs, len(dialogs)), "rate.dialogs", "rate", corpus)


def questions(study: Study) -> list[Question]:
    """The requests for the ratings of all sampled dialogs."""
    return [asked for corpus in study.rate.corpora for asked in questions_of(study, sample(study, corpus))]


def questions_of(study: Study, dialogs: list[Dialog]) -> list[Question]:
    """The requests about some dialogs."""
    prompt_file = prompts.load(study, "rate")
    return [
        Question(
            about=f"dialog {dialog.id} of {dialog.source}",
            request=ask.request(
                study,
                [{"role": "user", "content": prompt_file.render(turns=dialog.turns)}],
                temperature=study.rate.temperature,
                response_format={"type": "json_object"},
            ),
            prompt=prompt_file.provenance,
            check=fault,
        )
        for dialog in dialogs
    ]


def ratings_of(answer: str) -> dict[str, float]:
    """Parse an answer: a JSON object with an object of points for each aspect, and totals that add up.

    Returns the points by criterion, aspect and `Total`. Raises ValueError, with the reason: a criterion that is missing, above
    its maximum or not a multiple of one half, or a total that is not the sum of its parts.
    """
    content: Any = parsed(answer)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    points: dict[str, float] = {}
    for aspect, criteria in ASPECTS.items():
        aspect_answer = content.get(aspect)
        if not isinstance(aspect_answer, dict):
            raise ValueError(f"no {aspect}")
        for name, most in criteria.items():
            points[name] = number(aspect_answer.get(name), name, most)
        points[aspect] = sum(points[name] for name in criteria)
        agree(aspect_answer.get("Total"), points[aspect], aspect)
    points["Total"] = sum(points[aspect] for aspect in ASPECTS)
    agree(content.get("Total Score"), points["Total"], "the whole")
    return points


def number(value: Any, name: str, most: float) -> float:
    """A criterion's points: 0, 0.5 or 1, at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value * 2 % 1:
        raise ValueError(f"{name} is {value!r}, not a multiple of 0.5 up to {most:g}")
    return float(value)


def agree(total: Any, points: float, of: str) -> None:
    """Refuse a total that is not the sum of its parts."""
    if isinstance(total, bool) or not isinstance(total, int | float) or abs(total - points) > 1e-9:
        raise ValueError(f"the total of {of} is {total!r}; its parts give {points:g}")


def fault(answer: str) -> str | None:
    """What makes an answer unusable, or None."""
    try:
        ratings_of(answer)
    except ValueError as error:
        return str(error)
    return None


def summarise(study: Study, ratings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means with intervals by corpus and aspect; and the choice of the `top` corpora by total, with its stability."""
    options = study.rate
    corpora = list(dict.fromkeys(ratings["corpus"]))
    means, draws = [], []
    for corpus in corpora:
        points = ratings.loc[ratings["corpus"] == corpus, TOTALS].to_numpy()
        names, seed = [str(index) for index in range(len(points))], study.seed_of("rate", "bootstrap", corpus)
        bootstrap = DialogBootstrap(names, options.resamples, study.score.confidence, seed)
        for index, aspect in enumerate(TOTALS):
            estimate = bootstrap.estimate(points[:, index])
            lo, hi = np.clip([estimate.lo, estimate.hi], 0, MOST[aspect])
            row = {"corpus": corpus, "aspect": aspect, "mean": estimate.mean, "lo": lo, "hi": hi}
            means.append(row | {"n": len(points), "most": MOST[aspect]})
        draws.append(bootstrap.weights @ points[:, -1] / len(points))
    totals = {row["corpus"]: row["mean"] for row in means if row["aspect"] == "Total"}
    ranks = np.argsort(np.argsort(-np.array(draws), axis=0, kind="stable"), axis=0, kind="stable")
    order = sorted(corpora, key=lambda corpus: -totals[corpus])
    choice = [
        {
            "corpus": corpus,
            "total": totals[corpus],
            "rank": order.index(corpus) + 1,
            "chosen": order.index(corpus) < options.top,
            "transcribed": corpus in study.transcribe.sample,
            "chosen_share": float((ranks[index] < options.top).mean()),
        }
        for index, corpus in enumerate(corpora)
    ]
    return pd.DataFrame(means, columns=MEANS).round(4), pd.DataFrame(choice, columns=CHOICE).sort_values("rank").round(4)


def rate(study: Study) -> None:
    """Collect the ratings of the study's sample; without any recorded answer there are none, and the stage says so."""
    with stage(study, "rate", None, [study.path("read", corpus) for corpus in study.rate.corpora]) as out:
        drawn = [(corpus, dialog) for corpus in study.rate.corpora for dialog in sample(study, corpus)]
        answers = ask.answers(study, "rate", questions(study))
        rows = [
            {"corpus": corpus, "dialog": dialog.id, **ratings_of(text_of(answer))}
            for (corpus, dialog), answer in zip(drawn if answers else [], answers, strict=True)
        ]
        if not rows and study.rate.corpora:
            print(f"rate: nothing is recorded; to record: {ask.how_to_record(study, 'rate')}")
        ratings = pd.DataFrame(rows, columns=["corpus", "dialog", *CRITERIA, *TOTALS])
        means, choice = summarise(study, ratings)
        tables = {"ratings": ratings, "means": means, "choice": choice}
        for name, table in tables.items():
            storage.write_table(out / f"{name}.csv", table)
        storage.write_json(out / "metrics.json", {"rated": len(rows)})
