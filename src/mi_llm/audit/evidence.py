"""The audit's evidence: the public files that were acquired and read, and nothing else.

Only corpora that the study takes from upstream count: the bundle's own samples say nothing about the paper.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.corpora import annomi, release
from mi_llm.corpora.fetch import sources
from mi_llm.corpora.files import File, from_archive
from mi_llm.corpora.labels import ROLES
from mi_llm.dialog import Dialog, Round, characters, read_dialogs, read_rounds
from mi_llm.paper.claims import claims
from mi_llm.study import Study

LABELED = re.compile(r"(来访者|心理咨询师)：(.*)")


@dataclass
class Evidence:
    """The audit's view of a study's outputs; every property is read once, when it is first asked for."""

    study: Study
    seed: int = field(init=False)
    baselines: dict[str, float] = field(default_factory=dict)  # BLEU-4 of replies by simple rules, once scored

    def __post_init__(self) -> None:
        """One seed for all of the audit's draws."""
        self.seed = self.study.seed_of("audit")

    def has(self, corpus: str) -> bool:
        """Whether the public corpus was acquired."""
        return corpus in self.study.acquire.upstream and self.metrics("acquire", corpus)["files"] > 0

    def metrics(self, stage: str, corpus: str) -> dict[str, Any]:
        """The numbers that a stage wrote."""
        return dict(storage.read_json(self.study.path(stage, corpus, "metrics.json")))

    def files(self, corpus: str) -> list[File]:
        """The public files of a corpus."""
        return list(from_archive(self.study.path("acquire", corpus, "files.tar"))) if self.has(corpus) else []

    @cached_property
    def missing(self) -> pd.DataFrame:
        """What was unavailable: corpus, path, why, remedy."""
        tables = []
        for corpus in sources():
            if corpus in self.study.acquire.upstream:
                table = pd.read_csv(self.study.path("acquire", corpus, "missing.csv"), dtype=str)
                table.insert(0, "corpus", corpus)
            else:
                row = [corpus, "all of it", "this study uses the bundle's own sample instead", "./reproduce.sh audit"]
                table = pd.DataFrame([row], columns=["corpus", "path", "why", "remedy"])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def release(self) -> list[File]:
        """The authors' released files."""
        return self.files("release")

    @cached_property
    def published(self) -> list[list[tuple[str, str]]]:
        """The 40 test dialogs as published: (label, text) of each message, nothing renamed or merged."""
        return [
            [(str(message.get("role")), str(message.get("content"))) for _, message in messages]
            for file in self.release
            if file.name == release.DIALOGS
            for messages in release.conversations(file)
        ]

    @cached_property
    def cases(self) -> list[list[tuple[str, str]]]:
        """The CPsyCounD cases counted as the paper seems to have: lines that begin with a plain label, nothing else."""
        cases: list[list[tuple[str, str]]] = []
        for file in self.files("cpsycound"):
            if file.name.endswith(".txt"):
                lines = file.text().replace("\r\n", "\n").replace("\r", "\n").split("\n")
                matches = (LABELED.match(line.strip()) for line in lines)
                cases.append([(ROLES[match[1]], match[2]) for match in matches if match])
        return cases

    def corpus(self, name: str) -> list[Dialog]:
        """The dialogs of a public corpus, as its reader gives them."""
        return read_dialogs(self.study.path("read", name, "dialogs.jsonl")) if self.has(name) else []

    def dialogs(self, name: str) -> list[Dialog]:
        """Dialogs that `read@release` wrote: `simulated`, `training` or `dialogs`."""
        return read_dialogs(self.study.path("read", "release", f"{name}.jsonl")) if self.has("release") else []

    @cached_property
    def simulated(self) -> list[Dialog]:
        """The released role-played dialogs, tuned and base."""
        return self.dialogs("simulated")

    def rounds(self, name: str) -> list[Round]:
        """Test rounds: `rounds` as published, `aligned` repaired."""
        return read_rounds(self.study.path("read", "release", f"{name}.jsonl")) if self.has("release") else []

    @cached_property
    def alignment(self) -> pd.DataFrame:
        """Who speaks in each published test sample."""
        return pd.read_csv(self.study.path("read", "release", "alignment.csv"), keep_default_na=False)

    @cached_property
    def appendix(self) -> dict[str, str]:
        """The appendix's sections, by their Chinese number."""
        return release.read_appendix(self.release)

    @cached_property
    def annomi(self) -> pd.DataFrame:
        """AnnoMI, one row per utterance and annotator; empty without the corpus."""
        for file in self.files(annomi.KEY):
            return pd.DataFrame(list(csv.DictReader(io.StringIO(file.text(), newline=""))))
        return pd.DataFrame(columns=list(annomi.COLUMNS))

    @cached_property
    def transcripts(self) -> pd.DataFrame:
        """AnnoMI's transcripts, by id: quality, topic, utterances, volleys of both speakers, rounds (counselor volleys)."""
        once = self.annomi.drop_duplicates(["transcript_id", "utterance_id"])
        rows = []
        for name, table in once.groupby("transcript_id", sort=False):
            ordered = table.assign(position=table["utterance_id"].astype(int)).sort_values("position")["interlocutor"].tolist()
            volleys = [speaker for index, speaker in enumerate(ordered) if index == 0 or ordered[index - 1] != speaker]
            first = table.iloc[0]
            rows.append(
                {"transcript": int(str(name)), "quality": first["mi_quality"], "topic": first["topic"].strip()}
                | {"utterances": len(ordered), "volleys": len(volleys), "rounds": volleys.count("therapist")}
            )
        return pd.DataFrame(rows, columns=["transcript", "quality", "topic", "utterances", "volleys", "rounds"])

    @cached_property
    def literature(self) -> dict[str, Any]:
        """`literature.yaml`: facts from the sources that the paper cites."""
        return dict(storage.read_yaml(resources.files(__package__) / "literature.yaml"))

    @cached_property
    def reported_topics(self) -> dict[str, int]:
        """Table 5's counts of the real dialogs, by topic."""
        rows = [claim for claim in claims().values() if claim.method == "real_topic"]
        return {claim.claim: int(claim.reported) for claim in rows}


def without_punctuation(text: str) -> int:
    """A text's length as Table 3 counts it: letters, digits and ideographs."""
    return characters(text)
