"""Stage `respond@model`: let base and tuned model answer every test round (paper, Automatic Evaluation, formula 2).

Reads `split/test_rounds.jsonl`, the base checkpoint and the adapter. Writes `respond/<model>/base.jsonl` and `tuned.jsonl`
(round, dialog, text, tokens, finish), and `metrics.json`. Decoding is greedy. Answers are appended as they come to
`respond/.<model>.<arm>.partial.jsonl`, from which a stopped run continues.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from mi_llm import prompts, storage
from mi_llm.dialog import Round, Turn, read_rounds
from mi_llm.models.base import chat_format, checkpoint, load, prepare_torch
from mi_llm.models.template import ChatFormat, Placement, messages, prompt
from mi_llm.stage import stage, tracked_parameters
from mi_llm.study import Study

ARMS = ("base", "tuned")


def prompt_of(sample: Round, tokenizer: PreTrainedTokenizerBase, form: ChatFormat, placement: Placement) -> list[int]:
    """Token ids of one test round: instruction, history, and the client's volley."""
    turns = [*sample.history, Turn(role="client", text=sample.client)]
    return prompt(tokenizer, form, messages(turns, prompts.render("counselor"), placement))


def groups(asked: Sequence[list[int]], size: int) -> list[list[int]]:
    """Places of the prompts, longest first, in groups of similar length; the same for every run over the same rounds."""
    by_length = sorted(range(len(asked)), key=lambda place: (-len(asked[place]), place))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def generate(
    model: torch.nn.Module, asked: Sequence[list[int]], stops: list[int], padding: int, most: int
) -> Iterator[tuple[list[int], str]]:
    """Answer one group of prompts greedily, padded on the left; yields (token ids without the stop token, why it ended)."""
    width = max(len(ids) for ids in asked)
    ids = torch.tensor([[padding] * (width - len(one)) + one for one in asked])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in asked])
    settings = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=stops, pad_token_id=padding)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    for row in out[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), None)
        yield (row[:end], "stop") if end is not None else (row, "length")


def finished(partial: Path, identity: str) -> dict[str, dict[str, Any]]:
    """Answers that an interrupted run of the same work left behind, by round; anything else is thrown away."""
    if not partial.exists():
        return {}
    lines = partial.read_bytes().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    if not whole or whole[0] != {"identity": identity}:
        partial.unlink()
        return {}
    storage.write_lines(partial, whole)
    return {answer["round"]: answer for answer in whole[1:]}


def answer_all(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    form: ChatFormat,
    rounds: Sequence[Round],
    *,
    study: Study,
    partial: Path,
    identity: str,
    title: str,
) -> list[dict[str, Any]]:
    """Answer the rounds in fixed groups, keep each group as soon as it is done; returns the answers in the rounds' order."""
    options = study.respond
    asked = [prompt_of(sample, tokenizer, form, study.finetune.instruction_placement) for sample in rounds]
    done = finished(partial, identity)
    if not done:
        storage.write_lines(partial, [{"identity": identity}])
    stops, padding = form.stop_ids(tokenizer), int(tokenizer.pad_token_id or 0)
    with tqdm(total=len(rounds), initial=len(done), desc=title, unit="round") as bar, partial.open("ab") as file:
        for group in groups(asked, options.batch):
            if all(rounds[place].id in done for place in group):
                continue
            answers = generate(model, [asked[place] for place in group], stops, padding, options.max_new_tokens)
            lines = b""
            for place, (ids, finish) in zip(group, answers, strict=True):
                answer = {
                    "round": rounds[place].id,
                    "dialog": rounds[place].dialog,
                    "text": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "prompt_tokens": len(asked[place]),
                    "tokens": len(ids),
                    "finish": finish,
                }
                done[rounds[place].id] = answer
                lines += storage.dump(answer).encode("utf-8") + b"\n"
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(group))
    return [done[sample.id] for sample in rounds]


def respond(study: Study, model: str) -> None:
    """Answer the test rounds with base and tuned model; see the module."""
    prepare_torch(study)
    form, folder = chat_format(study, model), checkpoint(study, model)
    adapter = study.folder / "finetune" / model / "adapter"
    asked = study.folder / "split" / "test_rounds.jsonl"
    inputs = [folder, adapter, asked, Path("prompts/counselor.jinja")]
    with stage(study, "respond", model, inputs) as out:
        loaded, tokenizer = load(folder, study.respond.precision)
        adapted = PeftModel.from_pretrained(loaded, adapter).eval()
        rounds = read_rounds(asked)
        identity = storage.dump([tracked_parameters(study, "respond"), *(storage.sha256(path) for path in inputs)])
        numbers: dict[str, float] = {"rounds": len(rounds)}
        partials = []
        for arm in ARMS:
            partials.append(out.parent / f".{model}.{arm}.partial.jsonl")
            with adapted.disable_adapter() if arm == "base" else nullcontext():
                answers = answer_all(
                    adapted,
                    tokenizer,
                    form,
                    rounds,
                    study=study,
                    partial=partials[-1],
                    identity=identity,
                    title=f"respond {model} {arm}",
                )
            storage.write_lines(out / f"{arm}.jsonl", answers)
            numbers[f"{arm}_tokens_mean"] = round(sum(answer["tokens"] for answer in answers) / len(answers), 4)
            numbers[f"{arm}_cut_share"] = round(sum(answer["finish"] == "length" for answer in answers) / len(answers), 4)
        storage.write_json(out / "metrics.json", numbers)
        for partial in partials:
            partial.unlink(missing_ok=True)
