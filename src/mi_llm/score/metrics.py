"""Every score of a reply: its name in the tables of stage `score` and in the report, its settings, its function.

The paper's four are computed together (`text.py`). Beside them stand scores of a whole arm (`libraries.pooled_scores`) and
families whose scores are means over rounds. A further score is an entry of `FAMILIES`. All run from 0 to 100; more is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mi_llm.score.libraries import POOLED, ROUGE, ROUGE_SIGNATURE, ROUGE_SIGNATURE_EN, rouge_scores
from mi_llm.score.text import LLAMA_FACTORY

Rows = list[dict[str, float]]  # the scores of each round, by name


@dataclass(frozen=True)
class Family:
    """Scores that one function computes: what the report calls each, and the signature of their settings.

    `of_rounds` takes replies and references, both in the rounds' order, and gives each round's scores in that order.
    """

    names: Mapping[str, str]
    signature: str
    of_rounds: Callable[[Sequence[str], Sequence[str]], Rows]


ROUGE_NAMES = dict(zip(ROUGE, ("rouge-score 1", "rouge-score 2", "rouge-score L"), strict=True))
FAMILIES = (
    Family(ROUGE_NAMES, ROUGE_SIGNATURE, rouge_scores),
)  # fmt: skip
FAMILIES_EN = (
    Family(ROUGE_NAMES, ROUGE_SIGNATURE_EN, partial(rouge_scores, language="en")),
)  # fmt: skip
METRIC_NAMES = dict(zip(LLAMA_FACTORY, ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"), strict=True))
OTHER_NAMES = dict(zip(POOLED, ("sacreBLEU (zh)", "chrF"), strict=True)) | {
    name: title for family in FAMILIES for name, title in family.names.items()
}
