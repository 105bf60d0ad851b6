"""Stage `transcribe`: have a seeded sample of dialogs rewritten in MI style (paper, Methods, Transcription).

Reads `read/<corpus>/dialogs.jsonl` and recorded answers (`llm/ask.py`); or, with source `release`, takes the dialogs that
the authors published as the answers they got; or, with source `corpus`, the sample as it is: dialogs that are MI already.
Writes `transcribe/cassette.jsonl`, kept from run to run, and `transcribed.jsonl`: for each dialog of the sample its source, the
answer's key and text. What the answers say is read by the next stage, `screen`.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from mi_llm import prompts, storage
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.language import language
from mi_llm.language.language import Language
from mi_llm.llm import ask
from mi_llm.llm.answer import parsed
from mi_llm.llm.cassette import Check, Question, text_of
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Screen, Study


def sample(study: Study, corpus: str, dialogs: list[Dialog]) -> list[Dialog]:
    """Draw the study's number of dialogs of two sides from a corpus: seeded, in the order drawn."""
    dialogs = [dialog for dialog in dialogs if not dialog.one_sided]
    return study.sample(dialogs, study.transcribe.sample[corpus], f"transcribe.sample.{corpus}", "transcribe", corpus)


def drawn(study: Study) -> list[Dialog]:
    """The sample of all corpora, in the parameters' order; raises Problem for none, where something must be trained or tested."""
    if not study.transcribe.sample and study.needs_transcribed:
        raise Problem(
            f"{study.params}: transcribe.sample",
            "no corpus",
            "how many dialogs of which corpus, to train and test on",
            f"for MI dialogs of your own: mi-llm import … --train --study {study.params}",
        )
    return [
        dialog
        for corpus in study.transcribe.sample
        for dialog in sample(study, corpus, read_dialogs(study.path("read", corpus, "dialogs.jsonl")))
    ]


def questions(study: Study) -> list[Question]:
    """The requests that ask for each dialog's MI-style counterpart; none where dialogs are taken as they are."""
    if study.transcribe.source != "recorded":
        return []
    prompt_file, speech = prompts.load(study, "transcribe"), language.load(study.language)
    instructions = [line for line in prompt_file.render(turns=()).splitlines() if len(line) >= 20]
    return [
        Question(
            about=f"dialog {dialog.id} of {dialog.source}",
            request=ask.request(
                study,
                [{"role": "user", "content": prompt_file.render(turns=dialog.turns)}],
                temperature=study.transcribe.temperature,
            ),
            prompt=prompt_file.provenance,
            check=checker(study.screen, instructions, speech),
        )
        for dialog in drawn(study)
    ]


def turns_of(answer: str) -> list[Turn]:
    """Parse an answer: a JSON list of `{role, content}`, perhaps in a code fence. Raises ValueError, with the reason."""
    entries: Any = parsed(answer)
    if not isinstance(entries, list) or not entries:
        raise ValueError("not a list of turns")
    turns = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or entry.get("role") not in ("client", "counselor"):
            raise ValueError(f"turn {number} has no role client or counselor")
        if not isinstance(entry.get("content"), str) or not entry["content"].strip():
            raise ValueError(f"turn {number} has no text")
        turns.append(Turn(role=entry["role"], text=entry["content"].strip()))
    return turns


def form_faults(turns: Sequence[Turn], options: Screen, speech: Language) -> Iterator[str]:
    """What is wrong with a dialog's form: who speaks when, how much, in which language."""
    if turns[0].role != "client":
        yield "does not start with the client"
    if any(before.role == after.role for before, after in pairwise(turns)):
        yield "roles do not alternate"
    least, most = options.rounds
    rounds = sum(turn.role == "counselor" for turn in turns)
    if not least <= rounds <= most:
        yield f"{rounds} rounds, not {least} to {most}"
    shortest, longest = options.volley_characters
    for turn in turns:
        if not shortest <= len(turn.text) <= longest:
            yield f"a volley of {len(turn.text)} characters, not {shortest} to {longest}"
            break
    share = speech.share("".join(turn.text for turn in turns))
    if share < options.script_share:
        yield f"only {share:.0%} of the letters are {speech.name.en}"


def checker(options: Screen, instructions: Sequence[str], speech: Language) -> Check:
    """The check of an answer; an answer that fails it is requested again."""

    def check(answer: str) -> str | None:
        try:
            turns = turns_of(answer)
        except ValueError as error:
            return str(error)
        if any(line in turn.text for turn in turns for line in instructions):
            return "repeats the prompt"
        return next(form_faults(turns, options, speech), None)

    return check


def released(study: Study) -> list[dict[str, Any]]:
    """The authors' transcribed dialogs as rows: the answers of GPT-4 that they published; perhaps none."""
    dialogs = read_dialogs(study.path("read", "release", "training.jsonl"))
    if not dialogs:
        print(f"transcribe: none of the authors' training dialogs is here; see {study.folder}/acquire/release/missing.csv")
    return [
        {
            "dialog": dialog.id,
            "source": "release",
            "key": None,
            "records": dialog.meta.get("records"),
            "answer": storage.dump([{"role": turn.role, "content": turn.text} for turn in dialog.turns]),
        }
        for dialog in dialogs
    ]


def as_they_are(study: Study) -> list[dict[str, Any]]:
    """The sample itself as rows: dialogs of a corpus that are MI dialogs already."""
    return [
        {
            "dialog": dialog.id,
            "source": dialog.source,
            "key": None,
            "answer": storage.dump([{"role": turn.role, "content": turn.text} for turn in dialog.turns]),
        }
        for dialog in drawn(study)
    ]


def transcribe(study: Study) -> None:
    """Collect the answers for the study's sample; see the module."""
    corpora = ["release"] if study.transcribe.source == "release" else list(study.transcribe.sample)
    with stage(study, "transcribe", None, [study.path("read", corpus) for corpus in corpora]) as out:
        if study.transcribe.source == "release":
            rows = released(study)
        elif study.transcribe.source == "corpus":
            rows = as_they_are(study)
        else:
            asked = questions(study)
            answers = ask.answers(study, "transcribe", asked)
            if not answers and study.needs_transcribed:
                raise ask.missing(study, "transcribe", asked)
            rows = [
                {"dialog": dialog.id, "source": dialog.source, "key": answer["key"], "answer": text_of(answer)}
                for dialog, answer in zip(drawn(study) if answers else [], answers, strict=True)
            ]
        storage.write_lines(out / "transcribed.jsonl", rows)
        storage.write_json(out / "metrics.json", {"answers": len(rows)})
