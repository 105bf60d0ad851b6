"""Scores of replies made by simple rules: the floor and the ceiling against which to read a model's scores.

Two of them take their words from the test set itself, so a model may have written them.
"""

import random
from collections.abc import Sequence

import pandas as pd

from mi_llm.dialog import Round
from mi_llm.language import language
from mi_llm.language.language import DEFAULT
from mi_llm.score.metrics import METRIC_NAMES, main_scores

DRAWS = 10  # seeds of the random reference


def previous_reply(sample: Round) -> str:
    """The counselor's last reply before this round; empty in the first round."""
    return next((turn.text for turn in reversed(sample.history) if turn.role == "counselor"), "")


def random_references(rounds: Sequence[Round], seed: int) -> list[str]:
    """For each round, a reference drawn from the rounds of other dialogs."""
    chance = random.Random(seed)
    other_replies = {
        dialog: [sample.counselor for sample in rounds if sample.dialog != dialog]
        for dialog in {sample.dialog for sample in rounds}
    }
    return [chance.choice(other_replies[sample.dialog]) for sample in rounds]


def baselines(rounds: Sequence[Round], seed: int, code: str = DEFAULT) -> pd.DataFrame:
    """Scores of trivial predictors: columns predictor, bleu_4, rouge_1, rouge_2, rouge_l, and `…_sd` over seeds where drawn.

    `echo_client` repeats the client, `constant` always says `any_reply` of the language, `previous_reply` repeats the
    counselor's last reply (empty in round 1), `random_reference` says a reference of another dialog (10 seeds; left out where
    there is no other), `reference` is the reference itself.
    """
    several = len({sample.dialog for sample in rounds}) > 1
    replies_by_predictor = {
        "echo_client": [[sample.client for sample in rounds]],
        "constant": [[language.load(code).any_reply] * len(rounds)],
        "previous_reply": [[previous_reply(sample) for sample in rounds]],
        "random_reference": [random_references(rounds, seed + draw) for draw in range(DRAWS if several else 0)],
        "reference": [[sample.counselor for sample in rounds]],
    }
    runs = [(predictor, replies) for predictor, all_replies in replies_by_predictor.items() for replies in all_replies]
    said = [reply for _, replies in runs for reply in replies]
    scores = pd.DataFrame(main_scores(said, [sample.counselor for sample in rounds] * len(runs), code))
    scores["predictor"] = [predictor for predictor, replies in runs for _ in replies]
    scores["run"] = [number for number, (_, replies) in enumerate(runs) for _ in replies]
    means = scores.groupby(["predictor", "run"], sort=False).mean()
    by_predictor = means.groupby("predictor", sort=False)[list(METRIC_NAMES)]
    spread = by_predictor.std(ddof=1).add_suffix("_sd")
    return by_predictor.mean().join(spread).round(4).reset_index()
