"""Every score of a reply: its name in the tables of stage `score` and in the report, its settings, its function.

The main four are those of the paper (`text.py`). They are made for Chinese; in other languages they are sacreBLEU of each round
and rouge-score's (`libraries.py`). Beside them stand corpus-level scores (`libraries.pooled_scores`) and families whose
scores are means over rounds. A further score is an entry of `FAMILIES`. All run from 0 to 100; more is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mi_llm.language import language
from mi_llm.language.language import DEFAULT, Text
from mi_llm.score.libraries import ROUGE, pooled_names, pooled_scores, rouge_scores, rouge_signature
from mi_llm.score.text import LLAMA_FACTORY, SIGNATURES, all_scores

Rows = list[dict[str, float]]  # the scores of each round, by name


@dataclass(frozen=True)
class Family:
    """Scores that one function computes: what the report calls each, and the signature of their settings.

    `of_rounds` takes replies and references, both in the rounds' order, and gives each round's scores in that order.
    """

    names: Mapping[str, Text]
    signature: str
    of_rounds: Callable[[Sequence[str], Sequence[str]], Rows]


ROUGE_NAMES = {name: Text(title, title) for name in ROUGE for title in [f"rouge-score {name[-1].upper()}"]}
FAMILIES = (
    Family(ROUGE_NAMES, rouge_signature(), rouge_scores),
)  # fmt: skip
METRIC_NAMES = dict(zip(LLAMA_FACTORY, ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"), strict=True))


def papers(code: str) -> bool:
    """Whether the paper's measures fit a language: jieba cuts its words."""
    return language.load(code).words == "jieba"


def main_scores(replies: Sequence[str], references: Sequence[str], code: str = DEFAULT) -> Rows:
    """The main four of each round, by the names of `METRIC_NAMES`."""
    if papers(code):
        return all_scores(replies, references)
    bleu = next(iter(pooled_scores(replies, references, code).values())).by_round()
    return [
        {"bleu_4": value} | dict(zip(LLAMA_FACTORY[1:], row.values(), strict=True))
        for value, row in zip(bleu, rouge_scores(replies, references, code), strict=True)
    ]


def signatures(code: str = DEFAULT) -> dict[str, str]:
    """The settings of the main four."""
    if papers(code):
        return SIGNATURES
    bleu = next(iter(pooled_scores([""], [""], code).values())).signature
    rounds = bleu.replace("|eff:no", "|eff:yes") + "|level:sentence|mean"
    return {"bleu_4": rounds} | dict.fromkeys(LLAMA_FACTORY[1:], rouge_signature(code))


def families(code: str = DEFAULT) -> tuple[Family, ...]:
    """The families of a language: where rouge-score gives the main scores, it is none beside them."""
    return FAMILIES if papers(code) else tuple(family for family in FAMILIES if family.names is not ROUGE_NAMES)


def other_names(code: str = DEFAULT) -> dict[str, str]:
    """What the report calls the scores beside the main four."""
    return pooled_names(code) | {name: title.en for family in families(code) for name, title in family.names.items()}
