"""What a run needs besides a machine, stage by stage: corpora, training file, weights with their licenses, recordings, people.

Looks at files only; nothing is asked over the network. `./reproduce.sh` prints the list before it starts: what
is here, what will be fetched, and what is absent, with the tables that then stay empty. If something is absent
that the run cannot do without, it stops at once, before anything large is fetched.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from mi_llm import storage
from mi_llm.benchmark.tasks import missing
from mi_llm.construct.split import other_ways
from mi_llm.corpora import annomi, release
from mi_llm.corpora.fetch import Source, source_of, sources
from mi_llm.corpora.files import from_archive
from mi_llm.language import language
from mi_llm.llm import ask
from mi_llm.models import hub
from mi_llm.study import Study

if TYPE_CHECKING:
    from mi_llm.doctor import Machine

State = Literal["here", "to be fetched", "to be recorded", "you will be asked", "absent"]
ORDER = ("acquire", "rate", "transcribe", "screen", "translate", "base", "benchmark", "simulate", "safety", "code")
BASE, TUNED = "Figure 3, base models", "Figure 3, tuned models"
TALKS, SESSIONS = "Tables 4 and 5, the models' dialogs", "Tables 4 and 5, real sessions"
DANGER = "Clients in danger"
RECORDED = {  # what a stage has recorded
    "rate": "ratings",
    "transcribe": "dialogs in MI style",
    "translate": "AnnoMI in {language}",
    "simulate": "talks",
    "safety": "talks of clients in danger",
    "code": "codes",
}
PARTS = ("Table 3", "Figure 2", BASE, TUNED, TALKS, SESSIONS, DANGER, "Table 6")  # what depends on the run


@dataclass(frozen=True)
class Need:
    """One thing that a stage needs: its state, the tables and figures that need it, and what to do if it is absent.

    `fills` are tables and figures of `PARTS` that stay empty without it. `stops`: without it the study cannot be finished.
    """

    stage: str
    what: str
    state: State
    fills: tuple[str, ...] = ()
    remedy: str = ""
    stops: bool = False

    @property
    def missing(self) -> bool:
        """Whether the run cannot begin."""
        return self.stops and self.state == "absent"


def needs(study: Study, machine: "Machine") -> list[Need]:
    """Everything that the study's stages need, in their order."""
    study_needs = [
        *corpora(study, machine),
        *training_file(study, machine),
        *recordings(study),
        *weights(study, machine),
        *questions(study),
        *people(study),
    ]
    return sorted(study_needs, key=lambda need: ORDER.index(need.stage))


def mirror_has(source: Source, machine: "Machine") -> bool:
    """Whether the mirror folder has a source's archive or files."""
    names = [source.archive(source.commit)] if source.commit else list(source.files)
    return machine.mirror is not None and all((Path(machine.mirror) / name).exists() for name in names)


def corpora(study: Study, machine: "Machine") -> Iterator[Need]:
    """The public corpora, and your own."""
    state: State
    for corpus in study.acquire.upstream:
        source, acquired = source_of(corpus), study.path("acquire", corpus, "metrics.json")
        fetchable = machine.network and (source.commit or any(source.files.values()))
        state = "absent"
        if acquired.exists() and storage.read_json(acquired)["files"]:
            state = "here"
        elif mirror_has(source, machine) or fetchable:
            state = "to be fetched"
        names = source.archive(source.commit) if source.commit else ", ".join(source.files)
        remedy = source.obtain or f"connect to the network, or put {names} into the folder that MI_LLM_MIRROR names"
        stops = corpus == "release" and study.split.test != "transcribed"
        yield Need("acquire", f"corpus {corpus}", state, ("Table 3",) if stops else (), remedy, stops)
    for name, own in study.corpora.items():
        if own.paths:
            state = "here" if all(path.exists() for path in own.paths) else "absent"
            places = ", ".join(map(str, own.paths))
            yield Need(
                "acquire", f"your own dialogs {name}, in {places}", state, ("Table 3",), "bring the files there", stops=True
            )
    if study.transcribe.source == "corpus" and study.needs_transcribed and not study.transcribe.sample:
        remedy = f"mi-llm import FOLDER --name NAME --train --study {study.params}"
        yield Need("acquire", "dialogs of yours to train and test on", "absent", (BASE, TUNED), remedy, stops=True)


def training_file(study: Study, machine: "Machine") -> Iterator[Need]:
    """The authors' training file, where models are tuned on it."""
    if study.training != "release" or not study.needs_transcribed:
        return
    dialogs, name = study.path("read", "release", "training.jsonl"), PurePosixPath(release.TRAINING).name
    source = sources()["release"]
    state: State = "absent"
    if dialogs.exists() and dialogs.stat().st_size:
        state = "here"
    elif machine.network or in_mirror(source, machine):
        state = "to be fetched"
    by_hand = f"put {name} from github.com/{source.repository} at {source.commit[:12]} into the folder that MI_LLM_MIRROR names"
    remedy = f"{by_hand}; {other_ways(study)}"
    yield Need("transcribe", f"the authors' training file, {name}", state, (TUNED,), remedy, stops=True)


def in_mirror(source: Source, machine: "Machine") -> bool:
    """Whether the mirror folder has the training file, loose or in the release's archive."""
    if machine.mirror is None:
        return False
    folder = Path(machine.mirror)
    archive = folder / source.archive(source.commit)
    loose = (folder / PurePosixPath(release.TRAINING).name).exists()
    return loose or (archive.exists() and any(file.name.endswith(release.TRAINING) for file in from_archive(archive)))


def recordings(study: Study) -> Iterator[Need]:
    """The recorded answers of the study's language model."""
    if not Path("data").exists():  # the bundle's own recordings are not here yet: nothing can be said
        return
    fills_by_name: dict[str, tuple[str, ...]] = {"rate": ("Figure 2",)} if study.rate.corpora else {}
    if annomi.KEY in study.corpora and study.language != annomi.LANGUAGE:
        fills_by_name["translate"] = (SESSIONS,)
    if study.training == "recorded" and study.needs_transcribed:
        fills_by_name["transcribe"] = (BASE, TUNED) if study.split.test == "transcribed" else (TUNED,)
    if study.simulate.client == "llm":
        fills_by_name |= {f"simulate/{model}": (TALKS,) for model in study.models}
    if study.safety.client == "llm":
        fills_by_name |= {f"safety/{model}": (DANGER,) for model in study.safety.models}
    if study.code.coder == "llm":
        fills_by_name["code"] = ("Table 6",)
    for name, fills in fills_by_name.items():
        state: State = "to be recorded" if study.llm.mode != "replay" else "here" if recorded(study, name) else "absent"
        stage, _, model = name.partition("/")
        kind = RECORDED[stage].format(language=language.load(study.language).name.en)
        what = f"{kind}{f' with {model}' if model else ''}, recorded from {study.llm.model}"
        yield Need(stage, what, state, fills, ask.how_to_record(study, name), stops=stage == "transcribe")


def recorded(study: Study, name: str) -> bool:
    """Whether any good answer of the study's model is recorded for a stage."""
    answers = (record for cassette in ask.recorded(study, name) for record in cassette.good.values())
    return any(record["request"]["model"] == study.llm.model for record in answers)


def weights(study: Study, machine: "Machine") -> Iterator[Need]:
    """The models: those in folders, those of the hub, and whether a person has accepted the licenses of these."""
    for model in [model for model, named in study.models.items() if named.path]:
        folder = study.source(model)
        here: State = "here" if folder.exists() else "absent"
        yield Need("base", f"model {model}, in {folder}", here, (BASE, TUNED, TALKS), "bring its checkpoint there", stops=True)
    entries = {model: hub.entry_of(study, model) for model in study.from_hub}
    to_fetch = {model: entry for model, entry in entries.items() if not hub.in_place(study, model, entry)}
    if fetched := [model for model in entries if model not in to_fetch]:
        yield Need("base", f"weights of {', '.join(fetched)}", "here")
    local = [model for model, entry in to_fetch.items() if hub.local_folder(model, entry) is not None]
    for model, entry in to_fetch.items():
        state: State = "to be fetched" if machine.hub or model in local else "absent"
        remedy = f"make {hub.endpoint()} reachable, or name a folder that has them in MI_LLM_MODELS"
        yield Need("base", f"weights of {model} ({entry.download_gb:g} GB)", state, (BASE, TUNED, TALKS), remedy, stops=True)
    accepted = hub.accepted_by_environment()
    unaccepted = {
        model: entry for model, entry in to_fetch.items() if not (model in accepted or hub.remembered(study, model, entry))
    }
    if unaccepted:
        addresses = ", ".join(entry.license.address for entry in unaccepted.values())
        remedy = f"read {addresses}; to accept, run at a terminal, or set MI_LLM_ACCEPT_LICENSES={','.join(study.from_hub)}"
        state = "you will be asked" if sys.stdin.isatty() else "absent"
        yield Need(
            "base", f"your acceptance of the licenses of {', '.join(unaccepted)}", state, (BASE, TUNED, TALKS), remedy, stops=True
        )


def questions(study: Study) -> Iterator[Need]:
    """What asks multiple-choice questions, and their files."""
    if study.benchmark.models:
        lacking = list(missing(study))
        for problem in lacking:
            yield Need("benchmark", problem.expected, "absent", remedy=problem.remedy, stops=True)
        if not lacking:
            yield Need("benchmark", f"questions of {', '.join(study.benchmark.tasks)}", "here")


def people(study: Study) -> Iterator[Need]:
    """What people do for the study: decisions, dialogs with the models, codes."""
    if study.screen.policy == "person" and study.training in ("recorded", "corpus"):
        decided = rows(Path(study.screen.decisions) / "decisions.csv")
        remedy = "the run stops at stage screen and waits for these decisions"
        yield Need("screen", "a person's decisions on the transcribed dialogs", "here" if decided else "absent", remedy=remedy)
    if study.simulate.client == "person":
        talks = any(Path(study.simulate.folder).glob("*/*.jsonl"))
        yield Need(
            "simulate", "people's dialogs with the models", "here" if talks else "absent", (TALKS,), "docs/human-evaluation.md"
        )
    if study.code.coder == "human":
        coded = rows(Path(study.code.human) / "codes.csv")
        yield Need("code", "codes by people", "here" if coded else "absent", ("Table 6",), "docs/human-evaluation.md")


def rows(path: Path) -> int:
    """The rows of a table below its head; 0 without the file."""
    return max(0, len(storage.read_text(path).splitlines()) - 1) if path.exists() else 0


def outlook(study_needs: Sequence[Need]) -> list[str]:
    """The optional things that are absent, one per line: what stays empty without it, and what to do."""
    lines = []
    for need in study_needs:
        if need.state == "absent" and not need.stops:
            without = f" (then empty: {'; '.join(need.fills)})" if need.fills else ""
            lines.append(f"{need.what}: absent{without}; {need.remedy}")
    return lines


def parts(study: Study) -> list[str]:
    """The tables and figures of `PARTS` that this study can have."""
    without = set() if study.rate.corpora else {"Figure 2"}
    without |= set() if study.tuned else {TUNED}
    without |= set() if annomi.KEY in study.corpora else {SESSIONS}
    return [part for part in PARTS if part not in without]


def listed(study: Study, study_needs: Sequence[Need]) -> str:
    """The needs, one per line; then the tables and figures that the run will fill, those that stay empty, and what to do.

    Talks with models count as absent if every model lacks them; without them and real sessions there is nothing to code.
    """
    lacking = [need for need in study_needs if need.state == "absent"]
    supplied = {need.stage for need in study_needs if need.state != "absent"} & {"simulate", "safety"}
    empty = {part for need in lacking for part in need.fills if need.stage not in supplied}
    empty |= set() if {TALKS, SESSIONS} & set(parts(study)) - empty else {"Table 6"}
    lines = [f"    {need.stage:<12}{need.what}: {need.state}" for need in study_needs]
    always = "Tables 1 and 2" if study.reproduction else "Table 2"  # Table 1 is the paper's alone
    lines.append("  fills   " + "; ".join([always, *(part for part in parts(study) if part not in empty)]))
    if unfilled := [part for part in parts(study) if part in empty]:
        lines.append(f"  empty   {'; '.join(unfilled)}")
        lines += [f"    {line}" for line in outlook(study_needs)]
    return "\n".join(lines)
