"""EleutherAI's lm-evaluation-harness (Gao et al. 2024), asking an arm of a model as every stage of this study asks it.

The harness makes the questions of a task and judges the answers: of the options, the one that the model finds most likely.
Prompts, chat format, adapter and 4-bit base are the study's own. Nothing is fetched: tasks and files lie in `benchmark.folder`,
or within the harness.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pandas as pd
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel

from mi_llm.engine.attention import beyond
from mi_llm.engine.counselor import LocalCounselor
from mi_llm.engine.template import Message, prompt
from mi_llm.problem import Problem
from mi_llm.study import Study

Task = Any  # lm_eval.api.task.ConfigurableTask
ROOM = "lower benchmark.shots, or leave this task out"


class Examinee(HFLM):  # type: ignore[misc]
    """An arm as the harness takes it. The harness carries a chat as text, and here this text is the messages' JSON."""

    def __init__(self, counselor: LocalCounselor, batch: int, *, system: bool) -> None:
        """`batch`: questions at a time; `system`: whether the chat format has system turns."""
        network = counselor.network
        model = network.get_base_model() if isinstance(network, PeftModel) else network
        if not beyond(model):
            model.set_attn_implementation("sdpa")  # rounds that share a dialog have another
        super().__init__(pretrained=network, tokenizer=counselor.tokenizer, backend="causal", batch_size=batch)
        self.counselor, self.system = counselor, system

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A chat as text: its JSON."""
        return json.dumps(asked(chat_history, system=self.system), ensure_ascii=False)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of the prompt, and those of an option as the reply."""
        question = prompt(self.counselor.tokenizer, self.counselor.form, json.loads(context))
        option: list[int] = self.counselor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if (tokens := len(question) + len(option)) > self.max_length:
            expected = f"at most {self.max_length}, the model's context"
            raise Problem(f"benchmark@{self.counselor.model}", f"a question of {tokens} tokens", expected, ROOM)
        return question, option


def asked(chat: Sequence[Message], *, system: bool) -> list[Message]:
    """The harness's messages as ours: a task's description in a system turn, or at the top of the first client turn."""
    first, *rest = [{"role": message["role"], "content": message["content"].strip()} for message in chat]
    if first["role"] == "system" and not system:
        first, *rest = [rest[0] | {"content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [first, *rest]


@contextmanager
def loaded_tasks(study: Study) -> Iterator[dict[str, list[Task]]]:
    """The parts of each task that the study names, whose files are converted in a scratch folder while this block lasts."""
    options, folder, cache = study.benchmark, Path(study.benchmark.folder).absolute(), datasets.config.HF_DATASETS_CACHE
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = all((folder / f"{task}.yaml").is_file() for task in options.tasks)
    manager = TaskManager(include_path=str(folder), include_defaults=not own)  # the harness's own are thousands
    with TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch)
        try:
            yield {name: parts_of(study, manager, name, folder) for name in options.tasks}
        finally:
            datasets.config.HF_DATASETS_CACHE = cache


def parts_of(study: Study, manager: TaskManager, name: str, folder: Path) -> list[Task]:
    """The parts of a task, ready to be asked; raises Problem for a task that cannot be loaded, or has no options."""
    try:
        with chdir(folder):  # from where a task names its files
            parts = list(manager.load([name])["tasks"].values())
    except Exception as error:  # the harness and datasets raise many kinds for tasks and files that they cannot load
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        remedy = f"put its files into {study.benchmark.folder}, in a folder named like the hub's repository"
        raise Problem(f"benchmark.tasks: {name}", found, "a task of lm-evaluation-harness, with its files", remedy) from error
    for part in parts:
        if part.OUTPUT_TYPE != "multiple_choice" or part.multiple_input or part.get_config("gen_prefix"):
            raise Problem(f"benchmark.tasks: {name}", f"{part.task_name} has no options", "multiple choice", "name another task")
        if part.get_config("num_fewshot") != 0:
            part.set_config("num_fewshot", study.benchmark.shots)
        part.set_fewshot_seed(study.seed_of("benchmark"))
    return parts


def examined(examinee: Examinee, name: str, parts: list[Task]) -> pd.DataFrame:
    """An arm's answers to a task's questions, one row each: part, item, number of options, the one chosen, and if it is right."""
    found = evaluate(
        examinee,
        {"tasks": {part.task_name: part for part in parts}},
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    rows = [
        {
            "task": name,
            "part": part.task_name,
            "item": sample["doc_id"],
            "options": len(sample["filtered_resps"]),
            "chosen": 1 + int(np.argmax([likelihood for likelihood, _ in sample["filtered_resps"]])),
            "right": int(sample["acc"]),
        }
        for part in parts
        for sample in sorted(found["samples"][part.task_name], key=lambda sample: sample["doc_id"])
    ]
    return pd.DataFrame(rows)
