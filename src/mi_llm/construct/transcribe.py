"""Stage `transcribe`: have a seeded sample of dialogs rewritten in MI style (paper, Methods, Transcription).

Reads `read/<corpus>/dialogs.jsonl` and, to replay, the shipped cassette `data/cassettes/transcribe.jsonl`. Writes the
answers, kept from run to run, to `transcribe/cassette.jsonl`, and which answer belongs to which dialog to `sample.jsonl`.
What the answers say is read by the next stage, `screen`.
"""

import json
import random
from pathlib import Path
from typing import Any

from mi_llm import prompts, storage
from mi_llm.construct import llm
from mi_llm.construct.llm import Cassette, Question
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

SHIPPED = Path("data/cassettes/transcribe.jsonl")


def sample(study: Study, corpus: str, dialogs: list[Dialog]) -> list[Dialog]:
    """Draw the study's number of dialogs from a corpus: seeded, in the order drawn."""
    wanted = study.transcribe.sample[corpus]  # type: ignore[index]
    if wanted > len(dialogs):
        raise Problem(
            f"{study.params}: transcribe.sample.{corpus}",
            f"{wanted} dialogs",
            f"at most the {len(dialogs)} that there are",
            "lower it",
        )
    return random.Random(study.seed_of("transcribe", corpus)).sample(dialogs, wanted)


def question(study: Study, dialog: Dialog) -> Question:
    """The request that asks for one dialog's MI-style counterpart."""
    content = prompts.render("transcribe", turns=dialog.turns)
    request = {
        "model": study.transcribe.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": study.transcribe.temperature,
    }
    return Question(f"dialog {dialog.id} of {dialog.source}", request)


def turns_of(answer: str) -> list[Turn]:
    """Parse an answer: a JSON list of `{role, content}`, perhaps in a code fence. Raises ValueError, with the reason."""
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        entries: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError("not a list of turns")
    turns = []
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or entry.get("role") not in ("client", "counselor"):
            raise ValueError(f"turn {place} has no role client or counselor")
        if not isinstance(entry.get("content"), str) or not entry["content"].strip():
            raise ValueError(f"turn {place} has no text")
        turns.append(Turn(role=entry["role"], text=entry["content"].strip()))
    return turns


def fault(answer: str) -> str | None:
    """What makes an answer unusable as it came, or None: such an answer is asked for again."""
    try:
        turns_of(answer)
    except ValueError as error:
        return str(error)
    return None


def transcribe(study: Study) -> None:
    """Collect the answers for the study's sample; see the module."""
    options = study.transcribe
    read = {corpus: study.folder / "read" / corpus / "dialogs.jsonl" for corpus in options.sample}
    shipped = [SHIPPED] if options.mode == "replay" and SHIPPED.exists() else []
    with stage(study, "transcribe", None, [*read.values(), *shipped]) as out:
        drawn = [dialog for corpus, path in read.items() for dialog in sample(study, corpus, read_dialogs(path))]
        questions = [question(study, dialog) for dialog in drawn]
        own = Cassette.open(out / "cassette.jsonl")
        if options.mode == "record":
            llm.record(
                questions,
                own,
                base_url=options.base_url,
                concurrency=options.concurrency,
                attempts=options.attempts,
                check=fault,
            )
        how = f"set transcribe.mode to record in {study.params}, OPENAI_API_KEY in the environment, and run `mi-llm transcribe`"
        answers = llm.replay(questions, [own, *(Cassette.open(path) for path in shipped)], how)
        if options.mode == "replay":
            storage.write_lines(own.path, answers)
        rows = [
            {"dialog": dialog.id, "source": dialog.source, "key": asked.key}
            for dialog, asked in zip(drawn, questions, strict=True)
        ]
        storage.write_lines(out / "sample.jsonl", rows)
        storage.write_json(out / "metrics.json", {"answers": len(answers)})
