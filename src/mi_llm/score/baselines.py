"""What replies without any model score: the floor and the ceiling under which a model's scores are to be read."""

import random
import statistics
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from mi_llm.dialog import Round
from mi_llm.score.text import LLAMA_FACTORY, sample_scores

CONSTANT = "听起来这件事让你很不容易。你能多说说，你现在的感受是什么吗？"  # one sentence that answers anyone
DRAWS = 10  # seeds of the random reference


def previous_reply(sample: Round) -> str:
    """The counselor's last reply before this round; empty in the first round."""
    return next((turn.text for turn in reversed(sample.history) if turn.role == "counselor"), "")


def random_references(rounds: Sequence[Round], seed: int) -> list[str]:
    """For each round a reference drawn from the rounds of other dialogs."""
    chance = random.Random(seed)
    others = {dialog: [one.counselor for one in rounds if one.dialog != dialog] for dialog in {one.dialog for one in rounds}}
    return [chance.choice(others[sample.dialog]) for sample in rounds]


def means(replies: Sequence[str], rounds: Sequence[Round]) -> dict[str, float]:
    """The paper's four measures, averaged over the rounds."""
    rows = [sample_scores(reply, sample.counselor) for reply, sample in zip(replies, rounds, strict=True)]
    return {name: statistics.fmean(row[name] for row in rows) for name in LLAMA_FACTORY}


def baselines(rounds: Sequence[Round], seed: int) -> pd.DataFrame:
    """Scores of trivial predictors: columns predictor, bleu_4, rouge_1, rouge_2, rouge_l, and `…_sd` over seeds where drawn.

    `echo_client` repeats the client, `constant` always says one sentence, `previous_reply` repeats the counselor's last reply
    (empty in round 1), `random_reference` says a reference of another dialog (10 seeds), `reference` is the reference itself.
    """
    fixed = {
        "echo_client": [sample.client for sample in rounds],
        "constant": [CONSTANT] * len(rounds),
        "previous_reply": [previous_reply(sample) for sample in rounds],
    }
    rows = [{"predictor": name, **means(replies, rounds)} for name, replies in fixed.items()]
    draws = tqdm(range(DRAWS), desc="random references", unit="draw")
    drawn = pd.DataFrame([means(random_references(rounds, seed + draw), rounds) for draw in draws])
    spread = drawn.std(ddof=1).rename(lambda name: f"{name}_sd")
    rows.append({"predictor": "random_reference", **drawn.mean().to_dict(), **spread.to_dict()})
    rows.append({"predictor": "reference", **means([sample.counselor for sample in rounds], rounds)})
    return pd.DataFrame(rows).round(4)
