"""Stage `split`: which dialogs train, which test; and the test cut into rounds (paper, Automatic Evaluation).

Reads `screen/dialogs.jsonl` and, when the authors' rounds are the test, `read/release/rounds.jsonl` (positional, as published) or
`aligned.jsonl` (the dialogs' own rounds). Writes `split/train.jsonl`, `split/test.jsonl`, `split/test_rounds.jsonl` and
`metrics.json`; beside the published rounds also the repaired ones, `split/aligned_rounds.jsonl`.

A training dialog whose client says what a test dialog's client says is left out: `split/left_out.csv` names it, the test dialog
and the share that they have in common, and `metrics.json` counts. A corpus may hold a dialog twice; and the authors' test dialogs
were made from public ones, mostly CPsyCounD's, whose client volleys they keep nearly word for word, and from which a study's own
recording draws. The authors' own training and test dialogs stay as they divided them.

With `split.test: divided` the authors' test dialogs themselves are divided: some train, others test; dialogs of one source stay
together. That is an experiment of the bundle's own, for those who do not have the authors' training file.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mi_llm import storage
from mi_llm.dialog import Dialog, Round, features, read_dialogs, read_rounds, write_dialogs, write_rounds
from mi_llm.language.language import CHINESE
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

# Of a test dialog's client trigrams. With the authors' test: 28 of CPsyCounD's 3,082 dialogs 0.97 to 1, 3 over 0.5, others 0.4.
SHARED = 0.5
# Of a training dialog's: it is a part of the test dialog. With the authors' test: 29 of CPsyCounD's 0.97 to 1, others to 0.74.
CONTAINED = 0.9


def trigrams(dialogs: Iterable[Dialog]) -> set[str]:
    """Every three neighboring characters in the client's volleys; in volleys without Chinese, every three neighboring words."""
    texts = [turn.text for dialog in dialogs for turn in dialog.turns if turn.role == "client"]
    units = [(text, "") if CHINESE.search(text) else (text.casefold().split(), " ") for text in texts]
    return {space.join(unit[start : start + 3]) for unit, space in units for start in range(len(unit) - 2)}


def leaks(train: Sequence[Dialog], sources: Iterable[Dialog], test: Sequence[Dialog]) -> dict[str, tuple[str, float]]:
    """Training dialogs that, with their source, say what a test dialog says, or a part of it: id -> (nearest one, share)."""
    known_sources = {(source.source, source.id): source for source in sources}
    trigrams_by_test = {dialog.id: dialog_trigrams for dialog in test if (dialog_trigrams := trigrams([dialog]))}
    nearest_by_dialog = {}
    for dialog in train:
        source = known_sources.get((dialog.source, dialog.meta["transcribed_from"]))
        dialog_trigrams = trigrams([dialog, source] if source else [dialog])
        shares = {
            name: (common / len(test_trigrams), common / max(1, len(dialog_trigrams)))
            for name, test_trigrams in trigrams_by_test.items()
            if (common := len(test_trigrams & dialog_trigrams))
        }
        if near := [name for name, (share, part) in shares.items() if share > SHARED or part > CONTAINED]:
            nearest = max(near, key=lambda name: shares[name])
            nearest_by_dialog[dialog.id] = nearest, round(max(shares[nearest]), 4)
    return nearest_by_dialog


def repaired(published: Sequence[Round], aligned: Sequence[Round]) -> list[Round]:
    """The repaired rounds; one with the same input as a published round gets its id, so that it is answered once."""
    known = {(sample.history, sample.client): sample.id for sample in published}
    return [
        sample.model_copy(update={"id": known.get((sample.history, sample.client), f"{sample.id} aligned")}) for sample in aligned
    ]


def by_source(dialogs: Sequence[Dialog]) -> list[list[int]]:
    """The dialogs' indices, grouped by source: the same if clients share more than `SHARED` of the smaller trigram set."""
    trigram_sets = [trigrams([dialog]) for dialog in dialogs]
    groups: list[list[int]] = []
    for index, own in enumerate(trigram_sets):
        near = [
            group
            for group in groups
            if any(len(own & trigram_sets[other]) > SHARED * min(len(own), len(trigram_sets[other])) for other in group)
        ]
        groups = [group for group in groups if group not in near] + [
            sorted([index, *(other for group in near for other in group)])
        ]
    return sorted(groups)


def divide(
    study: Study, dialogs: Sequence[Dialog], groups: Sequence[Sequence[int]], path: Path
) -> tuple[list[Dialog], list[Dialog]]:
    """Training and test dialogs, in their order: at most `split.test_dialogs` for the test, drawn by whole groups."""
    count = study.split.test_dialogs
    if count >= len(groups):
        sources = "" if len(groups) == len(dialogs) else f" of {len(groups)} sources"
        expected = f"more than the {count} test dialogs"
        raise Problem(str(path), f"{len(dialogs)} dialogs{sources}", expected, f"lower split.test_dialogs in {study.params}")
    held: list[int] = []
    for number in study.chance("split").sample(range(len(groups)), len(groups)):
        if len(held) + len(groups[number]) <= count:
            held += groups[number]
    test = set(held)
    if not test:
        least = min(map(len, groups))
        raise Problem(str(path), f"sources of {least} dialogs or more", f"one of {count}", f"set split.test_dialogs: {least}")
    return (
        [dialog for index, dialog in enumerate(dialogs) if index not in test],
        [dialog for index, dialog in enumerate(dialogs) if index in test],
    )


def without_leaks(train: Sequence[Dialog], sources: Iterable[Dialog], test: Sequence[Dialog], out: Path) -> list[Dialog]:
    """The training dialogs of which no test dialog's client says the same; the others are named in `left_out.csv`."""
    leaked = leaks(train, sources, test)
    (out / "left_out.csv").unlink(missing_ok=True)
    if leaked:
        rows = [(name, *near) for name, near in leaked.items()]
        storage.write_text(out / "left_out.csv", storage.csv_text(["dialog", "test_dialog", "shared"], rows))
        print(f"split: {len(leaked)} training dialogs say what a test dialog says, and are left out: {out}/left_out.csv")
    return [dialog for dialog in train if dialog.id not in leaked]


def no_training(study: Study, screened: Path) -> Problem:
    """The error for a study that tunes models without any training dialog."""
    missing = {
        "release": f"see {study.folder}/acquire/release/missing.csv for the authors' training file",
        "corpus": f"import more dialogs, or see {study.folder}/split/left_out.csv",
        "recorded": f"see {study.folder}/screen/dialogs.html and {study.folder}/split/left_out.csv",
    }
    expected = f"training dialogs for {', '.join(study.tuned)}"
    return Problem(str(screened), "no dialog to train on", expected, f"{missing[study.transcribe.source]}; {other_ways(study)}")


def other_ways(study: Study) -> str:
    """The parameters that help where there is nothing to train on."""
    divided = (
        "split.test: divided, with split.test_dialogs: 10 and finetune.records: dialog"
        " (trains on some of the authors' test dialogs)"
    )
    ways = [divided] if "release" in study.corpora else []
    ways.append("transcribe.source: recorded (trains on your own recording), or corpus (on MI dialogs of your own)")
    ways.append(f"finetune.untuned: [{', '.join(study.models)}] (tunes nothing)")
    return f"or set in {study.params} one of: {'; '.join(ways)}"


def split(study: Study) -> None:
    """Divide the dialogs, and cut the test into rounds; see the module."""
    screened = study.path("screen", "dialogs.jsonl")
    release = study.path("read", "release")
    published = {"release": release / "rounds.jsonl", "aligned": release / "aligned.jsonl"}.get(study.split.test)
    inputs = [screened] if study.split.test == "transcribed" else [screened, release]
    if published and study.transcribe.source != "release":
        inputs += [study.path("read", corpus, "dialogs.jsonl") for corpus in study.transcribe.sample]
    with stage(study, "split", None, inputs) as out:
        counted: dict[str, int] = {}
        train = read_dialogs(screened)
        if published:
            test, rounds = read_dialogs(release / "dialogs.jsonl"), read_rounds(published)
            if not rounds:
                raise Problem(
                    str(published), "no round in it", "the authors' release", f"see {study.folder}/acquire/release/missing.csv"
                )
            if study.transcribe.source != "release":
                corpora = [study.path("read", corpus, "dialogs.jsonl") for corpus in study.transcribe.sample]
                sources = [dialog for path in corpora for dialog in read_dialogs(path)]
                kept = without_leaks(train, sources, test, out)
                counted, train = {"left_out": len(train) - len(kept)}, kept
        elif study.split.test == "divided":
            known = read_dialogs(release / "dialogs.jsonl")
            train, test = divide(study, known, by_source(known), release / "dialogs.jsonl")
            rounds = [sample for dialog in test for sample in dialog.rounds()]
        else:
            train, test = divide(study, train, [[index] for index in range(len(train))], screened)
            kept = without_leaks(train, [], test, out)
            counted, train = ({"left_out": len(train) - len(kept)} if len(kept) < len(train) else {}), kept
            rounds = [sample for dialog in test for sample in dialog.rounds()]
        if study.needs_transcribed and not train:
            raise no_training(study, screened)
        write_dialogs(out / "train.jsonl", train)
        write_dialogs(out / "test.jsonl", test)
        write_rounds(out / "test_rounds.jsonl", rounds)
        if study.split.test == "release":
            write_rounds(out / "aligned_rounds.jsonl", repaired(rounds, read_rounds(release / "aligned.jsonl")))
        features_of = {"train": features(train) | counted, "test": features(test) | {"round_samples": len(rounds)}}
        storage.write_json(out / "metrics.json", features_of)
