"""Stage `code`: give every packet its MITI codes (paper, Methods, Manual Evaluation), by people, a language model or words alone.

Reads `blind/packets/` and what the coder that `code.coder` names needs beside it (a module of `miti/coder/`): `codes.csv`,
`globals.csv` and perhaps `guesses.csv` of people (folder `code.human`), recorded answers of a language model (`llm/ask.py`), or
nothing. Writes `code/codes.csv`, `globals.csv` and `guesses.csv` (`codebook/tables.py`) and, of a model, `cassette.jsonl`, kept
from run to run.
"""

from mi_llm import registry, storage
from mi_llm.codebook.packets import transcripts_of
from mi_llm.codebook.tables import Coding, tables
from mi_llm.llm.cassette import Question
from mi_llm.stage import stage
from mi_llm.study import Study


def questions(study: Study) -> list[Question]:
    """The requests that the stage's coder makes; none where no model codes."""
    coder = registry.modules(registry.CODERS)[study.code.coder]
    if not hasattr(coder, "questions"):
        return []
    return list(coder.questions(study, "code", transcripts_of(study.path("blind", "packets"))))


def code(study: Study) -> None:
    """Have all packets coded; see the module."""
    folder, coder = study.path("blind", "packets"), registry.modules(registry.CODERS)[study.code.coder]
    with stage(study, "code", None, [folder, *(coder.inputs(study) if hasattr(coder, "inputs") else [])]) as out:
        transcripts = transcripts_of(folder)
        codings: list[Coding] = coder.code(study, "code", transcripts)
        if not codings and hasattr(coder, "remedy"):
            print(f"code: nothing is coded; to get codes: {coder.remedy(study, 'code')}")
        for name, table in tables(codings).items():
            storage.write_table(out / f"{name}.csv", table)
        numbers = {
            "packets": len(transcripts),
            "coded": len({coding.packet for coding in codings}),
            "raters": len({coding.rater for coding in codings}),
            "volleys": sum(len(coding.behaviours) for coding in codings),
            "behaviours": sum(len(seen) for coding in codings for seen in coding.behaviours.values()),
            "ratings": sum(len(coding.ratings) for coding in codings),
        }
        storage.write_json(out / "metrics.json", numbers)
