"""Scores with other settings than the paper's, by the libraries that define them: sacreBLEU, chrF, rouge-score.

sacreBLEU and chrF are scores of a whole corpus: their matches are summed over all rounds. For a single round,
sacreBLEU uses effective order, as its manual advises. A language decides what a word is: in Chinese sacreBLEU's `zh` tokens, and
for rouge-score characters, since its own tokenizer drops Chinese; in English sacreBLEU's `13a` tokens and rouge-score's stems.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from mi_llm.score.text import Score, common_subsequence

Language = Literal["zh", "en"]
SACREBLEU: dict[Language, str] = {"zh": "zh", "en": "13a"}  # names of its tokenizers
POOLED = ("sacrebleu_zh", "chrf")
ROUGE = ("rouge_score_1", "rouge_score_2", "rouge_score_l")
ROUGE_SIGNATURE = f"rouge_score|v:{version('rouge_score')}|tok:char|f|mean"
ROUGE_SIGNATURE_EN = f"rouge_score|v:{version('rouge_score')}|tok:default-porter|f|mean"


class Pooled(NamedTuple):
    """A corpus score: each round's counts (rounds x counts), the score of summed counts, and that of a single round's counts."""

    counts: NDArray[np.int64]
    score: Callable[[list[int]], float]
    score_of_round: Callable[[list[int]], float]
    signature: str

    def total(self) -> float:
        """The score of all rounds together."""
        return self.score(self.counts.sum(axis=0).tolist())

    def by_round(self) -> list[float]:
        """The score of each round."""
        return [self.score_of_round(row) for row in self.counts.tolist()]


def pooled_scores(replies: Sequence[str], references: Sequence[str], language: Language = "zh") -> dict[str, Pooled]:
    """sacreBLEU with the language's tokenizer (`sacrebleu_zh`, `sacrebleu_13a`) and chrF, each 0 to 100."""
    tokenizer = SACREBLEU[language]
    scores = {}
    for name, metric, single in (
        (f"sacrebleu_{tokenizer}", BLEU(tokenize=tokenizer), BLEU(tokenize=tokenizer, effective_order=True)),
        ("chrf", CHRF(), CHRF()),
    ):
        counts = np.array(metric._extract_corpus_statistics(list(replies), [list(references)]), dtype=np.int64)
        scores[name] = Pooled(counts, scorer(metric), scorer(single), str(metric.get_signature()))
    return scores


def scorer(metric: BLEU | CHRF) -> Callable[[list[int]], float]:
    """A sacreBLEU metric as a function of summed counts."""
    return lambda counts: float(metric._compute_score_from_stats(counts).score)


class Characters(Tokenizer):  # type: ignore[misc]
    """Every character but white space is a token."""

    def tokenize(self, text: str) -> list[str]:
        """Split into characters."""
        return [character for character in text if not character.isspace()]


def rouge_scores(replies: Sequence[str], references: Sequence[str], language: Language = "zh") -> list[dict[str, float]]:
    """rouge-score's F of ROUGE-1, -2 and -L on characters, or on stems of English words: one row per round, 0 to 100.

    ROUGE-L takes our common subsequence: the library's table would need memory for the product of the lengths.
    """
    tokenizer = Characters() if language == "zh" else DefaultTokenizer(use_stemmer=True)
    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=tokenizer)
    rows = []
    for reply, reference in zip(replies, references, strict=True):
        scores = scorer.score(reference, reply)
        reply_tokens, reference_tokens = tokenizer.tokenize(reply), tokenizer.tokenize(reference)
        common = common_subsequence(reference_tokens, reply_tokens) if reply_tokens and reference_tokens else 0
        longest = fmeasure(common / max(1, len(reply_tokens)), common / max(1, len(reference_tokens)))
        shares = (scores["rouge1"].fmeasure, scores["rouge2"].fmeasure, longest)
        rows.append(dict(zip(ROUGE, (100 * share for share in shares), strict=True)))
    return rows


def corpus_scores(replies: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """All scores of this module for a set of replies, by name."""
    pooled = pooled_scores(replies, references)
    scores = {name: Score(score.total(), score.signature) for name, score in pooled.items()}
    rows = rouge_scores(replies, references)
    return scores | {name: Score(sum(row[name] for row in rows) / len(rows), ROUGE_SIGNATURE) for name in ROUGE}
