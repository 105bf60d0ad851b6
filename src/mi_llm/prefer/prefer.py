"""Stage `prefer@model`: teach a tuned model to prefer what a coder counts as good MI (paper, future work; optional).

Reads the checkpoint, `finetune/<model>/adapter/`, `split/` and `respond/<model>/`. The tuned model answers training rounds
several times, the lexical coder codes each reply, and the best and the worst of a round are a pair for DPO (Rafailov et al.
2023). Writes to `prefer/<model>/`: `adapter/` (plain peft, for the base, with a model card), `vllm/` (the same for vLLM),
`pairs.jsonl`, `preferred.jsonl` (answers to the test rounds), `scores.csv` and `codes.csv` (base, tuned, preferred),
`metrics.json`. A stopped run keeps the replies it has; training, which takes little time compared with them, begins again.

The coder that judges is the coder that chose: its figures show whether training works, and are no evidence of better MI.
"""

import gc
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from mi_llm import storage
from mi_llm.codebook import coding, lexical
from mi_llm.codebook.coding import Behavior, Coded, volley
from mi_llm.dialog import Round, characters, read_dialogs
from mi_llm.engine.counselor import Answer, LocalCounselor, chats, with_adapter
from mi_llm.engine.load import chat_format, checkpoint, enough_memory, load_base, prepare_torch, whole
from mi_llm.engine.processes import refuse_company, refuse_server
from mi_llm.engine.template import ChatFormat, encode, prompt
from mi_llm.language.language import DEFAULT
from mi_llm.miti.summary import worth as worth_of
from mi_llm.models import card
from mi_llm.models.finetune import lora_of
from mi_llm.models.respond import Journal, answer_all, asked_rounds, numbers_of, without_time
from mi_llm.models.vllm import write_for_vllm
from mi_llm.problem import Problem
from mi_llm.score.diagnostics import repeated_4grams
from mi_llm.score.metrics import main_scores, signatures
from mi_llm.score.score import test_sets, texts_of
from mi_llm.stage import stage, tracked_parameters
from mi_llm.statistics import DialogBootstrap, holm, p_of_swaps
from mi_llm.study import Study

MERITS = {  # of a volley: each behavior counts once, so that a reply gains nothing by saying the same at length
    Behavior.COMPLEX: 2,
    Behavior.SIMPLE: 1,
    Behavior.SEEK: 1,
    Behavior.AFFIRM: 1,
    Behavior.EMPHASIZE: 1,
    Behavior.PERSUADE: -2,
    Behavior.CONFRONT: -2,
}
REPEATED = 0.2  # a reply with a larger share of repeated 4-grams is repetitive
COUNTS = (coding.REFLECTIONS, coding.ADHERENT, coding.NONADHERENT)


def prefer(study: Study, model: str) -> None:
    """Train one model's adapter further on preferences, and measure the effect; see the module."""
    refuse(study, model)
    prepare_torch(study)
    tuned = study.path("finetune", model, "adapter")
    answered = study.path("respond", model)
    inputs = [checkpoint(study, model), tuned, study.path("split"), answered, Path(study.finetune.instruction)]
    with stage(study, "prefer", model, inputs) as out, tempfile.TemporaryDirectory() as scratch:
        work = [study.seed, tracked_parameters(study, "respond", model), *(storage.sha256(path) for path in inputs)]
        drawing = Journal(out.parent, f"{model}.candidates", storage.dump(work), 0)
        rounds = drawn_rounds(study)
        sampled = candidates(study, model, rounds, drawing)
        cutoff, manner = study.finetune.cutoff, (study.language, study.code.cues.counselor)
        judged = [judge(sample, answers, cutoff, *manner) for sample, answers in zip(rounds, sampled, strict=True)]
        pairs = pairs_of(rounds, judged, study.prefer.margin)
        if not pairs:
            raise no_pair(study, model, judged)
        storage.write_lines(out / "pairs.jsonl", [pair.record() for pair in pairs])
        numbers: dict[str, Any] = pair_numbers(sampled, judged, pairs)
        trainer = trainer_of(study, model, pairs, Path(scratch))
        numbers |= optimize(study, model, trainer, len(pairs))
        join(trainer.model, tuned, out / "adapter")
        del trainer
        write_for_vllm(out / "adapter", out / "vllm")
        work.append(storage.sha256(out / "adapter"))
        answering = Journal(out.parent, f"{model}.preferred", storage.dump(work), 0)
        answers = answers_of(study, model, out / "adapter", asked_rounds(study), answering)
        storage.write_lines(out / "preferred.jsonl", answers)
        numbers |= evaluate(study, out, {"base": answered, "tuned": answered, "preferred": out})
        storage.write_text(out / "adapter" / "README.md", card_of(study, model, numbers))
        storage.write_json(out / "metrics.json", numbers)
        drawing.close()
        answering.close()


def refuse(study: Study, model: str) -> None:
    """Raise Problem where the stage cannot work: with a model server, and with several processes or GPUs."""
    refuse_server(study, "prefer")
    refuse_company(f"prefer@{model}")


# ---- replies


def drawn_rounds(study: Study) -> list[Round]:
    """`prefer.rounds` training rounds, drawn by the seed, in their order."""
    dialogs = read_dialogs(study.path("split", "train.jsonl"))
    training_rounds = [sample for dialog in dialogs for sample in dialog.rounds()]
    indices = study.sample(range(len(training_rounds)), study.prefer.rounds, "prefer.rounds", "prefer", "rounds")
    return [training_rounds[index] for index in sorted(indices)]


def candidates(study: Study, model: str, rounds: Sequence[Round], journal: Journal) -> list[list[Answer]]:
    """Replies of the tuned model to each round, sampled as `respond.sampling` says; each has its own random numbers."""
    count = study.prefer.candidates
    copies = [sample.model_copy(update={"id": f"{sample.id}/{number}"}) for sample in rounds for number in range(1, count + 1)]
    drawing = study.model_copy(update={"respond": study.respond.model_copy(update={"decoding": "sample"})})
    answers = answers_of(drawing, model, study.path("finetune", model, "adapter"), copies, journal)
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def answers_of(study: Study, model: str, adapter: Path, rounds: Sequence[Round], journal: Journal) -> list[Answer]:
    """The answers of a base with an adapter, in the rounds' order, computed as in `respond`."""
    gc.collect()  # a card may have no room for the model of the step before, which refers to itself
    arm = journal.name.removeprefix(f"{model}.")
    answer_all(LocalCounselor(study, model, arm, *with_adapter(study, model, adapter)), rounds, journal)
    answers = journal.answers()
    return [without_time(answers[sample.id]) for sample in rounds]


# ---- pairs


@dataclass(frozen=True)
class Candidate:
    """A reply, its coded utterances, and its merit."""

    text: str
    coded: tuple[Coded, ...]
    merit: int


@dataclass(frozen=True)
class Pair:
    """Two replies to one round, of which the coder prefers one."""

    sample: Round
    chosen: Candidate
    rejected: Candidate

    def record(self) -> dict[str, Any]:
        """The pair as `pairs.jsonl` keeps it: codes in the order of the utterances, empty for an utterance without one."""
        fields: dict[str, Any] = {"round": self.sample.id, "dialog": self.sample.dialog}
        for name, candidate in (("chosen", self.chosen), ("rejected", self.rejected)):
            codes = [{"code": coded.behavior or "", "text": coded.text} for coded in candidate.coded]
            fields |= {name: candidate.text, f"{name}_codes": codes, f"{name}_merit": candidate.merit}
        return fields


def merit_of(behaviors: Iterable[Behavior]) -> int:
    """A volley's merit: the sum of its behaviors' `MERITS`."""
    return sum(MERITS.get(behavior, 0) for behavior in behaviors)


def judge(sample: Round, answers: Sequence[Answer], cutoff: int, code: str = DEFAULT, cues: str = "") -> list[Candidate]:
    """The different usable replies to a round, each coded."""
    replies = []
    for text in dict.fromkeys(answer["text"] for answer in answers if usable(answer, sample, cutoff)):
        coded = tuple(lexical.code(sample.client, text, code, cues))
        replies.append(Candidate(text, coded, merit_of(volley(utterance.behavior for utterance in coded))))
    return replies


def usable(answer: Answer, sample: Round, cutoff: int) -> bool:
    """Whether a reply may be in a pair: complete, not empty, not repetitive, and not a repetition of an earlier volley.

    With its prompt it must be shorter than `cutoff` tokens, the most that the records of fine-tuning have.
    """
    text, earlier_texts = answer["text"], {sample.client, *(turn.text for turn in sample.history)}
    complete = answer["finish"] == "stop" and answer["prompt_tokens"] + answer["tokens"] < cutoff
    return complete and characters(text) > 0 and repeated_4grams(text) <= REPEATED and text not in earlier_texts


def pairs_of(rounds: Sequence[Round], judged: Sequence[Sequence[Candidate]], margin: int) -> list[Pair]:
    """The best against the worst reply of each round if their merits differ by `margin`; of equally good ones the first."""
    pairs = []
    for sample, replies in zip(rounds, judged, strict=True):
        if replies:
            best, worst = max(replies, key=merit), min(replies, key=merit)
            if best.merit - worst.merit >= margin:
                pairs.append(Pair(sample, best, worst))
    return pairs


def merit(candidate: Candidate) -> int:
    """A candidate's merit, by which replies are ranked."""
    return candidate.merit


def no_pair(study: Study, model: str, judged: Sequence[Sequence[Candidate]]) -> Problem:
    """The problem of a study whose replies make no pair."""
    count = sum(map(len, judged))
    widest = max((max(map(merit, replies)) - min(map(merit, replies)) for replies in judged if replies), default=0)
    return Problem(
        f"prefer@{model}",
        f"no pair: {count} usable replies to {len(judged)} rounds, and within a round they differ by {widest} at most",
        f"a round whose replies differ by {study.prefer.margin} (prefer.margin)",
        "raise prefer.rounds, prefer.candidates or respond.max_new_tokens, or lower prefer.margin",
    )


# ---- training


class TokenTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer for pairs that are tokens already: its own preparation renders text and appends another end token.

    It sends no telemetry; TRL otherwise reports each trainer to the hub.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class Bar(TrainerCallback):  # type: ignore[misc]
    """A progress bar with the loss; transformers' own prints every step."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Start the bar."""
        self.bar = tqdm(total=state.max_steps, desc=self.title, unit="step")

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Advance by one step; the last log, about the whole training, closes the bar."""
        if "loss" in logs:
            share = logs["rewards/accuracies"]
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, the chosen reply more likely in {share:.0%}", refresh=False)
            self.bar.update()
        else:
            self.bar.close()


def tokens_of(
    study: Study, tokenizer: PreTrainedTokenizerBase, form: ChatFormat, pairs: Sequence[Pair]
) -> list[dict[str, list[int]]]:
    """Each pair as TRL's collator takes it: `prompt_ids`, and with the end of a reply `chosen_ids` and `rejected_ids`."""
    examples = []
    for pair, chat in zip(pairs, chats([pair.sample for pair in pairs], study), strict=True):
        prompt_ids = prompt(tokenizer, form, chat)
        answered = [[*chat, {"role": "assistant", "content": candidate.text}] for candidate in (pair.chosen, pair.rejected)]
        chosen, rejected = (record.ids for record in encode(tokenizer, form, answered, sys.maxsize, last_only=True))
        assert chosen[: len(prompt_ids)] == rejected[: len(prompt_ids)] == prompt_ids
        examples.append(
            {"prompt_ids": prompt_ids, "chosen_ids": chosen[len(prompt_ids) :], "rejected_ids": rejected[len(prompt_ids) :]}
        )
    return examples


def trainer_of(study: Study, model: str, pairs: Sequence[Pair], scratch: Path) -> TokenTrainer:
    """DPO with a fresh LoRA on the base into which the tuned adapter is merged: with the LoRA off, that is the reference."""
    options, finetuned = study.prefer, study.finetune
    gc.collect()
    loaded, tokenizer = load_base(study, model, finetuned.precision)
    adapter = study.path("finetune", model, "adapter")
    with whole(adapter):
        merged = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    on_gpu = torch.cuda.is_available()
    settings = DPOConfig(
        output_dir=str(scratch),
        beta=options.beta,
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        lr_scheduler_type=finetuned.scheduler,
        warmup_steps=finetuned.warmup_ratio,  # below 1 it is a share
        max_grad_norm=finetuned.gradient_clip,
        max_length=None,
        bf16=finetuned.precision == "bfloat16",
        gradient_checkpointing=finetuned.checkpointing,
        seed=study.seed_of("prefer", model),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    dataset = Dataset.from_list(tokens_of(study, tokenizer, chat_format(study, model), pairs))
    return TokenTrainer(merged, args=settings, train_dataset=dataset, processing_class=tokenizer, peft_config=lora_of(finetuned))


def optimize(study: Study, model: str, trainer: TokenTrainer, pairs: int) -> dict[str, float]:
    """Train; returns the first step's loss, and the mean loss and accuracy of the last epoch, which sees `pairs` pairs."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar(f"prefer {model}"))
    with enough_memory(f"prefer@{model}", "prefer.batch pairs", "lower prefer.batch, and run again"):
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in log:
        if not math.isfinite(entry["loss"] + entry["grad_norm"]):
            raise Problem(
                f"prefer@{model}, step {entry['step']}",
                f"a loss of {entry['loss']}, a gradient of {entry['grad_norm']}",
                "finite numbers",
                "lower prefer.learning_rate",
            )
    last = log[-math.ceil(pairs / study.prefer.batch) :]
    return {
        "steps": len(log),
        "first_loss": log[0]["loss"],
        "last_loss": fmean(entry["loss"] for entry in last),
        "last_accuracy": fmean(entry["rewards/accuracies"] for entry in last),
    }


def join(model: PeftModel, tuned: Path, folder: Path) -> None:
    """Write one adapter that is the sum of two: the tuned one, and the one that `model` has learned on top of it.

    peft puts their ranks side by side, with each one's scaling in its A. Settings are those of the tuned adapter, but for rank
    and alpha, whose quotient, the scaling, is 1.
    """
    model.load_adapter(tuned, "tuned")
    model.add_weighted_adapter(["tuned", "default"], [1.0, 1.0], "joined", combination_type="cat")
    rank = model.peft_config["joined"].r
    settings = storage.read_json(tuned / "adapter_config.json") | {"r": rank, "lora_alpha": rank}
    shutil.rmtree(folder, ignore_errors=True)
    storage.write_json(folder / "adapter_config.json", settings)
    with storage.replacing(folder / "adapter_model.safetensors") as file:
        file.write(save(get_peft_model_state_dict(model, adapter_name="joined"), {"format": "pt"}))


# ---- what came out


def evaluate(study: Study, out: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Compare the arms' answers to the test rounds, each in its folder; writes both tables and returns their numbers.

    `scores.csv` is likeness to the reference, as in `score`; `codes.csv` is what the coder sees per round. Both by test set
    and arm, with intervals, and each arm but the tuned one compared with the tuned one.
    """
    files = {arm: folder / f"{arm}.jsonl" for arm, folder in folders.items()}
    arms = {arm: list(storage.read_lines(path)) for arm, path in files.items()}
    frames_by_table: dict[str, list[pd.DataFrame]] = {"scores": [], "codes": []}
    for name, rounds in test_sets(study.path("split")).items():
        texts = {
            arm: texts_of(rounds, {answer["round"]: answer["text"] for answer in arms[arm]}, path) for arm, path in files.items()
        }
        dialogs, references = [sample.dialog for sample in rounds], [sample.counselor for sample in rounds]
        likeness = {arm: pd.DataFrame(main_scores(replies, references, study.language)) for arm, replies in texts.items()}
        codes = {arm: codes_of(rounds, replies, study.language, study.code.cues.counselor) for arm, replies in texts.items()}
        for table, values in (("scores", likeness), ("codes", codes)):
            rows = compared(study, values, dialogs)
            rows.insert(0, "set", name)
            frames_by_table[table].append(rows)
    numbers: dict[str, Any] = numbers_of(arms)
    for table, parts in frames_by_table.items():
        frame = pd.concat(parts)
        if table == "scores":
            frame["signature"] = frame["measure"].map(signatures(study.language))
        storage.write_table(out / f"{table}.csv", frame)
        for row in parts[0].itertuples():
            numbers.setdefault(row.arm, {})[row.measure] = row.mean
    return numbers


def codes_of(rounds: Sequence[Round], replies: Sequence[str], language: str, cues: str) -> pd.DataFrame:
    """Table of rounds x measures: each reply's behaviors (0 or 1 each), the sums of Table 2 that are not ratios, the merit.

    Also what a coder does not see: the reply's length in characters, and its share of repeated 4-grams.
    """
    rows = []
    for sample, reply in zip(rounds, replies, strict=True):
        behaviors = volley(utterance.behavior for utterance in lexical.code(sample.client, reply, language, cues))
        counts = Counter(behaviors)
        row: dict[str, float] = {behavior.value: counts[behavior] for behavior in Behavior}
        row |= {summary.code: summary(counts) or 0 for summary in COUNTS}
        extras = {"merit": merit_of(behaviors), "characters": len(reply), "repeated_4grams": repeated_4grams(reply)}
        rows.append(row | extras)
    return pd.DataFrame(rows)


def compared(study: Study, values: dict[str, pd.DataFrame], dialogs: Sequence[str]) -> pd.DataFrame:
    """Rows of arm and measure: mean over rounds with its interval, difference from the tuned model with interval, p and Holm's p.

    `values` are rounds x measures for each arm. Intervals and tests are those of `score`, from the same random numbers.
    """
    options = study.score
    bootstrap = DialogBootstrap(dialogs, options.resamples, options.confidence, study.seed_of("score"))
    rows, tested = [], list[dict[str, Any]]()
    for arm, arm_values in values.items():
        for measure in arm_values:
            row: dict[str, Any] = {"arm": arm, "measure": measure, **bootstrap.estimate(arm_values[measure]).rounded()}
            if arm != "tuned":
                differences = arm_values[measure].to_numpy() - values["tuned"][measure].to_numpy()
                estimate = bootstrap.estimate(differences)
                row |= {f"difference_{name}": value for name, value in estimate.rounded().items()}
                row["p"] = p_of_swaps(differences, dialogs, options.resamples, study.seed_of("score", "swaps"))
                tested.append(row)
            rows.append(row)
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return pd.DataFrame(rows).round({"p": 6, "p_holm": 6})


def pair_numbers(
    sampled: Sequence[Sequence[Answer]], judged: Sequence[Sequence[Candidate]], pairs: Sequence[Pair]
) -> dict[str, float]:
    """How many replies became how many pairs, and how long the two sides of them are: what is preferred may be mere length."""
    return {
        "training_rounds": len(sampled),
        "candidates": sum(map(len, sampled)),
        "usable": sum(map(len, judged)),
        "pairs": len(pairs),
        "chosen_characters_mean": round(fmean(len(pair.chosen.text) for pair in pairs), 4),
        "rejected_characters_mean": round(fmean(len(pair.rejected.text) for pair in pairs), 4),
    }


def card_of(study: Study, model: str, numbers: dict[str, Any]) -> str:
    """The card beside the adapter, Markdown with a YAML head; its text is `prefer.md.jinja`."""
    merits = {behavior.value: worth for behavior, worth in MERITS.items()}
    source = card.source_of(study, model)
    values = {"study": study, "model": model, "source": source, "numbers": numbers, "merits": merits, "repeated": REPEATED}
    values["worth_of_coder"] = worth_of(["lexical"])
    return card.rendered(resources.files(__package__) / "prefer.md.jinja", values)
