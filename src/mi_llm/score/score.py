"""Stage `score`: compare every reply with its reference (paper, Automatic Evaluation and Figure 3).

Reads `split/test_rounds.jsonl` and `respond/<model>/{base,tuned}.jsonl`. Writes `score/samples.csv` (every reply's scores),
`scores.csv` (means with 95 % intervals over dialogs, and signatures), `paired.csv` (tuned minus base) and `metrics.json`.
"""

from typing import Any

import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.dialog import read_rounds
from mi_llm.score.statistics import DialogBootstrap
from mi_llm.score.text import LLAMA_FACTORY, SIGNATURES, corpus_scores, sample_scores
from mi_llm.stage import stage
from mi_llm.study import Study

ARMS = ("base", "tuned")


def score(study: Study) -> None:
    """Score all models, base and tuned; see the module."""
    asked = study.folder / "split" / "test_rounds.jsonl"
    answers = {(model, arm): study.folder / "respond" / model / f"{arm}.jsonl" for model in study.models for arm in ARMS}
    with stage(study, "score", None, [asked, *answers.values()]) as out:
        rounds = read_rounds(asked)
        references = [sample.counselor for sample in rounds]
        bootstrap = DialogBootstrap(
            [sample.dialog for sample in rounds], study.score.resamples, study.score.confidence, study.seed_of("score")
        )
        samples, scores, paired = [], [], []
        metrics: dict[str, Any] = {}
        per_sample: dict[tuple[str, str, str], list[float]] = {}
        for (model, arm), path in tqdm(answers.items(), desc="score", unit="arm"):
            replies = {answer["round"]: answer["text"] for answer in storage.read_lines(path)}
            texts = [replies[sample.id] for sample in rounds]
            rows = [sample_scores(reply, reference) for reply, reference in zip(texts, references, strict=True)]
            samples += [
                {"model": model, "arm": arm, "round": sample.id, "dialog": sample.dialog, **row}
                for sample, row in zip(rounds, rows, strict=True)
            ]
            numbers = metrics.setdefault(model, {}).setdefault(arm, {})
            for name in LLAMA_FACTORY:
                per_sample[model, arm, name] = [row[name] for row in rows]
                estimate = bootstrap.estimate(per_sample[model, arm, name])
                scores.append({"model": model, "arm": arm, "metric": name, **estimate.rounded(), "signature": SIGNATURES[name]})
                numbers[name] = round(estimate.mean, 4)
            for name, found in corpus_scores(texts, references).items():
                scores.append(
                    {"model": model, "arm": arm, "metric": name, "mean": round(found.value, 4), "signature": found.signature}
                )
        for model in study.models:
            gains = metrics[model]["tuned minus base"] = {}
            for name in LLAMA_FACTORY:
                pairs = zip(per_sample[model, "tuned", name], per_sample[model, "base", name], strict=True)
                difference = bootstrap.estimate([tuned - base for tuned, base in pairs])
                paired.append({"model": model, "metric": name, **difference.rounded()})
                gains[name] = round(difference.mean, 4)
        for name, table in (("samples", samples), ("scores", scores), ("paired", paired)):
            storage.write_text(out / f"{name}.csv", pd.DataFrame(table).to_csv(index=False, lineterminator="\n"))
        storage.write_json(out / "metrics.json", metrics)
