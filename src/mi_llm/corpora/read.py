"""Stage `read@corpus`: turn one corpus's files into dialogs, and count every repair.

Reads `acquire/<corpus>/files.tar`. Writes `read/<corpus>/dialogs.jsonl`, `repairs.csv` (repair, count, example) and
`metrics.json` (the dialog features of Table 3); for the authors' release also what `release.write_rest` lists. Dialogs go
from the archive to the file one by one, so a corpus of any size is read in the same memory. A corpus that could not be
had gives no dialogs; `acquire/<corpus>/missing.csv` says why.
"""

from collections.abc import Iterator

import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora import annomi, cpsycound, efaqa, psy_insight, psydtcorpus, release, smilechat
from mi_llm.corpora.files import from_archive
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog, Features, write_dialogs
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
    manifest = study.folder / "acquire" / corpus / "manifest.csv"
    with stage(study, "read", corpus, [archive, manifest]) as out:
        count = len(storage.read_text(manifest).splitlines()) - 1
        repairs, features = Repairs(), Features()

        def dialogs() -> Iterator[Dialog]:
            files = tqdm(from_archive(archive), desc=f"read {corpus}", unit="file", total=count)
            for dialog in READERS[corpus](files, repairs):
                features.add(dialog)
                yield dialog

        write_dialogs(out / "dialogs.jsonl", dialogs())
        numbers = features.row()
        if count and not numbers["dialogs"]:
            (out / "dialogs.jsonl").unlink()
            raise Problem(str(archive), "no dialog in it", f"files in the format of {corpus}", "check the archive's manifest.csv")
        if corpus == "release":
            numbers |= release.write_rest(list(from_archive(archive)), repairs, out)
        table = pd.DataFrame(repairs.rows(), columns=["repair", "count", "example"])
        storage.write_text(out / "repairs.csv", table.to_csv(index=False, lineterminator="\n"))
        storage.write_json(out / "metrics.json", numbers | {"repairs": sum(repairs.counts.values())})
