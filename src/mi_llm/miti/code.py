"""Stage `code`: give every packet its MITI codes (paper, Methods, Manual Evaluation), by people, a language model or words alone.

Reads `blind/packets/` and what the coder that `code.coder` names needs beside it (a module of `miti/coder/`): `codes.csv`,
`globals.csv` and perhaps `guesses.csv` of people (folder `code.human`), recorded answers of a language model (`llm/ask.py`), or
nothing. Writes `code/codes.csv`, `globals.csv` and `guesses.csv` (`codebook/tables.py`), `client.csv` (what clients say of
change, by words alone and by the study's language model, whoever codes the counselor) and, of a model, `cassette.jsonl`, kept
from run to run. Where people's folder has a `consensus.csv`, codes and globals by consensus go to `code/consensus/`; globals that
a language model gave (`code.globals`) are in no consensus.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mi_llm import registry, storage
from mi_llm.codebook import client
from mi_llm.codebook.packets import transcripts_of
from mi_llm.codebook.tables import Coding, tables
from mi_llm.llm.cassette import Question
from mi_llm.miti.coder import llm
from mi_llm.stage import stage
from mi_llm.study import Study


def questions(study: Study) -> list[Question]:
    """What the study's language model is asked: of clients always, of counselors where it codes them or rates globals."""
    coder, transcripts = registry.modules(registry.CODERS)[study.code.coder], transcripts_of(study.path("blind", "packets"))
    asked = list(llm.listening(study, transcripts).values())
    if hasattr(coder, "questions"):
        return [*coder.questions(study, "code", transcripts), *asked]
    return [*(llm.rating(study, transcripts).values() if study.code.globals == "llm" else []), *asked]


def write(folder: Path, named: Mapping[str, pd.DataFrame]) -> None:
    """Write each table as a CSV file of its name."""
    for name, table in named.items():
        storage.write_table(folder / f"{name}.csv", table)


def code(study: Study) -> None:
    """Have all packets coded; see the module."""
    folder, coder = study.path("blind", "packets"), registry.modules(registry.CODERS)[study.code.coder]
    with stage(study, "code", None, [folder, *(coder.inputs(study) if hasattr(coder, "inputs") else [])]) as out:
        transcripts = transcripts_of(folder)
        codings: list[Coding] = coder.code(study, "code", transcripts)
        beside = study.code.globals == "llm" and study.code.coder != "llm"
        codings = [replace(coding, ratings={}) for coding in codings] if beside else codings
        agreements = coder.consensus(study, codings) if hasattr(coder, "consensus") else None
        codings += llm.rate(study, "code", transcripts) if beside else []
        if not codings and hasattr(coder, "remedy"):
            print(f"code: nothing is coded; to get codes: {coder.remedy(study, 'code')}")
        write(out, tables(codings))
        shutil.rmtree(out / "consensus", ignore_errors=True)  # the folder is kept from run to run
        if agreements is not None:
            by_consensus = tables(agreements)
            write(out / "consensus", {name: by_consensus[name] for name in ("codes", "globals")})
        listeners = registry.modules(registry.CODERS, having="client")
        heard = [coding for listener in listeners.values() for coding in listener.client(study, "code", transcripts)]
        write(out, {"client": client.table(heard)})
        numbers = {
            "packets": len(transcripts),
            "coded": len({coding.packet for coding in codings}),
            "raters": len({coding.rater for coding in codings}),
            "volleys": sum(len(coding.behaviors) for coding in codings),
            "behaviors": sum(len(seen) for coding in codings for seen in coding.behaviors.values()),
            "ratings": sum(len(coding.ratings) for coding in codings),
        }
        storage.write_json(out / "metrics.json", numbers)
