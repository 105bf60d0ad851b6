"""Stage `read@corpus`: turn one corpus's files into dialogs, and count every repair.

Reads `acquire/<corpus>/files.tar`. Writes `read/<corpus>/dialogs.jsonl`, `repairs.csv` (repair, count, example),
`metrics.json` (the dialog features of Table 3) and, for the authors' release, the published rounds in `rounds.jsonl`.
"""

import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora import annomi, cpsycound, efaqa, psy_insight, psydtcorpus, release, smilechat
from mi_llm.corpora.files import from_archive
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import features, write_dialogs, write_rounds
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

READERS = {
    "cpsycound": cpsycound.read,
    "psydtcorpus": psydtcorpus.read,
    "smilechat": smilechat.read,
    "psy_insight": psy_insight.read,
    "efaqa": efaqa.read,
    "annomi": annomi.read,
    "release": release.read,
}


def read(study: Study, corpus: str) -> None:
    """Read one corpus; see the module."""
    archive = study.folder / "acquire" / corpus / "files.tar"
    with stage(study, "read", corpus, [archive]) as out:
        repairs = Repairs()
        bar = tqdm(from_archive(archive), desc=f"read {corpus}", unit="file")
        dialogs = list(READERS[corpus](bar, repairs))
        if not dialogs:
            raise Problem(str(archive), "no dialog in it", f"files in the format of {corpus}", "check the archive's manifest.csv")
        write_dialogs(out / "dialogs.jsonl", dialogs)
        if corpus == "release":
            write_rounds(out / "rounds.jsonl", release.read_rounds(from_archive(archive), repairs))
        table = pd.DataFrame(repairs.rows(), columns=["repair", "count", "example"])
        storage.write_text(out / "repairs.csv", table.to_csv(index=False, lineterminator="\n"))
        storage.write_json(out / "metrics.json", features(dialogs) | {"repairs": sum(repairs.counts.values())})
