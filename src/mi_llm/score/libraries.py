"""Scores with other settings than the paper's, by the libraries that define them: sacreBLEU, chrF, rouge-score.

sacreBLEU and chrF are scores of a whole corpus: their matches are summed over all rounds. For a single round,
sacreBLEU uses effective order, as its manual advises. A language decides what a word is: in Chinese sacreBLEU's `zh` tokens, and
for rouge-score characters, since its own tokenizer drops Chinese; in English sacreBLEU's `13a` tokens and rouge-score's stems; in
others what `<language>/language.yaml` says.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from nltk.stem import SnowballStemmer
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from mi_llm.language import language
from mi_llm.language.language import DEFAULT, Language
from mi_llm.score.text import common_subsequence

PORTER = "porter"  # as a language's stemmer: rouge-score's own tokenizer
ROUGE = ("rouge_score_1", "rouge_score_2", "rouge_score_l")


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


def pooled_names(code: str = DEFAULT) -> dict[str, str]:
    """The names of the pooled scores of a language, in tables and in the report: `sacrebleu_zh` or `sacrebleu_13a`, and chrF."""
    tokenizer = language.load(code).scores.sacrebleu
    return {f"sacrebleu_{tokenizer}": f"sacreBLEU ({tokenizer})", "chrf": "chrF"}


def pooled_scores(replies: Sequence[str], references: Sequence[str], code: str = DEFAULT) -> dict[str, Pooled]:
    """sacreBLEU with the tokenizer of the language `code`, and chrF, each 0 to 100; by the names of `pooled_names`."""
    tokenizer = language.load(code).scores.sacrebleu
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


class Stems(Tokenizer):  # type: ignore[misc]
    """Every word is a token, as its stem if the language has a stemmer."""

    def __init__(self, speech: Language) -> None:
        stemmer = speech.scores.stemmer
        self.words = speech.cut
        self.stem = (lambda word: word) if stemmer == "none" else SnowballStemmer(stemmer).stem

    def tokenize(self, text: str) -> list[str]:
        """Split into stems."""
        return list(map(self.stem, self.words(text)))


def rouge_tokenizer(speech: Language) -> Tokenizer:
    """What a token is for ROUGE: a character, or a word's stem."""
    if not speech.spaced:
        return Characters()
    return DefaultTokenizer(use_stemmer=True) if speech.scores.stemmer == PORTER else Stems(speech)


def rouge_signature(code: str = DEFAULT) -> str:
    """The settings of `rouge_scores`."""
    speech = language.load(code)
    words = f"{'default' if speech.scores.stemmer == PORTER else 'words'}-{speech.scores.stemmer}"
    return f"rouge_score|v:{version('rouge_score')}|tok:{words if speech.spaced else 'char'}|f|mean"


def rouge_scores(replies: Sequence[str], references: Sequence[str], code: str = DEFAULT) -> list[dict[str, float]]:
    """rouge-score's F of ROUGE-1, -2 and -L on characters, or on stems of words: one row per round, 0 to 100.

    ROUGE-L takes our common subsequence: the library's table would need memory for the product of the lengths.
    """
    tokenizer = rouge_tokenizer(language.load(code))
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
