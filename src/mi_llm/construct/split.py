"""Stage `split`: which dialogs train, which test; and the test cut into rounds (paper, Automatic Evaluation).

Reads `screen/dialogs.jsonl` and, when the authors' rounds are the test, `read/release/rounds.jsonl` (positional, as published) or
`aligned.jsonl` (the dialogs' own rounds). Writes `split/train.jsonl`, `split/test.jsonl`, `split/test_rounds.jsonl` and
`metrics.json`; beside the published rounds also the repaired ones, `split/aligned_rounds.jsonl`.

The authors' test dialogs were made from public ones, mostly CPsyCounD's, whose client volleys they keep nearly word for word. A
recording of one's own draws from the same corpora. So where the authors' rounds are the test and the training dialogs are a
recording, a training dialog whose client says what a test dialog's client says is left out: `split/left_out.csv` names it, the
test dialog and the share that they have in common, and `metrics.json` counts.
"""

import csv
import io
import random
from collections.abc import Iterable, Sequence

from mi_llm import storage
from mi_llm.dialog import Dialog, Round, features, read_dialogs, read_rounds, write_dialogs, write_rounds
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

# Of a test dialog's client trigrams. With the authors' test: 28 of CPsyCounD's 3,084 dialogs 0.97 to 1, 3 over 0.5, others 0.4.
SHARED = 0.5


def trigrams(dialogs: Iterable[Dialog]) -> set[str]:
    """Every three neighbouring characters in the client's volleys."""
    said = (turn.text for dialog in dialogs for turn in dialog.turns if turn.role == "client")
    return {text[place : place + 3] for text in said for place in range(len(text) - 2)}


def leaks(train: Sequence[Dialog], sources: Iterable[Dialog], test: Sequence[Dialog]) -> dict[str, tuple[str, float]]:
    """Training dialogs that share more than `SHARED` with a test dialog, themselves or by their source: its id, the share."""
    source_of = {(source.source, source.id): source for source in sources}
    tested = {dialog.id: told for dialog in test if (told := trigrams([dialog]))}
    found = {}
    for dialog in train:
        told = trigrams([dialog, source_of[dialog.source, dialog.meta["transcribed_from"]]])
        shares = {name: len(wanted & told) / len(wanted) for name, wanted in tested.items()}
        if near := [name for name, share in shares.items() if share > SHARED]:
            nearest = max(near, key=lambda name: shares[name])
            found[dialog.id] = nearest, round(shares[nearest], 4)
    return found


def repaired(published: Sequence[Round], aligned: Sequence[Round]) -> list[Round]:
    """The repaired rounds; one that asks what a published round asks bears its id, so that it is answered once."""
    known = {(sample.history, sample.client): sample.id for sample in published}
    return [
        sample.model_copy(update={"id": known.get((sample.history, sample.client), f"{sample.id} aligned")}) for sample in aligned
    ]


def split(study: Study) -> None:
    """Split at random, seeded, and keep the dialogs' order within each part; see the module."""
    screened = study.folder / "screen" / "dialogs.jsonl"
    release = study.folder / "read" / "release"
    known = {"release": release / "rounds.jsonl", "aligned": release / "aligned.jsonl"}.get(study.split.test)
    inputs = [screened, known] if known else [screened]
    recorded = known is not None and study.transcribe.source == "recorded"
    corpora = [study.folder / "read" / corpus / "dialogs.jsonl" for corpus in study.transcribe.sample] if recorded else []
    inputs += corpora
    with stage(study, "split", None, inputs) as out:
        counted: dict[str, int] = {}
        dialogs = read_dialogs(screened)
        if known:
            train, test = dialogs, read_dialogs(release / "dialogs.jsonl")
            rounds = read_rounds(known)
            if not rounds:
                raise Problem(
                    str(known), "no round in it", "the authors' release", f"see {study.folder}/acquire/release/missing.csv"
                )
            if recorded:
                sources = [dialog for path in corpora for dialog in read_dialogs(path)]
                found = leaks(train, sources, test)
                train = [dialog for dialog in train if dialog.id not in found]
                table = io.StringIO(newline="")
                rows = [("dialog", "test_dialog", "shared"), *((name, *near) for name, near in found.items())]
                csv.writer(table, lineterminator="\n").writerows(rows)
                storage.write_text(out / "left_out.csv", table.getvalue())
                counted = {"left_out": len(found)}
        else:
            wanted = study.split.test_dialogs
            if wanted >= len(dialogs):
                raise Problem(
                    str(screened), f"{len(dialogs)} dialogs left after screening", f"more than the {wanted} of the test",
                    f"lower split.test_dialogs in {study.params}",
                )  # fmt: skip
            held = set(random.Random(study.seed_of("split")).sample(range(len(dialogs)), wanted))
            train = [dialog for place, dialog in enumerate(dialogs) if place not in held]
            test = [dialog for place, dialog in enumerate(dialogs) if place in held]
            rounds = [sample for dialog in test for sample in dialog.rounds()]
        write_dialogs(out / "train.jsonl", train)
        write_dialogs(out / "test.jsonl", test)
        write_rounds(out / "test_rounds.jsonl", rounds)
        if study.split.test == "release":
            write_rounds(out / "aligned_rounds.jsonl", repaired(rounds, read_rounds(release / "aligned.jsonl")))
        features_of = {"train": features(train) | counted, "test": features(test) | {"round_samples": len(rounds)}}
        storage.write_json(out / "metrics.json", features_of)
