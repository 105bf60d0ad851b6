"""Stage `screen`: check every transcribed dialog, and let a person decide (paper, Methods, Transcription).

Reads `transcribe/`. Automatic checks propose (`keep` or `drop`, with reasons); a person overrules them in the study's
decisions file (CSV: `dialog,decision,reason,who,when`, decision `keep` or `drop`). Writes `screen/dialogs.jsonl` (what is kept),
`screening.csv` (every dialog, every reason, who decided) and `metrics.json`. Nothing is dropped silently.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pandas as pd

from mi_llm import storage
from mi_llm.construct.llm import Cassette, text_of
from mi_llm.construct.transcribe import turns_of
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Screen, Study

DECISIONS = ("dialog", "decision", "reason", "who", "when")


def unsafe_terms() -> list[str]:
    """The list of unsafe content: a term a line; lines that begin with # explain."""
    text = (resources.files(__package__) / "unsafe.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def faults(turns: Sequence[Turn], options: Screen, unsafe: Sequence[str]) -> Iterator[str]:
    """Why a dialog should be dropped: alternation, length, language, unsafe content."""
    if turns[0].role != "client":
        yield "does not start with the client"
    if turns[-1].role != "counselor":
        yield "does not end with the counselor"
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
    text = "".join(turn.text for turn in turns)
    letters = [character for character in text if character.isalpha()]
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in letters)
    if chinese < options.chinese_share * len(letters):
        yield f"only {chinese} of {len(letters)} letters are Chinese"
    for term in unsafe:
        if any(term in turn.text for turn in turns if turn.role == "counselor"):
            yield f"unsafe content: {term}"


def decisions(path: Path) -> dict[str, dict[str, str]]:
    """What a person decided, by dialog; the file may be missing, but not malformed."""
    if not path.exists():
        return {}
    table = csv.DictReader(storage.read_text(path).splitlines())
    if tuple(table.fieldnames or ()) != DECISIONS:
        raise Problem(f"{path}, line 1", f"columns {table.fieldnames}", ",".join(DECISIONS), "correct the header")
    made = {}
    for row in table:
        if row["decision"] not in ("keep", "drop"):
            raise Problem(f"{path}, line {table.line_num}", f"decision {row['decision']!r}", "keep or drop", "correct it")
        made[row["dialog"]] = row
    return made


def screen(study: Study) -> None:
    """Screen the transcribed dialogs; see the module."""
    folder, decided_in = study.folder / "transcribe", Path(study.screen.decisions)
    with stage(study, "screen", None, [folder, decided_in]) as out:
        answers = Cassette.open(folder / "cassette.jsonl").good
        person, unsafe = decisions(decided_in), unsafe_terms()
        kept, rows = [], []
        for entry in storage.read_lines(folder / "sample.jsonl"):
            name = f"{entry['source']}/{entry['dialog']}"
            try:
                turns = turns_of(text_of(answers[entry["key"]]))
                reasons = list(faults(turns, study.screen, unsafe))
            except ValueError as error:
                turns, reasons = [], [str(error)]
            decision, who = ("drop" if reasons else "keep"), "automatic"
            if name in person:
                decision, who = person[name]["decision"], person[name]["who"]
                reasons.append(person[name]["reason"])
            if study.screen.policy == "person" and name not in person:
                raise Problem(
                    study.screen.decisions, f"no decision about {name}", "a person's decision on every dialog",
                    f"add a line `{name},keep|drop,reason,who,when`, or set screen.policy to automatic",
                )  # fmt: skip
            if decision == "keep" and turns:
                kept.append(
                    Dialog(id=name, source=entry["source"], turns=tuple(turns), meta={"transcribed_from": entry["dialog"]})
                )
            rows.append({"dialog": name, "decision": decision, "reasons": "; ".join(reasons), "who": who})
        write_dialogs(out / "dialogs.jsonl", kept)
        storage.write_text(out / "screening.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        counts = Counter(row["decision"] for row in rows)
        storage.write_json(out / "metrics.json", {"screened": len(rows), "kept": counts["keep"], "dropped": counts["drop"]})
