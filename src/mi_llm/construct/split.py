"""Stage `split`: which dialogs train, which test; and the test cut into rounds (paper, Automatic Evaluation).

Reads `screen/dialogs.jsonl` and, when the authors' rounds are the test, `read/release/rounds.jsonl` (positional, as published) or
`aligned.jsonl` (the dialogs' own rounds). Writes `split/train.jsonl`, `split/test.jsonl`, `split/test_rounds.jsonl` and
`metrics.json`; beside the published rounds also the repaired ones, `split/aligned_rounds.jsonl`.
"""

import random
from collections.abc import Sequence

from mi_llm import storage
from mi_llm.dialog import Round, features, read_dialogs, read_rounds, write_dialogs, write_rounds
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study


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
    with stage(study, "split", None, inputs) as out:
        dialogs = read_dialogs(screened)
        if known:
            train, test = dialogs, read_dialogs(release / "dialogs.jsonl")
            rounds = read_rounds(known)
            if not rounds:
                raise Problem(
                    str(known), "no round in it", "the authors' release", f"see {study.folder}/acquire/release/missing.csv"
                )
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
        features_of = {"train": features(train), "test": features(test) | {"round_samples": len(rounds)}}
        storage.write_json(out / "metrics.json", features_of)
