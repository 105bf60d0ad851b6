"""Scores by LLaMA-Factory's own metric class, `ComputeSimilarity`: the other side of benchmark P3.

Reads pairs of texts; a stand-in tokenizer hands them to the class, which scores them in its loop. Run it in LLaMA-Factory's
environment:

    .peers/llamafactory/bin/python benchmarks/llamafactory/metric.py PAIRS.json RESULT.json

PAIRS: a JSON list of [prediction, reference]. RESULT: `scores` (of each pair, by name: rouge-1, rouge-2, rouge-l, bleu-4, in
percent with four decimals), `means` (what LLaMA-Factory reports), `seconds` (in the loop alone), `start_seconds` (for jieba to
read its dictionary), `whole_seconds` (since the process started), `memory_mb`, `version`.
"""

import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jieba
import numpy as np
import preparing
import psutil
from llamafactory.train.sft.metric import ComputeSimilarity
from transformers import EvalPrediction


class Texts:
    """Stands in for a tokenizer: a text's token ids are its number, and decoding gives the text back."""

    pad_token_id = 0

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def batch_decode(self, rows: np.ndarray, skip_special_tokens: bool) -> list[str]:
        """The texts of these numbers."""
        return [self.texts[row[0]] for row in rows]


def main(pairs_file: Path, result_file: Path) -> None:
    """Score all pairs and write scores and seconds."""
    pairs = json.loads(pairs_file.read_text(encoding="utf-8"))
    start = time.perf_counter()
    jieba.initialize()
    started = time.perf_counter() - start
    metric = ComputeSimilarity(tokenizer=Texts([text for pair in pairs for text in pair]))
    numbers = np.arange(2 * len(pairs)).reshape(-1, 2)
    start = time.perf_counter()
    metric(EvalPrediction(predictions=numbers[:, :1], label_ids=numbers[:, 1:]), compute_result=False)
    seconds = time.perf_counter() - start
    scores = dict(metric.score_dict)
    result = {
        "version": version("llamafactory"),
        "scores": scores,
        "means": {name: float(np.mean(values)) for name, values in scores.items()},
        "seconds": seconds,
        "start_seconds": started,
        "whole_seconds": time.time() - psutil.Process().create_time(),
        "memory_mb": preparing.peak_memory(),
    }
    result_file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
