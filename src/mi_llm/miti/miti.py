"""Stage `miti`: how far automatic coders may be trusted, and what the lexical one sees in the dialogs that the authors released.

Reads `translate/dialogs.jsonl` (some of AnnoMI's sessions in Chinese, perhaps none) and, where the study has them,
`acquire/annomi/files.tar`, `read/annomi/`, `read/release/`, and experts' globals (`miti.globals`). Writes `miti/`:
`coder_validation.csv` (kappa with AnnoMI's experts, and the experts' own, of counselors' and of clients' volleys, or why there is
none), `globals_validation.csv` (a language model's globals against experts'), `client_language.csv` (what AnnoMI's clients say of
change, as experts and coders hear it), `quality.csv` (whether a coder's scores tell sessions of high from those of low quality),
`released.csv` (lexical codes of the released dialogs and of AnnoMI), `features.csv` (their Table 4) and, where a language model
codes counselors or clients, its recorded answers, `cassette.jsonl`.

AnnoMI's annotators (Wu et al. 2022, doi:10.1109/ICASSP43922.2022.9746035) coded every counselor utterance of 133 English
transcripts, ten of them the same seven. Their codes are coarser than MITI's. *Therapist input* (information, advice, options,
goals) is here giving information, persuading with or without permission, and confronting; *advice* is persuading; *question* is
asking questions and seeking collaboration, which is asked. Affirming and emphasizing autonomy are *other* there, so how well they
are recognized is not known, nor how well globals are rated.

The lexical coder reads two languages by two lists of cues. The English one was written with one half of AnnoMI in view and is
tested on the other. The Chinese one, which codes this study's talks, was written reading the dialogs that the authors released,
and can be compared with experts only where translations of AnnoMI are recorded.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from mi_llm import registry, storage
from mi_llm.codebook.client import ClientCoding, Talk
from mi_llm.codebook.coding import (
    ADHERENT,
    ADHERENT_RATIO,
    COMPLEX_SHARE,
    NONADHERENT,
    REFLECTIONS,
    REFLECTIONS_TO_QUESTIONS,
    RELATIONAL,
    TECHNICAL,
    Behavior,
    Summary,
)
from mi_llm.codebook.tables import PEOPLE, Behaviors, Coding, rated_by_people
from mi_llm.codebook.tables import tables as tables_of
from mi_llm.corpora import annomi
from mi_llm.corpora.files import from_archive
from mi_llm.corpora.labels import ROLES
from mi_llm.dialog import Dialog, Turn, read_dialogs, volley_lengths
from mi_llm.llm import ask
from mi_llm.llm.cassette import Question
from mi_llm.miti import client_language
from mi_llm.miti.coder import lexical, llm
from mi_llm.miti.reliability import Estimate, Numbers, estimate, kappas
from mi_llm.miti.reliability import table as reliability_table
from mi_llm.stage import stage
from mi_llm.statistics import NONE, SHARE, jackknife_interval
from mi_llm.study import REAL, Study

Labels = dict[str, str]  # by code of `CODES`: what a coder or expert says of a volley
Rated = dict[int, Labels]  # by the number of the counselor's turn

EXPERTS = "experts"
SAMPLES = f"llm:{ask.AUTHOR}"  # the rater whose codes are samples
ENGLISH = annomi.LANGUAGE
MAIN = ("therapist_input", "question", "reflection", "other")  # the order in which a behavior is the main one
PERSUASION = frozenset({Behavior.PERSUADE_WITH, Behavior.PERSUADE})
INPUT = PERSUASION | {Behavior.INFORMATION, Behavior.CONFRONT}
QUESTION = frozenset({Behavior.QUESTION, Behavior.SEEK})
REFLECTION = frozenset({Behavior.SIMPLE, Behavior.COMPLEX})
COMPLEX = "complex reflection"
CODES = ("main behavior", "question", "reflection", COMPLEX, "input", "information", "advice")
TOLD_BY_EXPERTS = REFLECTION | {Behavior.QUESTION}
RATIOS = (COMPLEX_SHARE, REFLECTIONS_TO_QUESTIONS, ADHERENT_RATIO)
TOTALS = (REFLECTIONS, ADHERENT, NONADHERENT)
CLIENT = "client talk"
CLIENT_CODES = (CLIENT, *(f"{talk} talk" for talk in Talk))
VALIDATION = ["coder", "language", "code", "kappa", "lo", "hi", "n", "note"]
QUALITY = ["coder", "language", "measure", "unit", "auc", "lo", "hi", "high", "low"]
RELEASED = ["source", "arm", "rater", "code", "n", "mean", "sd", "ratio_of_means", "per_round"]
FEATURES = ["source", "arm", "n"] + [f"{what}_{how}" for what in ("rounds", "counselor", "client") for how in ("mean", "sd")]


@dataclass(frozen=True)
class Session:
    """An AnnoMI transcript: its quality, one turn per utterance, each expert's labels of the counselor's turns (`experts`) and of
    the client's (`heard`)."""

    name: str
    quality: str
    turns: list[Turn] = field(default_factory=list)
    experts: dict[str, Rated] = field(default_factory=dict)
    heard: dict[str, Rated] = field(default_factory=dict)


def sessions_of(rows: Iterable[tuple[str, dict[str, str]]]) -> list[Session]:
    """Gather `(where, row)` of `AnnoMI-full.csv`, as the reader yields them, into sessions."""
    rows_by_transcript: dict[str, dict[int, list[dict[str, str]]]] = {}
    for _, row in rows:
        rows_by_transcript.setdefault(row["transcript_id"], {}).setdefault(int(row["utterance_id"]), []).append(row)
    sessions = []
    for name, utterances in rows_by_transcript.items():
        first = next(iter(utterances.values()))[0]
        session = Session(name, first["mi_quality"])
        for number, (_, experts) in enumerate(sorted(utterances.items()), 1):
            role = ROLES[experts[0]["interlocutor"]]
            session.turns.append(Turn(role=role, text=experts[0]["utterance_text"]))
            for row in experts:
                if role == "counselor":
                    session.experts.setdefault(row["annotator_id"], {})[number] = labels_of_row(row)
                elif row["client_talk_type"] in list(Talk):
                    session.heard.setdefault(row["annotator_id"], {})[number] = labels_of_talk(Talk(row["client_talk_type"]))
        sessions.append(session)
    return sessions


def labels_of_row(row: Mapping[str, str]) -> Labels:
    """An expert's labels of an utterance; only a reflection has the label `complex reflection`."""
    row_labels = {
        "main behavior": row["main_therapist_behaviour"],
        "question": row["question_exists"],
        "reflection": row["reflection_exists"],
        "input": row["therapist_input_exists"],
        "information": str(row["therapist_input_subtype"] == "information"),
        "advice": str(row["therapist_input_subtype"] == "advice"),
    }
    return row_labels | ({COMPLEX: row["reflection_subtype"]} if row["reflection_subtype"] != "n/a" else {})


def labels_of_talk(talk: Talk) -> Labels:
    """The labels of a client's turn: its code, and for each code whether it is this one."""
    return {CLIENT: str(talk)} | {f"{other} talk": str(talk is other) for other in Talk}


def labels(seen: frozenset[Behavior]) -> Labels:
    """A volley's behaviors as AnnoMI's labels; its main behavior is the first in the order of `MAIN`."""
    kinds = zip(MAIN, (INPUT, QUESTION, REFLECTION), strict=False)
    volley_labels = {
        "main behavior": next((name for name, behaviors in kinds if seen & behaviors), MAIN[-1]),
        "question": str(bool(seen & QUESTION)),
        "reflection": str(bool(seen & REFLECTION)),
        "input": str(bool(seen & INPUT)),
        "information": str(Behavior.INFORMATION in seen),
        "advice": str(bool(seen & PERSUASION)),
    }
    kind = "complex" if Behavior.COMPLEX in seen else "simple"
    return volley_labels | ({COMPLEX: kind} if seen & REFLECTION else {})


def labeled(behaviors: Behaviors) -> Rated:
    """The behaviors of each volley as AnnoMI's labels."""
    return {number: labels(seen) for number, seen in behaviors.items()}


def consensus(session: Session) -> Rated:
    """The label that most experts give each volley; of labels given equally often, the one of the expert listed first.

    If most experts saw a reflection, they decide whether it is complex.
    """
    agreed: Rated = {}
    for number, turn in enumerate(session.turns, 1):
        if turn.role == "counselor":
            experts = [rated[number] for rated in session.experts.values() if number in rated]
            votes = {code: Counter(expert[code] for expert in experts if code in expert) for code in CODES}
            agreed[number] = {code: counts.most_common(1)[0][0] for code, counts in votes.items() if counts}
            if agreed[number]["reflection"] != "True":
                agreed[number].pop(COMPLEX, None)
    return agreed


def behaviors_of(rated: Rated) -> Behaviors:
    """Experts' labels as behaviors, as far as labels tell: questions and both kinds of reflection."""
    behaviors: Behaviors = {}
    for number, volley_labels in rated.items():
        kind = {"simple": Behavior.SIMPLE, "complex": Behavior.COMPLEX}.get(volley_labels.get(COMPLEX, ""))
        asked = Behavior.QUESTION if volley_labels["question"] == "True" else None
        behaviors[number] = frozenset(behavior for behavior in (kind, asked) if behavior)
    return behaviors


def joined(utterances: Sequence[Labels]) -> Labels:
    """The labels of several utterances that are one volley: what any of them holds, and the main behavior first in `MAIN`."""
    main, *others = CODES
    together = {code: str(any(labels[code] == "True" for labels in utterances)) for code in others if code != COMPLEX}
    kinds = {labels[COMPLEX] for labels in utterances if COMPLEX in labels}
    together[main] = min((labels[main] for labels in utterances), key=MAIN.index)
    return together | ({COMPLEX: "complex" if "complex" in kinds else "simple"} if kinds else {})


def joined_talk(utterances: Sequence[Labels]) -> Labels:
    """The labels of several client utterances that are one volley: change or sustain talk, whichever more of them are.

    Of equally many the later one, as in `codebook/client.py`; neutral where there is neither.
    """
    latest_first = [utterance[CLIENT] for utterance in reversed(utterances) if utterance[CLIENT] != Talk.NEUTRAL]
    return labels_of_talk(Talk(Counter(latest_first).most_common(1)[0][0]) if latest_first else Talk.NEUTRAL)


def translated(sessions: Sequence[Session], dialogs: Sequence[Dialog]) -> list[Session]:
    """The sessions that are translated, with the translated turns, each with the labels of the utterances that it joins.

    A session whose utterances do not join to the turns of its translation, since the reader split or left out some, is missing.
    """
    by_name = {session.name: session for session in sessions}
    translated_sessions = []
    for dialog in dialogs:
        session = by_name[dialog.id]
        volleys = [
            (role, [number for number, _ in group])
            for role, group in groupby(enumerate(session.turns, 1), key=lambda numbered: numbered[1].role)
        ]
        if [role for role, _ in volleys] == [turn.role for turn in dialog.turns]:
            experts, heard = (
                {
                    expert: {
                        number: join([rated[utterance] for utterance in utterances])
                        for number, (role, utterances) in enumerate(volleys, 1)
                        if role == speaker and set(utterances) <= rated.keys()
                    }
                    for expert, rated in by_expert.items()
                }
                for speaker, by_expert, join in (
                    ("counselor", session.experts, joined),
                    ("client", session.heard, joined_talk),
                )
            )
            translated_sessions.append(Session(session.name, session.quality, list(dialog.turns), experts, heard))
    return translated_sessions


def halves(sessions: Sequence[Session], seed: int = 1) -> tuple[list[Session], list[Session]]:
    """Draw two halves of the sessions: the lexical cues were written with the first in view, results come from the second."""
    names = sorted((session.name for session in sessions), key=int)
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = {names[index] for index in drawn[: len(names) // 2]}
    return [session for session in sessions if session.name in first], [
        session for session in sessions if session.name not in first
    ]


def heard_by_most(session: Session) -> Rated:
    """The code that most experts give each client turn; of codes given equally often, the one of the expert listed first."""
    numbers = sorted({number for rated in session.heard.values() for number in rated})
    votes = {number: Counter(rated[number][CLIENT] for rated in session.heard.values() if number in rated) for number in numbers}
    return {number: labels_of_talk(Talk(counts.most_common(1)[0][0])) for number, counts in votes.items()}


def heard_by(rater: str, session: Session, rated: Rated) -> ClientCoding:
    """Labels of client turns as a coding."""
    return ClientCoding(rater, session.name, {number: Talk(turn_labels[CLIENT]) for number, turn_labels in rated.items()})


def agreement(
    coder: str,
    language: str,
    comparisons: Sequence[Sequence[tuple[Rated, Rated]]],
    confidence: float,
    codes: Sequence[str] = CODES,
) -> list[dict[str, Any]]:
    """Cohen's kappa of each code, and its interval over the sessions: rows with the columns `VALIDATION`.

    A comparison is a pair of raters: for each session, the labels of the first and those of the second. With several pairs, kappa
    is the mean of theirs. `n` counts the volleys labeled by both raters of a pair; a code without any has no row. Complex
    reflections are compared where both raters saw a reflection.
    """
    rows = []
    for code in codes:
        rated = [volleys for pairs in comparisons for pair in pairs for volleys in pair]
        known = sorted({volley_labels[code] for volleys in rated for volley_labels in volleys.values() if code in volley_labels})
        tables = np.zeros((len(comparisons[0]), len(comparisons), len(known), len(known)))
        compared = set()
        for pair_index, pairs in enumerate(comparisons):
            for session_index, (first, second) in enumerate(pairs):
                for number in first.keys() & second.keys():
                    first_label, second_label = first[number].get(code), second[number].get(code)
                    if first_label is not None and second_label is not None:
                        tables[session_index, pair_index, known.index(first_label), known.index(second_label)] += 1
                        compared.add((session_index, number))
        if compared:
            kappa = estimate(tables, mean_kappas, confidence, least=-1)
            head = {"coder": coder, "language": language, "code": code}
            value = {"kappa": kappa.value, "lo": kappa.lo, "hi": kappa.hi, "n": len(compared), "note": kappa.note}
            rows.append(head | value)
    return rows


def without_kappa(coder: str, language: str, codes: Sequence[str], note: str) -> list[dict[str, Any]]:
    """The rows of a language model of whose codes no kappa is computed, and why: columns `VALIDATION`."""
    return [{"coder": coder, "language": language, "code": code, "n": 0, "note": note} for code in codes]


def mean_kappas(tables: Numbers) -> Numbers:
    """The mean kappa of several pairs' tables (… x pairs x labels x labels); pairs without a kappa are left out."""
    values = kappas(tables)
    known = ~np.isnan(values)
    none = ~known.any(axis=-1)
    return np.where(none, np.nan, np.where(known, values, 0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1))


def among_experts(coded: Sequence[Mapping[str, Rated]]) -> list[list[tuple[Rated, Rated]]]:
    """The comparisons of every two experts, over the sessions that several of them coded; `coded`: by session, by expert."""
    shared = [experts for experts in coded if len(experts) > 1]
    names = sorted({name for experts in shared for name in experts})
    return [[(experts.get(first, {}), experts.get(second, {})) for experts in shared] for first, second in combinations(names, 2)]


def separation(high: Sequence[float], low: Sequence[float], confidence: float) -> Estimate:
    """How often a session of high quality has the higher score, ties half: the AUC, with its jackknife interval over sessions.

    No interval for a perfect separation, or where one of the two kinds has too few sessions.
    """
    high_scores, low_scores = np.asarray(high, dtype=float), np.asarray(low, dtype=float)
    wins = (high_scores[:, None] > low_scores) + 0.5 * (high_scores[:, None] == low_scores)
    auc = float(wins.mean())
    total, (highs, lows) = wins.sum(), wins.shape
    exists = min(highs, lows) > 1 and 0 < auc < 1
    left_out = (
        [(total - wins.sum(axis=1)) / (wins.size - lows), (total - wins.sum(axis=0)) / (wins.size - highs)] if exists else []
    )
    return Estimate(auc, *(jackknife_interval(auc, left_out, confidence, SHARE) if exists else NONE))


def quality(
    coder: str,
    language: str,
    scores: Mapping[str, Mapping[tuple[str, str], float | None]],
    sessions: Sequence[Session],
    confidence: float,
) -> list[dict[str, Any]]:
    """Whether each score of a coder tells the sessions' quality: rows with the columns `QUALITY`.

    `scores`: by session, by (measure, unit). Sessions without a score are left out; `high` and `low` count the others.
    """
    rows = []
    for measure, unit in dict.fromkeys(key for session_scores in scores.values() for key in session_scores):
        scores_by_quality: dict[str, list[float]] = defaultdict(list)
        for session in sessions:
            value = scores[session.name][measure, unit]
            if value is not None:
                scores_by_quality[session.quality].append(value)
        if scores_by_quality["high"] and scores_by_quality["low"]:
            auc = separation(scores_by_quality["high"], scores_by_quality["low"], confidence)
            counts = {kind: len(scores_by_quality[kind]) for kind in ("high", "low")}
            head = {"coder": coder, "language": language, "measure": measure, "unit": unit}
            rows.append(head | {"auc": auc.value, "lo": auc.lo, "hi": auc.hi, **counts})
    return rows


def scores(behaviors: Behaviors, known: frozenset[Behavior] = frozenset(Behavior)) -> dict[tuple[str, str], float | None]:
    """The summary scores that `known` behaviors suffice for; totals, which grow with a session's length, per counselor volley."""
    counts = counted(behaviors)
    ratios = {(score.code, "ratio"): score(counts) for score in RATIOS if parts(score) <= known}
    totals = {(score.code, "per volley"): score(counts) for score in TOTALS if parts(score) <= known}
    return ratios | {key: total / len(behaviors) if behaviors and total is not None else None for key, total in totals.items()}


def parts(score: Summary[Behavior]) -> set[Behavior]:
    """The behaviors that a score needs."""
    return {*score.top, *(() if isinstance(score.bottom, int) else score.bottom)}


def counted(behaviors: Behaviors) -> Counter[Behavior]:
    """How many volleys hold each behavior."""
    return Counter(behavior for seen in behaviors.values() for behavior in seen)


def released(study: Study, source: str, arm: str, dialogs: Sequence[Dialog]) -> list[dict[str, Any]]:
    """What the lexical coder sees in the dialogs of one arm: rows with the columns `RELEASED`.

    For a behavior or a total: mean and sample SD of the counts per dialog, and the count per round (counselor turn) over all
    dialogs. For a ratio: mean and SD over the `n` dialogs that have one, and the ratio of the counts of all dialogs.
    """
    seen = [lexical.by_words(dialog.turns, study.language, study.code.cues.counselor) for dialog in dialogs]
    dialog_counts = [counted(behaviors) for behaviors in seen]
    total, rounds = sum(dialog_counts, Counter[Behavior]()), sum(map(len, seen))
    head = {"source": source, "arm": arm, "rater": lexical.rater(study)}
    rows: list[dict[str, Any]] = []
    for code, values in [
        *((str(behavior), [float(counts[behavior]) for counts in dialog_counts]) for behavior in Behavior),
        *((score.code, [score(counts) or 0.0 for counts in dialog_counts]) for score in TOTALS),
    ]:
        rows.append(head | {"code": code, **moments(values), "per_round": sum(values) / rounds if rounds else None})
    for score in RATIOS:
        ratios = [value for counts in dialog_counts if (value := score(counts)) is not None]
        rows.append(head | {"code": score.code, **moments(ratios), "ratio_of_means": score(total)})
    return rows


def moments(values: Sequence[float]) -> dict[str, float]:
    """How many there are, their mean and their sample SD."""
    series = pd.Series(values, dtype=float)
    return {"n": len(series), "mean": series.mean(), "sd": series.std()}


def features(source: str, arm: str, dialogs: Sequence[Dialog]) -> dict[str, Any]:
    """A row of Table 4, counted as the paper prints it: rounds are counselor turns, all characters count."""
    lengths = {
        f"{what}_{how}": value
        for what, pair in volley_lengths(dialogs).items()
        for how, value in zip(("mean", "sd"), pair, strict=True)
    }
    return {"source": source, "arm": arm, "n": len(dialogs), **lengths}


def validated(study: Study) -> list[str]:
    """The coders that are compared with the experts: the lexical one, and the study's if it is another program."""
    return [name for name in dict.fromkeys(("lexical", study.code.coder)) if name != PEOPLE]


def of_counselors(
    study: Study, name: str, language: str, sessions: Sequence[Session]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How far a coder agrees with the experts on counselors' volleys, and what its scores tell of the sessions' quality.

    One that asks a language model twice about each volley codes the English sessions alone.
    """
    coder = registry.modules(registry.CODERS)[name]
    asks, confidence = hasattr(coder, "questions"), study.score.confidence
    if not sessions or (asks and language != ENGLISH):
        return [], []
    codings: list[Coding] = coder.code(study, "miti", transcripts_for(study, coder, sessions))
    if not codings:
        if hasattr(coder, "remedy"):
            print(f"miti: nothing is coded; to get codes: {coder.remedy(study, 'miti')}")
        return without_kappa(llm.rater(study), language, CODES, ask.NOT_RECORDED) if asks else [], []
    rater = codings[0].rater
    if rater == SAMPLES:
        return without_kappa(rater, language, CODES, ask.OF_AUTHOR), []
    named = {session.name: session for session in sessions}
    own = [named[coding.packet] for coding in codings]
    pairs = [(labeled(coding.behaviors), consensus(session)) for coding, session in zip(codings, own, strict=True)]
    own_scores = {coding.packet: of_coding(coding) for coding in codings}
    return agreement(rater, language, [pairs], confidence), quality(rater, language, own_scores, own, confidence)


def of_clients(
    study: Study, listener: ModuleType, language: str, sessions: Sequence[Session]
) -> tuple[list[dict[str, Any]], list[ClientCoding]]:
    """How far a coder agrees with the experts on clients' volleys, code by code, and its codes."""
    if not sessions:
        return [], []
    talks: list[ClientCoding] = listener.client(study, "miti", transcripts_for(study, listener, sessions))
    if not talks:
        return without_kappa(llm.rater(study), language, CLIENT_CODES, ask.NOT_RECORDED), []
    if talks[0].rater == SAMPLES:
        return without_kappa(SAMPLES, language, CLIENT_CODES, ask.OF_AUTHOR), talks
    pairs = client_pairs(talks, {session.name: session for session in sessions})
    return agreement(talks[0].rater, language, [pairs], study.score.confidence, CLIENT_CODES), talks


def client_pairs(codings: Sequence[ClientCoding], sessions: Mapping[str, Session]) -> list[tuple[Rated, Rated]]:
    """For each coded session, a coder's labels of the client's turns and those of most experts."""
    return [
        ({number: labels_of_talk(talk) for number, talk in coding.talks.items()}, heard_by_most(sessions[coding.packet]))
        for coding in codings
    ]


def transcripts_for(study: Study, coder: ModuleType, held_out: Sequence[Session]) -> dict[str, Sequence[Turn]]:
    """The sessions that a coder codes: a seeded sample for one that asks a language model, else all."""
    if hasattr(coder, "questions"):
        held_out = study.sample(held_out, min(study.miti.transcripts, len(held_out)), "miti.transcripts", "miti")
    return {session.name: session.turns for session in held_out}


def annotated(study: Study) -> list[Session]:
    """AnnoMI's sessions; none if it is unavailable, or not among the study's corpora."""
    if annomi.KEY not in study.corpora:
        return []
    archive = study.path("acquire", annomi.KEY, "files.tar")
    tables = (file for file in from_archive(archive) if file.name.endswith("AnnoMI-full.csv"))
    return [session for file in tables for session in sessions_of(annomi.rows(file))]


def questions(study: Study) -> list[Question]:
    """The requests that validating the model takes."""
    coder = registry.modules(registry.CODERS)[study.code.coder]
    sessions = annotated(study)
    _, held_out = halves(sessions)
    asked = list(llm.rating(study, rated_dialogs(study)).values())
    for heard in (held_out, translated(sessions, read_dialogs(study.path("translate", "dialogs.jsonl")))):
        asked += llm.listening(study, transcripts_for(study, llm, heard)).values()
    if hasattr(coder, "questions"):
        asked += coder.questions(study, "miti", transcripts_for(study, coder, held_out))
    return asked


def rated_dialogs(study: Study) -> dict[str, Sequence[Turn]]:
    """The dialogs whose globals experts gave, by name; none without their table, or where no language model gives globals."""
    folder = Path(study.miti.globals)
    asked = "llm" in (study.code.coder, study.code.globals)
    if not asked or not (folder / "globals.csv").exists():
        return {}
    return {dialog.id: dialog.turns for dialog in read_dialogs(folder / "dialogs.jsonl")}


def globals_validation(study: Study) -> pd.DataFrame:
    """How far a language model's globals agree with experts', and experts among themselves: columns `reliability.COLUMNS`."""
    dialogs = rated_dialogs(study)
    people = rated_by_people(Path(study.miti.globals) / "globals.csv", dialogs) if dialogs else {}
    codings = [Coding(*key, {}, ratings) for key, ratings in people.items()]
    codings += llm.rate(study, "miti", dialogs) if dialogs else []
    made = tables_of(codings)
    return reliability_table(made["codes"], made["globals"], study.score.confidence)


def arms(study: Study) -> dict[tuple[str, str], list[Dialog]]:
    """The authors' released dialogs by model and arm, and AnnoMI's sessions as they were read."""
    dialogs_by_arm: dict[tuple[str, str], list[Dialog]] = {}
    if "release" in study.corpora:
        for dialog in read_dialogs(study.path("read", "release", "simulated.jsonl")):
            dialogs_by_arm.setdefault((dialog.meta["model"], dialog.meta["arm"]), []).append(dialog)
    real = read_dialogs(study.path("read", annomi.KEY, "dialogs.jsonl")) if annomi.KEY in study.corpora else []
    return dialogs_by_arm | ({(annomi.KEY, REAL): real} if real else {})


def miti(study: Study) -> None:
    """Validate the coders, and code what was released; see the module."""
    folders = [study.path("translate", "dialogs.jsonl")]
    folders += [study.path(stage_name, annomi.KEY) for stage_name in ("acquire", "read") if annomi.KEY in study.corpora]
    folders += [study.path("read", "release")] if "release" in study.corpora else []
    with stage(study, "miti", None, folders) as out:
        all_sessions, confidence = annotated(study), study.score.confidence
        _, held_out = halves(all_sessions)
        own = read_dialogs(study.path("translate", "dialogs.jsonl")) if study.language != ENGLISH else []
        in_study = translated(all_sessions, own)
        validation = []
        for by_expert, codes in (
            ([session.experts for session in all_sessions], CODES),
            ([session.heard for session in all_sessions], CLIENT_CODES),
        ):
            if comparisons := among_experts(by_expert):
                validation += agreement(EXPERTS, ENGLISH, comparisons, confidence, codes)
        heard = [heard_by(EXPERTS, session, heard_by_most(session)) for session in all_sessions if session.heard]
        expert_scores = {session.name: scores(behaviors_of(consensus(session)), TOLD_BY_EXPERTS) for session in held_out}
        qualities = quality(EXPERTS, ENGLISH, expert_scores, held_out, confidence)
        for language, sessions in ((ENGLISH, held_out), (study.language, in_study)):
            for name in validated(study):
                agreements, told = of_counselors(study, name, language, sessions)
                validation += agreements
                qualities += told
            for listener in registry.modules(registry.CODERS, having="client").values():
                agreements, talks = of_clients(study, listener, language, sessions)
                validation += agreements
                heard += talks if language == ENGLISH else []  # beside the experts, who heard English
        groups = arms(study)
        tables = {
            "coder_validation": pd.DataFrame(validation, columns=VALIDATION),
            "quality": pd.DataFrame(qualities, columns=QUALITY),
            "globals_validation": globals_validation(study),
            "client_language": pd.DataFrame(of_quality(study, all_sessions, heard), columns=client_language.COLUMNS),
            "released": pd.DataFrame(
                [row for key, dialogs in groups.items() for row in released(study, *key, dialogs)], columns=RELEASED
            ),
            "features": pd.DataFrame(
                [features(*key, dialogs) for key, dialogs in groups.items() if key[1] != REAL], columns=FEATURES
            ),
        }
        for name, table in tables.items():
            storage.write_table(out / f"{name}.csv", table.round(4))
        numbers = {
            "kappa": nested(tables["coder_validation"], "code", "kappa"),
            "auc": nested(tables["quality"], "measure", "auc"),
        }
        storage.write_json(
            out / "metrics.json", numbers | {"dialogs": {" ".join(key): len(dialogs) for key, dialogs in groups.items()}}
        )


def of_quality(study: Study, sessions: Sequence[Session], codings: Sequence[ClientCoding]) -> list[dict[str, Any]]:
    """Client language of AnnoMI's sessions of either quality, by rater: experts on all sessions, coders on those held out."""
    quality_of = {session.name: session.quality for session in sessions}
    return [
        row
        for kind in dict.fromkeys(quality_of.values())
        for row in client_language.rows(
            study, annomi.KEY, f"{kind} quality", [coding for coding in codings if quality_of[coding.packet] == kind]
        )
    ]


def of_coding(coding: Coding) -> dict[tuple[str, str], float | None]:
    """All scores of a coded session, those of its globals too if it has any."""
    rated = {(score.code, "rating"): score(coding.ratings) for score in (TECHNICAL, RELATIONAL)} if coding.ratings else {}
    return scores(coding.behaviors) | rated


def nested(table: pd.DataFrame, key: str, value: str) -> dict[str, dict[str, float]]:
    """The numbers of a table by coder and language, and code, for `metrics.json`."""
    known = table.dropna(subset=[value])
    parts = known.groupby(["coder", "language"], sort=False)
    return {" ".join(names): dict(zip(part[key], part[value].round(4), strict=True)) for names, part in parts}
