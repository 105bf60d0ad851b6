"""`mi-llm import`: look at your own dialogs, say what was understood, and name them in a study's parameters.

Nothing is copied: the entry says where the files lie, who speaks under which label, and what is left out of what is said. The
first dialog is printed in full, so that a person sees what the study will see.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mi_llm import storage
from mi_llm.corpora.own.private import guard
from mi_llm.corpora.own.speakers import contradiction, known_role
from mi_llm.corpora.own.understand import Understood, files_of, understand, unexplained
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import features
from mi_llm.problem import Problem
from mi_llm.registry import CORPORA, names
from mi_llm.study import Corpus, Study, parse

OPTIONAL = {"timestamps": "timestamp left out", "stage-directions": "stage direction left out"}  # what `drop` names, as counted
TESTED = 5  # with --train, one dialog in so many is the test


def entry_of(paths: Sequence[Path], settings: dict[str, Any]) -> Corpus:
    """The settings of a corpus at some paths: relative ones inside the repository, else absolute."""
    places = []
    for path in paths:
        inside = path.resolve().is_relative_to(Path.cwd())
        places.append(str(path.resolve().relative_to(Path.cwd()) if inside else path.resolve()))
    return Corpus.model_validate({"path": places[0] if len(places) == 1 else tuple(places), **settings})


def settings_of(
    speakers: Sequence[str], columns: Sequence[str], keep: Sequence[str] = (), *, private: bool = True
) -> dict[str, Any]:
    """The settings that a command's options give; raises Problem for one that is not understood."""
    settings: dict[str, Any] = {}
    if speakers:
        settings["speakers"] = pairs(speakers, "--speaker", ("client", "counselor", "drop", "speech"), key=False)
    if columns:
        settings["columns"] = pairs(columns, "--column", ("dialog", "turn", "speaker", "text"), key=True)
    if unknown := [kind for kind in keep if kind not in OPTIONAL]:
        raise Problem(f"--keep {unknown[0]}", "not understood", " or ".join(OPTIONAL), "correct it")
    if keep:
        settings["drop"] = tuple(kind for kind in OPTIONAL if kind not in keep)
    return settings if private else settings | {"private": False}


def pairs(words: Sequence[str], option: str, allowed: Sequence[str], *, key: bool) -> dict[str, str]:
    """The options LABEL=PART or KIND=HEADING as a mapping; raises Problem for another form. `key`: the left side is checked."""
    mapping = {}
    for word in words:
        left, equal, right = word.rpartition("=") if not key else word.partition("=")
        if not (left and equal and right) or (left if key else right) not in allowed:
            form = f"{'|'.join(allowed)}=HEADING" if key else f"LABEL={'|'.join(allowed)}"
            raise Problem(f"{option} {word}", "not understood", f"{option} {form}", "correct it")
        mapping[left] = right
    return mapping


def import_dialogs(study: Study, paths: Sequence[Path], name: str, settings: dict[str, Any], *, check: bool, train: bool) -> None:
    """Print what was understood of the files; unless `check`, write the entry, with `train` also as the dialogs to train on.

    `settings`: what the person says of the corpus, as an entry has it. Raises Problem for what cannot be read, for a speaker whom
    nobody knows, and for a private corpus in a study that shares its outputs.
    """
    corpus = entry_of(paths, {"drop": tuple(OPTIONAL), **settings})
    if name in names(CORPORA):
        raise Problem(f"--name {name}", "a corpus of the bundle has this name", "a name of your own", "choose another")
    files = list(files_of(corpus))
    understood = understand(files, name, corpus, Repairs(), lenient=True)
    print("\n".join(described(understood, len(files), corpus)))
    if understood.unknown:
        raise unexplained(understood)
    usable = sum(not dialog.one_sided for dialog in understood.dialogs)
    if not usable:
        raise Problem(name, "no dialog in which both client and counselor speak", "dialogs", "check the speakers above")
    if "drop" not in settings:
        dropped = [kind for kind, repair in OPTIONAL.items() if repair in understood.repairs.counts]
        corpus = corpus.model_copy(update={"drop": tuple(dropped)})
    speakers: dict[str, str] = {
        speaker.label: speaker.part for speaker in understood.speakers if speaker.part in ("client", "counselor", "drop")
    }
    speech = {label: part for label, part in corpus.speakers.items() if part == "speech"}
    entry = {
        **corpus.model_dump(mode="json", include=corpus.model_fields_set - {"drop", "speakers"}),
        "speakers": without_numbers(speakers) | speech,
        **({"drop": list(corpus.drop)} if corpus.drop else {}),
    }
    if check:
        print(f"\nnothing is written (--check); the entry would be\n{shown(name, entry)}", end="")
        return
    guard(study, name, Corpus.model_validate(entry))
    write(study, name, entry, usable if train else 0)
    print(f"\nwritten to {study.params}\n{shown(name, entry)}", end="")
    if uncommon := [label for label in entry["speakers"] if known_role(label) is None and len(label) > 1]:
        listed = ", ".join(uncommon)
        print(f"These labels now stand in {study.params}, which git keeps: {listed}. Names of people do not belong there.")


def without_numbers(speakers: dict[str, str]) -> dict[str, str]:
    """The mapping with `T` in place of `T1`, `T2`, … where all of them mean the same."""
    bases: dict[str, dict[str, str]] = {}
    for label, part in speakers.items():
        bases.setdefault(label.rstrip("0123456789").rstrip() or label, {})[label] = part
    short: dict[str, str] = {}
    for base, labels in bases.items():
        same = len(labels) > 2 and len(set(labels.values())) == 1
        short |= {base: next(iter(labels.values()))} if same else labels
    return short


def described(understood: Understood, files: int, corpus: Corpus) -> Iterator[str]:
    """The lines that say what was understood."""
    places = ", ".join(map(str, corpus.paths))
    yield f"{files} file{'s' if files != 1 else ''} in {places}"
    shapes = "; ".join(f"{shape}: {count} dialogs or samples" for shape, count in understood.shapes.items())
    yield f"  format     {shapes or 'none'}"
    if understood.encodings:
        yield f"  encoding   {'; '.join(f'{encoding}: {count}' for encoding, count in understood.encodings.items())}"
    yield "  speakers"
    for speaker in understood.speakers:
        why = f"{speaker.reason}; " if speaker.reason else ""
        yield f"    {speaker.label:<12} {speaker.part:<10} {why}{speaker.evidence}"
    if remark := contradiction(understood.speakers):
        yield f"    but {remark}"
    rounds = sum(sum(1 for _ in dialog.rounds()) for dialog in understood.dialogs)
    one_sided = sum(dialog.one_sided for dialog in understood.dialogs)
    yield f"  dialogs    {len(understood.dialogs)}, with {rounds} rounds; {one_sided} with one side alone, which are not used"
    numbers = features(understood.dialogs)
    row = [f"{numbers[f'{what}_mean']:.2f} ({numbers[f'{what}_sd']:.2f})" for what in ("rounds", "counselor", "client")]
    yield f"  Table 3    rounds {row[0]}, characters per volley: counselor {row[1]}, client {row[2]}; mean (SD)"
    rows = understood.repairs.rows()
    dropped = [row for row in rows if row["repair"] in OPTIONAL.values()]
    yield "  repairs" if len(rows) > len(dropped) else "  repairs    none"
    yield from (f"    {row['repair']}: {row['count']} (first: {row['example']})" for row in rows if row not in dropped)
    if dropped:
        yield "  left out of what is said (`drop`)"
        yield from (f"    {row['repair']}: {row['count']} (first: {row['example']})" for row in dropped)
    if understood.dialogs:
        first = understood.dialogs[0]
        yield f"  the first dialog, {first.id} ({first.meta.get('file', '')})"
        yield from (f"    {turn.role + ':':<10} {line}" for turn in first.turns for line in turn.text.split("\n"))


def shown(name: str, entry: dict[str, Any]) -> str:
    """The entry as it stands in the parameters."""
    return "".join(f"  {line}\n" for line in storage.dump_yaml({"corpora": {name: entry}}).splitlines())


def write(study: Study, name: str, entry: dict[str, Any], trained: int) -> None:
    """Put the entry into the parameters file, whose comments stay; with `trained` dialogs, also train and test on them.

    Raises Problem, and leaves the file alone, if the study would then contradict itself.
    """
    file = Path(study.params)
    content = storage.editable_yaml(storage.read_text(file))
    content["corpora"][name] = entry
    if trained:
        sample = content["transcribe"]["sample"] if study.transcribe.source == "corpus" else {}
        sample[name] = trained
        total = sum(sample.values())
        if total < 2:
            raise Problem(str(file), "1 dialog", "2 or more: one to train on, and one to test on", "import more dialogs")
        content["transcribe"]["source"] = "corpus"
        content["transcribe"]["sample"] = sample
        content["split"]["test"] = "transcribed"
        content["split"]["test_dialogs"] = max(1, round(total / TESTED))
    text = storage.dump_yaml(content)
    parse(text, file)
    storage.write_text(file, text)
