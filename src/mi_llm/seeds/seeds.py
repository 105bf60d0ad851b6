"""Stage `seeds@model-seed`: tune one model again with another seed, and score what it then answers (optional; not in the paper).

Reads what `finetune` and `respond` read. Writes to `seeds/<model>-<seed>/`: `adapter/` (plain peft), the loss curve in
`dvclive/`, `tuned.jsonl` (and `base.jsonl`, where replies are sampled and so depend on the seed, too), `samples.csv` (every
reply's scores, as in `score`) and `metrics.json`. All but the seed is as in `finetune` and `respond`: with that seed as the
study's own, they would write the same adapter and the same replies. A stopped run goes on from where it was, and several
processes share the work, as there.
"""

import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import pandas as pd

from mi_llm import storage
from mi_llm.engine.counselor import Answer
from mi_llm.engine.load import checkpoint, prepare_torch
from mi_llm.engine.processes import Processes, refuse_server, refuse_untuned
from mi_llm.models.finetune import refuse_idle, tune
from mi_llm.models.respond import Journal, answer_locally, asked_rounds, identity_of, numbers_of
from mi_llm.problem import Problem
from mi_llm.score.libraries import pooled_scores
from mi_llm.score.score import sample_table, test_sets, texts_of
from mi_llm.score.text import LLAMA_FACTORY
from mi_llm.stage import stage, write_arms
from mi_llm.study import Study


def seeds(study: Study, model: str, seed: int) -> None:
    """Tune one model with another seed, answer the test rounds, and score the replies; see the module."""
    refuse(study, model, seed)
    prepare_torch(study)
    again, processes, item = study.model_copy(update={"seed": seed}), Processes(), f"{model}-{seed}"
    inputs = [checkpoint(study, model), study.path("split"), Path(study.finetune.instruction)]
    folder, title = study.path("seeds", item), f"seeds {item}"
    refuse_idle(processes, study.finetune, title)
    with (
        processes.together(title),
        stage(study, "seeds", item, inputs, model=model) if processes.main else nullcontext(folder) as out,
    ):
        numbers, resume = tune(again, model, out, title)
        gc.collect()  # a card may have no room for two: what was trained refers to itself
        adapter = out / "adapter"
        # Here the other processes wait for the adapter.
        identity = processes.from_main(identity_of(again, model, [*inputs, adapter]) if processes.main else "")
        arms = study.arms(model) if study.respond.decoding == "sample" else ("tuned",)
        journals: dict[str, Journal] = {arm: Journal(out.parent, f"{item}.{arm}", identity, processes.rank) for arm in arms}
        answers = answer_locally(again, model, asked_rounds(study), journals, adapter)
        if not processes.main:
            return
        write_arms(out, answers)
        samples = samples_of(study, model, out, answers)
        storage.write_table(out / "samples.csv", samples)
        storage.write_json(out / "metrics.json", numbers | numbers_of(answers) | means_of(samples))
        for journal in journals.values():
            journal.close()
        resume.discard()


def refuse(study: Study, model: str, seed: int) -> None:
    """Raise Problem for an untuned model, for the study's own seed, and where a server answers: it has no such adapter."""
    refuse_untuned(study, model, f"seeds@{model}-{seed}")
    if seed == study.seed:
        raise Problem(f"seeds@{model}-{seed}", f"{seed}, the study's own seed", "another seed", "see finetune and respond for it")
    refuse_server(study, "seeds")


def samples_of(study: Study, model: str, out: Path, answers: Mapping[str, Sequence[Answer]]) -> pd.DataFrame:
    """Every reply's scores on each test set, in the columns of `score/samples.csv`."""
    tables = []
    for name, rounds in test_sets(study.path("split")).items():
        references = [sample.counselor for sample in rounds]
        texts = {
            (model, arm): texts_of(rounds, {answer["round"]: answer["text"] for answer in arm_answers}, out / f"{arm}.jsonl")
            for arm, arm_answers in answers.items()
        }
        pooled = {arm: pooled_scores(replies, references, study.language) for arm, replies in texts.items()}
        table = sample_table(rounds, texts, pooled, study.language).round(4)
        table.insert(0, "set", name)
        tables.append(table)
    return pd.concat(tables)


def means_of(samples: pd.DataFrame) -> dict[str, float]:
    """The mean over the rounds of the first test set of the paper's measures, `<arm>_<metric>`."""
    first_set = samples[samples["set"] == samples["set"].iloc[0]]
    return {
        f"{arm}_{metric}": round(fmean(rows[metric]), 4)
        for arm, rows in first_set.groupby("arm", sort=False)
        for metric in LLAMA_FACTORY
    }
