"""How like the reference a reply is: BLEU and ROUGE, each number with the signature of the settings that made it.

`LLAMA_FACTORY` is the paper's measure: the metric of LLaMA-Factory, sample by sample. Words are cut by jieba and scored by
rouge_chinese (F of ROUGE-1, -2 and -L; 0 when either side has no word); BLEU-4 is NLTK's sentence BLEU on characters,
smoothing method 3. Each is multiplied by 100, rounded to 4 decimals, and averaged over the samples. sacreBLEU (`zh`,
corpus level) and rouge-score (characters) stand beside it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

jieba.setLogLevel(logging.WARNING)

LLAMA_FACTORY = ("bleu_4", "rouge_1", "rouge_2", "rouge_l")
SMOOTHING = SmoothingFunction().method3
SIGNATURES = {
    "bleu_4": f"nltk|v:{version('nltk')}|level:sentence|tok:char|smooth:method3|mean",
    **{
        name: f"rouge_chinese|v:{version('rouge-chinese')}|tok:jieba-{version('jieba')}|f|mean"
        for name in ("rouge_1", "rouge_2", "rouge_l")
    },
}


@dataclass(frozen=True)
class Score:
    """A number and the signature of the settings that made it."""

    value: float
    signature: str


def words(text: str) -> str:
    """The words of a text as jieba cuts them, joined by spaces."""
    return " ".join(jieba.cut(text))


def sample_scores(reply: str, reference: str) -> dict[str, float]:
    """BLEU-4, ROUGE-1, ROUGE-2 and ROUGE-L of one reply, each 0 to 100 with 4 decimals, as LLaMA-Factory computes them."""
    said, wanted = words(reply), words(reference)
    rouge = {"rouge-1": {"f": 0.0}, "rouge-2": {"f": 0.0}, "rouge-l": {"f": 0.0}}
    if said.split() and wanted.split():
        rouge = Rouge().get_scores(said, wanted)[0]
    bleu = sentence_bleu([list(reference)], list(reply), smoothing_function=SMOOTHING) if reply else 0.0
    return {
        "bleu_4": round(bleu * 100, 4),
        "rouge_1": round(rouge["rouge-1"]["f"] * 100, 4),
        "rouge_2": round(rouge["rouge-2"]["f"] * 100, 4),
        "rouge_l": round(rouge["rouge-l"]["f"] * 100, 4),
    }


class Characters(Tokenizer):  # type: ignore[misc]
    """Every character but white space is a token: rouge-score's own tokenizer drops Chinese."""

    def tokenize(self, text: str) -> list[str]:
        """Split into characters."""
        return [character for character in text if not character.isspace()]


def corpus_scores(replies: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """sacreBLEU with the `zh` tokenizer over the whole set, and rouge-score's F on characters, averaged; 0 to 100."""
    bleu = BLEU(tokenize="zh")
    found = {"sacrebleu_zh": Score(bleu.corpus_score(list(replies), [list(references)]).score, str(bleu.get_signature()))}
    kinds = {"rouge1": "rouge_score_1", "rouge2": "rouge_score_2", "rougeL": "rouge_score_l"}
    scorer = RougeScorer(list(kinds), tokenizer=Characters())
    rows = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    signature = f"rouge_score|v:{version('rouge_score')}|tok:char|f|mean"
    for kind, name in kinds.items():
        found[name] = Score(100 * sum(row[kind].fmeasure for row in rows) / len(rows), signature)
    return found
