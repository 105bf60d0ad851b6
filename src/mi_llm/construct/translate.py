"""Stage `translate`: a seeded sample of AnnoMI's transcripts in the study's language (paper, Methods, Manual Evaluation).

Reads `read/annomi/dialogs.jsonl`, where the study has that corpus, and recorded answers (`llm/ask.py`). Writes
`translate/cassette.jsonl`, kept from run to run, and `dialogs.jsonl`: the sample, turn by turn the same as in English; in an
English study the sample itself, and nothing is asked. The paper does not say who translated its 30 transcripts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mi_llm import prompts, storage
from mi_llm.corpora import annomi
from mi_llm.dialog import Dialog, Turn, read_dialogs, write_dialogs
from mi_llm.language import language
from mi_llm.language.language import Language
from mi_llm.llm import ask
from mi_llm.llm.answer import parsed
from mi_llm.llm.cassette import Check, Question, text_of
from mi_llm.stage import stage
from mi_llm.study import Study

CONTEXT = 4  # turns before a piece that the model sees and does not translate


def sample(study: Study) -> list[Dialog]:
    """The study's transcripts: seeded, in AnnoMI's order, of those in which both sides speak; none without that corpus."""
    if annomi.KEY not in study.corpora:
        return []
    dialogs = [dialog for dialog in read_dialogs(study.path("read", annomi.KEY, "dialogs.jsonl")) if not dialog.one_sided]
    indices = study.sample(range(len(dialogs)), study.translate.transcripts, "translate.transcripts", "translate")
    return [dialogs[index] for index in sorted(indices)]


def pieces(dialog: Dialog, most: int) -> Iterator[tuple[Sequence[Turn], Sequence[Turn]]]:
    """Cut a transcript into pieces of at most `most` turns; each comes with the turns right before it."""
    for start in range(0, len(dialog.turns), most):
        yield dialog.turns[max(0, start - CONTEXT) : start], dialog.turns[start : start + most]


def checker(turns: Sequence[Turn], share: float, speech: Language) -> Check:
    """The check of an answer: a JSON list with one text of the language for each turn."""

    def check(answer: str) -> str | None:
        try:
            texts = texts_of(answer)
        except ValueError as error:
            return str(error)
        if len(texts) != len(turns):
            return f"{len(texts)} turns, not {len(turns)}"
        if speech.share("".join(texts)) < share:
            return f"not {speech.name.en}"
        return None

    return check


def texts_of(answer: str) -> list[str]:
    """Parse an answer: a JSON list of texts. Raises ValueError, with the reason."""
    texts: Any = parsed(answer)
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("not a list of texts")
    return [text.strip() for text in texts]


def questions(study: Study) -> list[Question]:
    """The requests: one per piece of a transcript; none where it is in the study's language."""
    if study.language == annomi.LANGUAGE:
        return []
    speech = language.load(study.language)
    prompt_file = prompts.load(study, "translate")
    return [
        Question(
            about=f"transcript {dialog.id} of annomi, piece {number}",
            request=ask.request(
                study,
                [{"role": "user", "content": prompt_file.render(context=context, turns=turns)}],
                temperature=study.translate.temperature,
            ),
            prompt=prompt_file.provenance,
            check=checker(turns, study.screen.script_share, speech),
        )
        for dialog in sample(study)
        for number, (context, turns) in enumerate(pieces(dialog, study.translate.turns_a_request), 1)
    ]


def translated(study: Study) -> list[Dialog]:
    """The sample as recorded answers translate it; nothing where nothing is recorded."""
    answers = ask.answers(study, "translate", questions(study))
    texts = iter([text for answer in answers for text in texts_of(text_of(answer))])
    return [
        Dialog(
            id=dialog.id,
            source=f"annomi-{study.language}",
            turns=tuple(Turn(role=turn.role, text=next(texts)) for turn in dialog.turns),
            meta=dialog.meta | {"translated_by": answers[0]["model"]},
        )
        for dialog in (sample(study) if answers else [])
    ]


def translate(study: Study) -> None:
    """Collect the study's real sessions; where no translation of them is recorded there are none, and the stage says so."""
    with stage(study, "translate", None, [study.path("read", annomi.KEY)] if annomi.KEY in study.corpora else []) as out:
        sessions = sample(study) if study.language == annomi.LANGUAGE else translated(study)
        write_dialogs(out / "dialogs.jsonl", sessions)
        numbers = {"transcripts": len(sessions), "turns": sum(len(dialog.turns) for dialog in sessions)}
        storage.write_json(out / "metrics.json", numbers)
        if not sessions and annomi.KEY in study.corpora:
            print(f"translate: nothing is recorded; to record: {ask.how_to_record(study, 'translate')}")
