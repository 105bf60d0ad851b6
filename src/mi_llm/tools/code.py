"""`mi-llm tool code`: MITI codes of one's own transcripts, by words alone or by a language model at an address.

Reads transcripts; a model's answers are recorded in a cassette, as in a study, so that nothing is asked twice.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mi_llm import storage
from mi_llm.codebook.tables import Coding, tables
from mi_llm.dialog import Dialog
from mi_llm.llm import ask
from mi_llm.miti.coder import lexical, llm
from mi_llm.miti.summary import INDICATORS, transcripts
from mi_llm.study import Budget, Llm, Study, load

UNLIMITED = Budget(requests=10**9, tokens=10**12, usd=10**6)
Tables = tuple[pd.DataFrame, pd.DataFrame]


def code_transcripts(dialogs: Sequence[Dialog]) -> Tables:
    """What the lexical coder sees in some dialogs: the rows of `codes.csv` and of `globals.csv`.

    Columns rater (`lexical`), packet (the dialog's id), volley (the number of a counselor's turn; turns count from 1), and code
    (empty: none). It recognizes words, not meaning, and gives no globals: the second table is empty. Nobody should take its codes
    for a person's; docs/log.md says how far it agrees with experts.
    """
    return both([Coding("lexical", dialog.id, lexical.by_words(dialog.turns), {}) for dialog in dialogs])


def code_with_model(dialogs: Sequence[Dialog], url: str, model: str, out: Path, *, yes: bool = False) -> Tables:
    """What a language model sees, with the globals: rater `llm:<model>`. The dialogs' text is sent to `url` (OpenAI's protocol).

    Answers are recorded in `out/cassette.jsonl`, and asked only once. Unless `yes`, a person is asked at the terminal before
    anything is sent. The prompts are the bundle's (`language/zh/prompts/miti_*.jinja`): call it in the bundle's folder. Raises
    Problem for an address that does not answer, and for answers that are no codes.
    """
    study = asking(url, model, out)
    packets = {dialog.id: dialog.turns for dialog in dialogs}
    ask.consent(study, out.name, ask.workload(study, out.name, llm.questions(study, out.name, packets)), yes=yes)
    return both(llm.code(study, out.name, packets))


def both(codings: Sequence[Coding]) -> Tables:
    """The rows of `codes.csv` and of `globals.csv`; a program guesses no arm."""
    made = tables(codings)
    return made["codes"], made["globals"]


def asking(url: str, model: str, out: Path) -> Study:
    """The miniature's settings with another language model, whose cassette is `out/cassette.jsonl`."""
    study = load(Path("mini/params.yaml"))
    settings = study.llm.model_dump() | {"mode": "record", "model": model, "base_url": url, "budget": UNLIMITED}
    return study.model_copy(update={"out": str(out.parent), "llm": Llm.model_validate(settings)})


def by_transcript(codes: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """One row per transcript: packet, rounds, and every indicator of Table 2; NaN where one does not exist."""
    packets = pd.DataFrame({"packet": list(dict.fromkeys(codes["packet"])), "source": "", "arm": "", "profile": ""})
    return transcripts(codes, ratings, packets)[["packet", "rounds", *INDICATORS]].round(4)


def write_codes(codes: pd.DataFrame, ratings: pd.DataFrame, folder: Path) -> None:
    """Write `codes.csv` and `globals.csv`."""
    storage.write_table(folder / "codes.csv", codes)
    storage.write_table(folder / "globals.csv", ratings)
