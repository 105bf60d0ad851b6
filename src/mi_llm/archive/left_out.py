"""What the archive does not hold, as a table: what, license, why, how to fetch it, and the hash that it must have."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mi_llm import storage
from mi_llm.corpora.fetch import sources
from mi_llm.models import hub
from mi_llm.study import load


@dataclass(frozen=True)
class LeftOut:
    """One thing that is not in the archive; `hash` begins with its kind and is empty where none is known."""

    what: str
    license: str
    why: str
    fetch: str
    hash: str


def corpora() -> list[LeftOut]:
    """The public files that sources.yaml pins."""
    rows = []
    for name, source in sources().items():
        repository, reason = f"{source.repository} at {source.commit}", source.left_out
        fetch = f"{source.address(source.commit)}, kept in the mirror folder as {source.archive(source.commit)}"
        for path, blob in {**source.paths, **source.optional}.items():
            rows.append(LeftOut(f"{name}: {path} of {repository}", source.license, reason, fetch, f"git:{blob}"))
        if source.earlier:
            commit = source.earlier.commit
            fetch = f"{source.address(commit)}, kept in the mirror folder as {source.archive(commit)}"
            paths = ", ".join(source.earlier.paths)
            rows.append(LeftOut(f"{name}: {paths} of {source.repository} at {commit}", source.license, reason, fetch, ""))
        for file in source.files:
            rows.append(LeftOut(f"{name}: {file}", source.license, reason, source.obtain, ""))
    return rows


def quoted() -> LeftOut:
    """The simulated dialogs' words beyond what the audit quotes of them."""
    release = sources()["release"]
    return LeftOut(
        "release: what clients of the simulated dialogs say, except the word that decides the topic (audit/simulated_topics.csv)",
        release.license,
        f"{release.left_out}; a quotation needs that word only",
        "./reproduce.sh audit --mirror DIR; the dialogs are then in runs/paper/read/release/simulated.jsonl",
        "",
    )


def weights() -> list[LeftOut]:
    """The weights of the paper's models, which the root's pins.yaml pins."""
    study = load(Path("params.yaml"))
    entries = {model: hub.entry_of(study, model) for model in study.from_hub}
    return [
        LeftOut(
            f"{model}: {file} of {entry.repository} at {entry.revision}",
            entry.license.name,
            f"each user must accept its license, and {entry.download_gb:g} GB are too large for an archive of the miniature",
            f"mi-llm base {model} --study params.yaml; license: {entry.license.address}",
            f"sha256:{pin.sha256}",
        )
        for model, entry in entries.items()
        for file, pin in entry.files.items()
        if pin.sha256
    ]


def table(rows: list[LeftOut]) -> str:
    """The rows as CSV."""
    return storage.table_text(pd.DataFrame(rows), index=False)
