"""Stage `miti`: how far automatic coders may be trusted, and what the lexical one sees in the dialogs that the authors released.

Reads `acquire/annomi/files.tar`, `read/annomi/` and, where the study has the release, `read/release/`. Writes `miti/`:
`coder_validation.csv` (kappa with AnnoMI's experts, and the experts' own), `quality.csv` (whether a coder's scores tell sessions
of high from those of low quality), `released.csv` (lexical codes of the released dialogs and of AnnoMI) and `features.csv` (their
Table 4); where a language model codes the study, its recorded answers about AnnoMI too, in `cassette.jsonl`.

AnnoMI's annotators (Wu et al. 2022, doi:10.1109/ICASSP43922.2022.9746035) coded every counselor utterance of 133 English
transcripts, ten of them the same seven. Their codes are coarser than MITI's. *Therapist input* (information, advice, options,
goals) is here giving information, persuading with or without permission, and confronting; *advice* is persuading; *question* is
asking questions and seeking collaboration, which is asked. Affirming and emphasizing autonomy are *other* there, so how well they
are told is not known, nor are the globals.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mi_llm import storage
from mi_llm.codebook.coding import (
    ADHERENT,
    ADHERENT_RATIO,
    COMPLEX_SHARE,
    NONADHERENT,
    REFLECTIONS,
    REFLECTIONS_TO_QUESTIONS,
    RELATIONAL,
    TECHNICAL,
    Behaviour,
    Summary,
)
from mi_llm.corpora import annomi
from mi_llm.corpora.files import from_archive
from mi_llm.corpora.reading import ROLES
from mi_llm.dialog import Dialog, Turn, read_dialogs, volley_lengths
from mi_llm.llm import ask
from mi_llm.llm.cassette import Question
from mi_llm.miti import code as coders
from mi_llm.miti.code import Behaviours, Coding
from mi_llm.miti.reliability import Bootstrap, Estimate, Numbers, kappas
from mi_llm.stage import stage
from mi_llm.study import Study

Labels = dict[str, str]  # by code of `CODES`: what a coder or expert says of a volley
Rated = dict[int, Labels]  # by the number of the counselor's turn

EXPERTS = "experts"
PERSUASION = frozenset({Behaviour.PERSUADE_WITH, Behaviour.PERSUADE})
INPUT = PERSUASION | {Behaviour.INFORMATION, Behaviour.CONFRONT}
QUESTION = frozenset({Behaviour.QUESTION, Behaviour.SEEK})
REFLECTION = frozenset({Behaviour.SIMPLE, Behaviour.COMPLEX})
COMPLEX = "complex reflection"
CODES = ("main behavior", "question", "reflection", COMPLEX, "input", "information", "advice")
TOLD_BY_EXPERTS = REFLECTION | {Behaviour.QUESTION}
RATIOS = (COMPLEX_SHARE, REFLECTIONS_TO_QUESTIONS, ADHERENT_RATIO)
TOTALS = (REFLECTIONS, ADHERENT, NONADHERENT)
VALIDATION = ["coder", "code", "kappa", "lo", "hi", "n"]
QUALITY = ["coder", "measure", "unit", "auc", "lo", "hi", "high", "low"]
RELEASED = ["source", "arm", "rater", "code", "n", "mean", "sd", "ratio_of_means", "per_round"]
FEATURES = ["source", "arm", "n"] + [f"{what}_{how}" for what in ("rounds", "counselor", "client") for how in ("mean", "sd")]


@dataclass(frozen=True)
class Session:
    """An AnnoMI transcript: its quality, a turn an utterance, and what each expert says of the counselor's."""

    name: str
    quality: str
    turns: list[Turn] = field(default_factory=list)
    experts: dict[str, Rated] = field(default_factory=dict)


def sessions_of(rows: Iterable[tuple[str, dict[str, str]]]) -> list[Session]:
    """Gather `(where, row)` of `AnnoMI-full.csv`, as the reader yields them, into sessions."""
    told: dict[str, dict[int, list[dict[str, str]]]] = {}
    for _, row in rows:
        told.setdefault(row["transcript_id"], {}).setdefault(int(row["utterance_id"]), []).append(row)
    found = []
    for name, utterances in told.items():
        first = next(iter(utterances.values()))[0]
        session = Session(name, first["mi_quality"])
        for number, (_, experts) in enumerate(sorted(utterances.items()), 1):
            role = ROLES[experts[0]["interlocutor"]]
            session.turns.append(Turn(role=role, text=experts[0]["utterance_text"]))
            for row in experts if role == "counselor" else ():
                session.experts.setdefault(row["annotator_id"], {})[number] = labels_of_row(row)
        found.append(session)
    return found


def labels_of_row(row: Mapping[str, str]) -> Labels:
    """What an expert says of an utterance; `complex reflection` only of a reflection."""
    found = {
        "main behavior": row["main_therapist_behaviour"],
        "question": row["question_exists"],
        "reflection": row["reflection_exists"],
        "input": row["therapist_input_exists"],
        "information": str(row["therapist_input_subtype"] == "information"),
        "advice": str(row["therapist_input_subtype"] == "advice"),
    }
    return found | ({COMPLEX: row["reflection_subtype"]} if row["reflection_subtype"] != "n/a" else {})


def labels(seen: frozenset[Behaviour]) -> Labels:
    """What AnnoMI would say of a volley; its main behavior is input before question before reflection."""
    main = (("therapist_input", INPUT), ("question", QUESTION), ("reflection", REFLECTION))
    found = {
        "main behavior": next((name for name, behaviours in main if seen & behaviours), "other"),
        "question": str(bool(seen & QUESTION)),
        "reflection": str(bool(seen & REFLECTION)),
        "input": str(bool(seen & INPUT)),
        "information": str(Behaviour.INFORMATION in seen),
        "advice": str(bool(seen & PERSUASION)),
    }
    kind = "complex" if Behaviour.COMPLEX in seen else "simple"
    return found | ({COMPLEX: kind} if seen & REFLECTION else {})


def labelled(behaviours: Behaviours) -> Rated:
    """What AnnoMI would say of each volley."""
    return {number: labels(seen) for number, seen in behaviours.items()}


def consensus(session: Session) -> Rated:
    """Of each volley the label that most experts give; of labels given equally often that of the expert told first.

    Whether a reflection is complex say those who found one, where most did.
    """
    found: Rated = {}
    for number, turn in enumerate(session.turns, 1):
        if turn.role == "counselor":
            experts = [rated[number] for rated in session.experts.values() if number in rated]
            given = {code: Counter(one[code] for one in experts if code in one) for code in CODES}
            found[number] = {code: told.most_common(1)[0][0] for code, told in given.items() if told}
            if found[number]["reflection"] != "True":
                found[number].pop(COMPLEX, None)
    return found


def behaviours_of(rated: Rated) -> Behaviours:
    """Experts' labels as behaviors, as far as they tell them: questions and both kinds of reflection."""
    found: Behaviours = {}
    for number, given in rated.items():
        kind = {"simple": Behaviour.SIMPLE, "complex": Behaviour.COMPLEX}.get(given.get(COMPLEX, ""))
        asked = Behaviour.QUESTION if given["question"] == "True" else None
        found[number] = frozenset(behaviour for behaviour in (kind, asked) if behaviour)
    return found


def halves(sessions: Sequence[Session], seed: int = 1) -> tuple[list[Session], list[Session]]:
    """Two halves of the sessions, drawn by name: lexical cues were written with the first in view, figures are the other's."""
    names = sorted((session.name for session in sessions), key=int)
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = {names[place] for place in drawn[: len(names) // 2]}
    return [one for one in sessions if one.name in first], [one for one in sessions if one.name not in first]


def agreement(coder: str, comparisons: Sequence[Sequence[tuple[Rated, Rated]]], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Cohen's kappa of each code, and its interval over the sessions: rows with the columns `VALIDATION`.

    A comparison is a pair of raters: for each session, what the one and what the other says. Of several pairs the mean of their
    kappas counts. `n` volleys have a label of both raters of a pair; a code of which there are none has no row. Complex
    reflections are compared where both found a reflection.
    """
    rows = []
    for code in CODES:
        rated = [volleys for pairs in comparisons for pair in pairs for volleys in pair]
        known = sorted({given[code] for volleys in rated for given in volleys.values() if code in given})
        tables = np.zeros((len(comparisons[0]), len(comparisons), len(known), len(known)))
        compared = set()
        for which, pairs in enumerate(comparisons):
            for place, (first, second) in enumerate(pairs):
                for number in first.keys() & second.keys():
                    one, other = first[number].get(code), second[number].get(code)
                    if one is not None and other is not None:
                        tables[place, which, known.index(one), known.index(other)] += 1
                        compared.add((place, number))
        if compared:
            found = bootstrap.estimate(tables, mean_kappas)
            rows.append({"coder": coder, "code": code, "kappa": found.value, "lo": found.lo, "hi": found.hi, "n": len(compared)})
    return rows


def mean_kappas(tables: Numbers) -> Numbers:
    """The mean kappa of several pairs' tables (… x pairs x labels x labels), of those that have one."""
    found = kappas(tables)
    known = ~np.isnan(found)
    none = ~known.any(axis=-1)
    return np.where(none, np.nan, np.where(known, found, 0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1))


def among_experts(sessions: Sequence[Session]) -> list[list[tuple[Rated, Rated]]]:
    """The comparisons of every two experts, over the sessions that several of them coded."""
    shared = [session.experts for session in sessions if len(session.experts) > 1]
    names = sorted({name for experts in shared for name in experts})
    return [[(experts.get(one, {}), experts.get(other, {})) for experts in shared] for one, other in combinations(names, 2)]


Draw = Callable[[int, str], Bootstrap]  # so many transcripts, for one purpose: their resamples


def separation(high: Sequence[float], low: Sequence[float], draw: Draw) -> Estimate:
    """How often a session of high quality has the higher score, ties half: the AUC, with its interval over sessions."""
    ours, theirs = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
    one, other = draw(len(ours), "high"), draw(len(theirs), "low")
    values = np.einsum("ri,ij,rj->r", one.weights, wins, other.weights) / wins.size
    return min((one, other), key=lambda each: each.weights.shape[1]).interval(values)


def quality(
    coder: str, scores: Mapping[str, Mapping[tuple[str, str], float | None]], sessions: Sequence[Session], draw: Draw
) -> list[dict[str, Any]]:
    """Whether each score of a coder tells the sessions' quality: rows with the columns `QUALITY`.

    `scores`: by session, by (measure, unit). Sessions without a score are left out; `high` and `low` count the others.
    """
    rows = []
    for measure, unit in dict.fromkeys(key for given in scores.values() for key in given):
        found: dict[str, list[float]] = defaultdict(list)
        for session in sessions:
            value = scores[session.name][measure, unit]
            if value is not None:
                found[session.quality].append(value)
        if found["high"] and found["low"]:
            auc = separation(found["high"], found["low"], draw)
            counts = {kind: len(found[kind]) for kind in ("high", "low")}
            rows.append(
                {"coder": coder, "measure": measure, "unit": unit, "auc": auc.value, "lo": auc.lo, "hi": auc.hi, **counts}
            )
    return rows


def scores(behaviours: Behaviours, known: frozenset[Behaviour] = frozenset(Behaviour)) -> dict[tuple[str, str], float | None]:
    """The summary scores of a session that known behaviors allow; totals, which grow with its length, a counselor volley."""
    counts = counted(behaviours)
    found = {(score.code, "ratio"): score(counts) for score in RATIOS if parts(score) <= known}
    totals = {(score.code, "per volley"): score(counts) for score in TOTALS if parts(score) <= known}
    return found | {key: total / len(behaviours) if behaviours and total is not None else None for key, total in totals.items()}


def parts(score: Summary[Behaviour]) -> set[Behaviour]:
    """The behaviors that a score needs."""
    return {*score.top, *(() if isinstance(score.bottom, int) else score.bottom)}


def counted(behaviours: Behaviours) -> Counter[Behaviour]:
    """How many volleys hold each behavior."""
    return Counter(behaviour for seen in behaviours.values() for behaviour in seen)


def released(source: str, arm: str, dialogs: Sequence[Dialog]) -> list[dict[str, Any]]:
    """What the lexical coder sees in the dialogs of one arm: rows with the columns `RELEASED`.

    Of a behavior and a total: mean and sample SD of the counts a dialog, and how many there are a round (counselor turn) in all.
    Of a ratio: mean and SD over the `n` dialogs that have one, and the ratio of the counts of all dialogs.
    """
    seen = [coders.by_words(dialog.turns) for dialog in dialogs]
    counts = [counted(one) for one in seen]
    total, rounds = sum(counts, Counter[Behaviour]()), sum(map(len, seen))
    head = {"source": source, "arm": arm, "rater": coders.LEXICAL}
    rows: list[dict[str, Any]] = []
    for code, values in [
        *((str(behaviour), [float(one[behaviour]) for one in counts]) for behaviour in Behaviour),
        *((score.code, [score(one) or 0.0 for one in counts]) for score in TOTALS),
    ]:
        rows.append(head | {"code": code, **moments(values), "per_round": sum(values) / rounds if rounds else None})
    for score in RATIOS:
        ratios = [value for one in counts if (value := score(one)) is not None]
        rows.append(head | {"code": score.code, **moments(ratios), "ratio_of_means": score(total)})
    return rows


def moments(values: Sequence[float]) -> dict[str, float]:
    """How many there are, their mean and their sample SD."""
    found = pd.Series(values, dtype=float)
    return {"n": len(found), "mean": found.mean(), "sd": found.std()}


def features(source: str, arm: str, dialogs: Sequence[Dialog]) -> dict[str, Any]:
    """A row of Table 4, counted as it is printed: rounds are counselor turns, all characters count."""
    found = {
        f"{what}_{how}": value
        for what, pair in volley_lengths(dialogs).items()
        for how, value in zip(("mean", "sd"), pair, strict=True)
    }
    return {"source": source, "arm": arm, "n": len(dialogs), **found}


def validated_by_model(study: Study, held_out: Sequence[Session]) -> list[Session]:
    """The sessions on which the language model is held against the experts: a seeded sample, none where it does not code."""
    if study.code.coder != "llm":
        return []
    wanted = min(study.miti.transcripts, len(held_out))
    return random.Random(study.seed_of("miti")).sample(held_out, wanted)


def annotated(study: Study) -> list[Session]:
    """AnnoMI's sessions; none if it is unavailable."""
    archive = study.folder / "acquire" / "annomi" / "files.tar"
    tables = (file for file in from_archive(archive) if file.name.endswith("AnnoMI-full.csv"))
    return [session for file in tables for session in sessions_of(annomi.rows(file))]


def questions(study: Study) -> list[Question]:
    """The requests that the model's validation takes."""
    chosen = validated_by_model(study, halves(annotated(study))[1])
    return coders.questions_about(study, "miti", {session.name: session.turns for session in chosen})


def arms(study: Study) -> dict[tuple[str, str], list[Dialog]]:
    """The authors' released dialogs by model and arm, and AnnoMI's sessions as they were read."""
    found: dict[tuple[str, str], list[Dialog]] = {}
    if "release" in study.corpora:
        for dialog in read_dialogs(study.folder / "read" / "release" / "simulated.jsonl"):
            found.setdefault((dialog.meta["model"], dialog.meta["arm"]), []).append(dialog)
    real = read_dialogs(study.folder / "read" / "annomi" / "dialogs.jsonl")
    return found | ({("annomi", "real"): real} if real else {})


def miti(study: Study) -> None:
    """Validate the coders, and code what was released; see the module."""
    folders = [study.folder / "acquire" / "annomi", study.folder / "read" / "annomi"]
    folders += [study.folder / "read" / "release"] if "release" in study.corpora else []
    with stage(study, "miti", None, folders) as out:

        def draw(transcripts: int, purpose: str) -> Bootstrap:
            return Bootstrap(transcripts, study.score.resamples, study.score.confidence, study.seed_of("miti", purpose))

        everything = annotated(study)
        _, held_out = halves(everything)
        validation, qualities = [], []
        comparisons = among_experts(everything)
        if comparisons:
            validation += agreement(EXPERTS, comparisons, draw(len(comparisons[0]), "sessions"))
        told = {session.name: scores(behaviours_of(consensus(session)), TOLD_BY_EXPERTS) for session in held_out}
        qualities += quality(EXPERTS, told, held_out, draw)
        by_words = [Coding(coders.LEXICAL, session.name, coders.by_words(session.turns), {}) for session in held_out]
        chosen = validated_by_model(study, held_out)
        by_model = coders.by_model(study, "miti", {session.name: session.turns for session in chosen})
        if chosen and not by_model:
            print(f"miti: no answers of the model are recorded; to record: {ask.how_to_record(study, 'miti')}")
        for codings, sessions in ((by_words, held_out), (by_model, chosen)):
            if codings:
                pairs = [(labelled(one.behaviours), consensus(session)) for one, session in zip(codings, sessions, strict=True)]
                validation += agreement(codings[0].rater, [pairs], draw(len(pairs), "sessions"))
                qualities += quality(codings[0].rater, {one.packet: of_coding(one) for one in codings}, sessions, draw)
        groups = arms(study)
        tables = {
            "coder_validation": pd.DataFrame(validation, columns=VALIDATION),
            "quality": pd.DataFrame(qualities, columns=QUALITY),
            "released": pd.DataFrame(
                [row for key, dialogs in groups.items() for row in released(*key, dialogs)], columns=RELEASED
            ),
            "features": pd.DataFrame(
                [features(*key, dialogs) for key, dialogs in groups.items() if key[1] != "real"], columns=FEATURES
            ),
        }
        for name, table in tables.items():
            storage.write_text(out / f"{name}.csv", table.round(4).to_csv(index=False, lineterminator="\n"))
        numbers = {
            "kappa": nested(tables["coder_validation"], "code", "kappa"),
            "auc": nested(tables["quality"], "measure", "auc"),
        }
        storage.write_json(
            out / "metrics.json", numbers | {"dialogs": {" ".join(key): len(found) for key, found in groups.items()}}
        )


def of_coding(one: Coding) -> dict[tuple[str, str], float | None]:
    """All scores of a coded session, those of its globals too if it has any."""
    rated = {(score.code, "rating"): score(one.ratings) for score in (TECHNICAL, RELATIONAL)} if one.ratings else {}
    return scores(one.behaviours) | rated


def nested(table: pd.DataFrame, key: str, value: str) -> dict[str, dict[str, float]]:
    """The numbers of a table by coder and code, for `metrics.json`."""
    known = table.dropna(subset=[value])
    return {coder: dict(zip(part[key], part[value].round(4), strict=True)) for coder, part in known.groupby("coder", sort=False)}
