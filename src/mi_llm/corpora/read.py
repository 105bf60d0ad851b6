"""Stage `read@corpus`: turn one corpus's files into dialogs, and count every repair.

Reads `acquire/<corpus>/files.tar`, with the corpus's own reader, or where the parameters give a path with the one for your own
dialogs (`own/`). Writes `read/<corpus>/dialogs.jsonl`, `repairs.csv` (repair, count, example) and
`metrics.json` (the dialog features of Table 3); for the authors' release also what its `write_rest` lists. Dialogs go
from the archive to the file one by one, so a corpus of any size is read in the same memory. An unavailable corpus
gives no dialogs; `acquire/<corpus>/missing.csv` says why.
"""

from collections.abc import Callable, Iterable, Iterator

import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.corpora.files import File, from_archive
from mi_llm.corpora.own import understand
from mi_llm.corpora.reading import Repairs, unique
from mi_llm.dialog import Dialog, Features, write_dialogs
from mi_llm.problem import Problem
from mi_llm.registry import CORPORA, modules
from mi_llm.stage import stage
from mi_llm.study import Study

MODULES = modules(CORPORA)
Reader = Callable[[Iterable[File], Repairs], Iterator[Dialog]]
READERS: dict[str, Reader] = {name: module.read for name, module in MODULES.items()}


def reader_of(study: Study, corpus: str) -> Reader:
    """The reader of a corpus of the study."""
    return READERS[corpus] if corpus in READERS else understand.reader(corpus, study.corpora[corpus])


def read(study: Study, corpus: str) -> None:
    """Read one corpus; see the module."""
    archive = study.path("acquire", corpus, "files.tar")
    manifest = study.path("acquire", corpus, "manifest.csv")
    with stage(study, "read", corpus, [archive, manifest]) as out:
        count = len(storage.read_text(manifest).splitlines()) - 1
        repairs, features = Repairs(), Features()

        def dialogs() -> Iterator[Dialog]:
            files = tqdm(from_archive(archive), desc=f"read {corpus}", unit="file", total=count)
            for dialog in unique(reader_of(study, corpus)(files, repairs), repairs):
                features.add(dialog)
                yield dialog

        write_dialogs(out / "dialogs.jsonl", dialogs())
        numbers = features.row()
        if count and not numbers["dialogs"]:
            (out / "dialogs.jsonl").unlink()
            raise Problem(str(archive), "no dialog in it", f"files in the format of {corpus}", "check the archive's manifest.csv")
        if write_rest := getattr(MODULES.get(corpus), "write_rest", None):  # what a corpus holds beside dialogs
            numbers |= write_rest(list(from_archive(archive)), repairs, out)
        table = pd.DataFrame(repairs.rows(), columns=["repair", "count", "example"])
        storage.write_table(out / "repairs.csv", table)
        storage.write_json(out / "metrics.json", numbers | {"repairs": sum(repairs.counts.values())})
