"""Stage `respond@model`: let base and tuned model answer every test round (paper, Automatic Evaluation, formula 2).

Reads `split/test_rounds.jsonl` (and `aligned_rounds.jsonl`, where there is one), the base checkpoint and the adapter. Writes
`respond/<model>/base.jsonl` and `tuned.jsonl` (round, dialog, text, tokens, finish) and `metrics.json`. Every answer goes to
`respond/.<model>.<arm>.<process>.jsonl` as it comes, with its time, and a stopped run continues from there. Several processes
(`torchrun`) share the dialogs and give the same file as one. With engine `server` a model server is asked instead; its responses
are kept as they come, too, and end up in `base.cassette.jsonl` and `tuned.cassette.jsonl`.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mi_llm import storage
from mi_llm.dialog import Round, read_rounds
from mi_llm.engine.counselor import (
    Answer,
    LocalCounselor,
    adapters,
    answer_of,
    forget,
    local_counselors,
    plans,
    served_counselors,
)
from mi_llm.engine.load import checkpoint, prepare_torch
from mi_llm.engine.processes import Processes
from mi_llm.stage import stage, tracked_parameters, write_arms
from mi_llm.study import Study


def respond(study: Study, model: str) -> None:
    """Answer the test rounds with a model's arms; see the module."""
    prepare_torch(study)
    processes, title = Processes(), f"respond {model}"
    split, folder = study.path("split"), study.path("respond", model)
    inputs = [split, Path(study.finetune.instruction)]
    if study.respond.engine == "local":
        inputs = [checkpoint(study, model), *adapters(study, model), *inputs]
    with (
        processes.together(title),
        stage(study, "respond", model, inputs) if processes.main else nullcontext(folder) as out,
    ):
        rounds, journals = asked_rounds(study), dict[str, Journal]()
        dialogs = len({sample.dialog for sample in rounds})
        local = study.respond.engine == "local"
        processes.refuse_idle(title, dialogs if local else 1, f"{dialogs} dialogs" if local else "one server")
        if not local:
            answers = answer_by_server(study, model, rounds, out)
            processes.all("answered")  # here each waits for the others
        else:
            identity = processes.from_main(identity_of(study, model, inputs) if processes.main else "")
            journals = {arm: Journal(out.parent, f"{model}.{arm}", identity, processes.rank) for arm in study.arms(model)}
            answers = answer_locally(study, model, rounds, journals)
        if not processes.main:
            return
        write_arms(out, answers)
        storage.write_json(out / "metrics.json", numbers_of(answers))
        for journal in journals.values():
            journal.close()
        forget(out.parent, model)


def asked_rounds(study: Study) -> list[Round]:
    """The test rounds, and those of the repaired test set that are not among them."""
    folder = study.path("split")
    repaired = folder / "aligned_rounds.jsonl"
    rounds = [*read_rounds(folder / "test_rounds.jsonl"), *(read_rounds(repaired) if repaired.exists() else [])]
    return list({sample.id: sample for sample in rounds}.values())


def identity_of(study: Study, model: str, inputs: Sequence[Path]) -> str:
    """What makes two runs the same: parameters and inputs."""
    return storage.dump([tracked_parameters(study, "respond", model), *(storage.sha256(path) for path in inputs)])


class Journal:
    """The answers of one arm as they come, one per line, after a first line that says which work they belong to.

    Each process writes its own file and reads all: a round that any run of the same work has answered is not answered again.
    """

    def __init__(self, folder: Path, name: str, identity: str, rank: int) -> None:
        self.folder, self.name, self.identity = folder, name, identity
        self.path = folder / f".{name}.{rank}.jsonl"

    def files(self) -> list[Path]:
        """The files of all processes."""
        return sorted(self.folder.glob(f".{self.name}.*.jsonl"))

    def lines(self, path: Path) -> list[bytes]:
        """The whole lines of a file, without a torn last one; none if it does not exist or belongs to other work."""
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return lines if lines and json.loads(lines[0]) == {"identity": self.identity} else []

    def answers(self) -> dict[str, Answer]:
        """What has been answered, by round."""
        answered = (json.loads(line) for path in self.files() for line in self.lines(path)[1:])
        return {answer["round"]: answer for answer in answered}

    def begin(self) -> None:
        """Make this process's file ready to be added to: cut off a torn line, or start again for other work."""
        if lines := self.lines(self.path):
            os.truncate(self.path, sum(len(line) + 1 for line in lines))
        else:
            storage.write_lines(self.path, [{"identity": self.identity}])

    def close(self) -> None:
        """Remove the files when the answers are in the output; their times stay in `.speed/`, outside all outputs."""
        times = [{name: answer[name] for name in ("round", "seconds", "tokens")} for answer in self.answers().values()]
        storage.write_lines(self.folder.parent / ".speed" / f"respond-{self.name}.jsonl", times)
        for path in self.files():
            path.unlink()


def kept(answers: Iterable[Answer], journal: Journal, bar: Any) -> int:
    """Write answers to the journal as they come; returns how many tokens they have."""
    began, tokens = time.monotonic(), 0
    with journal.path.open("ab") as file:
        for answer in answers:
            seconds = round(time.monotonic() - began, 3)
            file.write(storage.dump(answer | {"seconds": seconds}).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
            tokens += answer["tokens"]
            bar.update()
            bar.set_postfix_str(f"{tokens / max(seconds, 0.001):.0f} token/s", refresh=False)
    return tokens


def answer_all(counselor: LocalCounselor, rounds: Sequence[Round], journal: Journal) -> None:
    """Answer this process's share of the rounds that the journal lacks, and print tokens and time.

    The first process reads the journal for all of them: answers keep coming, so another process would see other ones.
    """
    processes = Processes()
    rank, world = processes.rank, processes.count
    prompts = counselor.prompts(rounds)
    done = processes.from_main(journal.answers() if processes.main else {})
    dialogs = plans(rounds, prompts, done)[rank::world]
    journal.begin()
    branching = counselor.branching(rounds)
    title = f"respond {journal.name}" + (f" ({rank + 1} of {world})" if world > 1 else "")
    count = sum(len(dialog.indices) for dialog in dialogs)
    began = time.monotonic()
    with tqdm(total=count, desc=title, unit="round") as bar:
        tokens = kept(counselor.answers(branching, rounds, prompts, dialogs), journal, bar)
    if count:
        one_by_one = sum(len(prompts[index]) for dialog in dialogs for index in dialog.indices)
        print(
            f"{title}: {count} rounds, {tokens} tokens in {time.monotonic() - began:.1f} s; read {branching.prefilled} tokens"
            f" (each dialog once, then its branches; round by round: {one_by_one})",
            file=sys.stderr,
        )


def answer_locally(
    study: Study, model: str, rounds: Sequence[Round], journals: Mapping[str, Journal], adapter: Path | None = None
) -> dict[str, list[Answer]]:
    """The answers of the model's arms that have a journal, from one loaded base, with the given adapter or the model's own.

    Empty for all processes but the first.
    """
    processes = Processes()
    answers_by_arm: dict[str, list[Answer]] = {}
    for counselor in local_counselors(study, model, adapter):
        if counselor.arm not in journals:
            continue
        journal = journals[counselor.arm]
        answer_all(counselor, rounds, journal)
        processes.all(counselor.arm)  # here each waits for the others
        if processes.main:
            answers = journal.answers()
            answers_by_arm[counselor.arm] = [without_time(answers[sample.id]) for sample in rounds]
    return answers_by_arm


def without_time(answer: Answer) -> Answer:
    """An answer as the output keeps it: the same for every run."""
    return {name: value for name, value in answer.items() if name != "seconds"}


def answer_by_server(study: Study, model: str, rounds: Sequence[Round], out: Path) -> dict[str, list[Answer]]:
    """The answers of the model's arms from a model server, and in the output the recorded responses."""
    answers_by_arm: dict[str, list[Answer]] = {}
    for counselor in served_counselors(study, model, "respond"):
        records = counselor.records(rounds)
        storage.write_lines(out / f"{counselor.arm}.cassette.jsonl", records)
        answers_by_arm[counselor.arm] = [answer_of(sample, recorded) for sample, recorded in zip(rounds, records, strict=True)]
    return answers_by_arm


def numbers_of(answers: dict[str, list[Answer]]) -> dict[str, float]:
    """How many rounds there are, how long the replies are, and what share of them was cut at the limit."""
    numbers: dict[str, float] = {"rounds": len(next(iter(answers.values())))}
    for arm, arm_answers in answers.items():
        numbers[f"{arm}_tokens_mean"] = round(sum(answer["tokens"] for answer in arm_answers) / len(arm_answers), 4)
        numbers[f"{arm}_cut_share"] = round(sum(answer["finish"] == "length" for answer in arm_answers) / len(arm_answers), 4)
    return numbers
