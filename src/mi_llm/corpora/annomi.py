"""AnnoMI (uccollab/AnnoMI, `AnnoMI-full.csv`): expert-annotated English MI transcripts, one row per utterance and annotator."""

import csv
import io
from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text
from mi_llm.problem import Problem

KEY = "annomi"  # in the parameters, and of its outputs
LANGUAGE = "en"
NAME = Text("AnnoMI", "AnnoMI")
COLUMNS = (
    "mi_quality", "transcript_id", "video_title", "video_url", "topic", "utterance_id", "interlocutor", "timestamp",
    "utterance_text", "annotator_id", "therapist_input_exists", "therapist_input_subtype", "reflection_exists",
    "reflection_subtype", "question_exists", "question_subtype", "main_therapist_behaviour", "client_talk_type",
)  # fmt: skip


def rows(file: File) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, row) of the table; raises Problem with the line that is not CSV, or if the columns differ."""
    table = csv.DictReader(io.StringIO(file.text(), newline=""))
    try:
        head = f"{table.fieldnames}"
        require(tuple(table.fieldnames or ()) == COLUMNS, f"{file.name}, line 1", head, ", ".join(COLUMNS))
        for row in table:
            yield f"{file.name}, line {table.line_num}", row
    except csv.Error as error:
        where = f"{file.name}, line {table.line_num + 1}"
        raise Problem(where, f"not CSV ({error})", "a CSV file", "restore it from its source") from None


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per transcript, its utterances in order of their id, each once however many annotators coded it.

    The codes themselves stay in the CSV file, where the agreement tables read them.
    """
    for file in files:
        if not file.name.endswith("AnnoMI-full.csv"):
            continue
        transcripts: dict[str, dict[int, tuple[str, str, str]]] = {}
        meta: dict[str, dict[str, str]] = {}
        for where, row in rows(file):
            require(
                None not in row and None not in row.values(),
                where,
                "a row with the wrong number of fields",
                f"{len(COLUMNS)} columns",
            )
            require(row["utterance_id"].isdecimal(), where, f"utterance_id {row['utterance_id']!r}", "a number")
            require(row["mi_quality"] in ("high", "low"), where, f"mi_quality {row['mi_quality']!r}", "high or low")
            name = row["transcript_id"]
            volley = (row["interlocutor"], row["utterance_text"], where)
            first = transcripts.setdefault(name, {}).setdefault(int(row["utterance_id"]), volley)
            require(first[:2] == volley[:2], where, "the same utterance with two texts", f"what {first[2]} says")
            meta.setdefault(name, {"file": file.name, "quality": row["mi_quality"], "topic": row["topic"]})
        for name, utterances in transcripts.items():
            volleys = [utterances[number] for number in sorted(utterances)]
            yield from assemble(name, KEY, volleys, repairs, meta[name])
