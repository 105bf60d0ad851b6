"""Stage `blind`: turn the transcripts into anonymous packets (paper, Methods, Manual Evaluation).

Reads `simulate/<model>/{base,tuned}.jsonl` and `translate/dialogs.jsonl` (real sessions). Writes `blind/packets/` (one JSON
file per transcript, with an opaque name, and `raters.json`: who codes which, in which order), `blind/key.csv` (which packet is
which; for nobody who codes), `removed.csv` (what was taken out), `suspected.csv` (words that may be names, for a person to look
at) and `leaks.csv` (what in the packets still tells the arms apart).
"""

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jieba.posseg
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mi_llm import storage
from mi_llm.corpora import annomi
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.language import language
from mi_llm.language.language import DEFAULT
from mi_llm.stage import stage
from mi_llm.study import REAL, Study

jieba.setLogLevel(logging.WARNING)
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters that look alike
PHRASES = 10  # listed for each contrast: those that tell its arms apart best
RELABELINGS = 9999  # of the packets, behind each p
ROUNDING = 1e-9
Kinds = NDArray[np.bool_]
COMMON = 0.2  # share of packets in which a phrase must occur: a rarer one may be the topic of a single talk


@dataclass(frozen=True)
class Rule:
    """Patterns of one kind, and the text that replaces their matches."""

    kind: str
    replace: str
    patterns: tuple[re.Pattern[str], ...]


@cache
def rules(code: str) -> tuple[Rule, ...]:
    """The rules of a language's `deidentify.yaml`."""
    content = language.load(code).read("deidentify.yaml")
    return tuple(Rule(rule["kind"], rule["replace"], tuple(map(re.compile, rule["patterns"]))) for rule in content)


def deidentified(text: str, also: Sequence[str] = (), code: str = DEFAULT) -> tuple[str, list[tuple[str, str]]]:
    """A volley without names of people, places or models or the words of `also`; and (kind, replacement) of each removal."""
    named = tuple(re.compile(re.escape(word)) for word in sorted(also, key=len, reverse=True))
    removed: list[tuple[str, str]] = []
    for rule in (*rules(code), Rule("name", language.load(code).someone, named)):
        for pattern in rule.patterns:
            removed += [(rule.kind, match.expand(rule.replace)) for match in pattern.finditer(text)]
            text = pattern.sub(rule.replace, text)
    return text, removed


def formatted(turns: Sequence[Turn], code: str = DEFAULT) -> list[Turn]:
    """The same format for all transcripts: no line breaks or marks of lists and bold, one speaker's neighboring turns merged."""
    merged: list[Turn] = []
    for turn in turns:
        text = " ".join(re.sub(r"\*\*|^\s*#+\s*|^\s*[-*•]\s+", "", turn.text, flags=re.MULTILINE).split())
        text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])", "", text)
        if merged and merged[-1].role == turn.role:
            merged[-1] = Turn(role=turn.role, text=f"{merged[-1].text}{language.load(code).joint}{text}")
        else:
            merged.append(Turn(role=turn.role, text=text))
    return merged


def anonymous(
    turns: Sequence[Turn], also: Sequence[str] = (), code: str = DEFAULT
) -> tuple[list[Turn], list[tuple[int, str, str]]]:
    """Turns without names of people, places or models or the words of `also`; and (turn, kind, replacement) of each removal."""
    said, removed = [], []
    for number, turn in enumerate(turns, 1):
        text, removals = deidentified(turn.text, also, code)
        said.append(Turn(role=turn.role, text=text))
        removed += [(number, kind, instead) for kind, instead in removals]
    return said, removed


def suspected_names(turns: Sequence[Turn], code: str = DEFAULT) -> Iterator[tuple[int, str]]:
    """Yield (turn, word) of what may be persons' names; many are not, which a person sees at a glance.

    What jieba takes for names; where spaces stand between words, those with a capital inside a sentence that never begin small.
    Other languages have none.
    """
    speech = language.load(code)
    if speech.spaced:
        small = {word for turn in turns for word in re.findall(r"[^\W\d_]+", turn.text) if word[0].islower()}
        for number, turn in enumerate(turns, 1):
            inside = re.findall(r"(?<=[\w,;:] )([^\W\d_]{2,})", turn.text)
            yield from ((number, word) for word in dict.fromkeys(inside) if word[0].isupper() and word.lower() not in small)
        return
    for number, turn in enumerate(turns, 1) if speech.words == "jieba" else ():
        for word, flag in jieba.posseg.cut(turn.text):
            if flag.startswith("nr") and len(word) > 1 and not word.startswith("某"):
                yield number, word


def gathered(study: Study) -> list[tuple[Dialog, dict[str, str]]]:
    """Every talk with its row of the key, model by model and arm by arm, then the real sessions."""
    talks = []
    for model in study.models:
        for arm in study.arms(model):
            for dialog in read_dialogs(study.path("simulate", model, f"{arm}.jsonl")):
                about = {"source": model, "arm": arm, "profile": dialog.meta["profile"], "topic": dialog.meta["topic"]}
                talks.append((dialog, about))
    for dialog in read_dialogs(study.path("translate", "dialogs.jsonl")):
        talks.append((dialog, {"source": annomi.KEY, "arm": REAL, "profile": "", "topic": dialog.meta["topic"]}))
    return talks


def names(count: int, chance: random.Random) -> list[str]:
    """Draw `count` different opaque names."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(chance.choices(LETTERS, k=6))] = None
    return list(drawn)


def assigned(packets: Sequence[str], raters: int, overlap: float, chance: random.Random) -> dict[str, list[str]]:
    """The packets of each rater, in a random order: all raters share a part (`overlap`), the rest is dealt out evenly."""
    drawn = chance.sample(packets, len(packets))
    shared = drawn[: round(overlap * len(drawn))]
    rest = drawn[len(shared) :]
    packets_by_rater = {}
    for number in range(raters):
        own_packets = shared + rest[number::raters]
        packets_by_rater[f"rater-{number + 1}"] = chance.sample(own_packets, len(own_packets))
    return packets_by_rater


def measures(turns: Sequence[Turn]) -> dict[str, float]:
    """What a rater could notice of a transcript without reading it."""
    volleys = {role: [turn.text for turn in turns if turn.role == role] for role in ("client", "counselor")}
    counselor = "".join(volleys["counselor"])
    openings = [text[:2] for text in volleys["counselor"]]
    return {
        "rounds": len(volleys["counselor"]),
        "characters per counselor volley": len(counselor) / max(1, len(volleys["counselor"])),
        "characters per client volley": len("".join(volleys["client"])) / max(1, len(volleys["client"])),
        "counselor speaks first": float(turns[0].role == "counselor"),
        "counselor speaks last": float(turns[-1].role == "counselor"),
        "question marks per counselor volley": (counselor.count("？") + counselor.count("?")) / max(1, len(volleys["counselor"])),
        "Latin letters": sum("a" <= character.lower() <= "z" for character in counselor) / max(1, len(counselor)),
        "volleys with the same beginning": 1 - len(set(openings)) / max(1, len(openings)),
        "repeated volleys": 1 - len(set(volleys["counselor"])) / max(1, len(volleys["counselor"])),
        "empty volleys": sum(not text for text in volleys["counselor"]) / max(1, len(volleys["counselor"])),
    }


def relabeled(second: Kinds, key: pd.DataFrame, relabelings: int, chance: np.random.Generator) -> Kinds:
    """Other labels that the packets could have if labels told nothing [relabelings, packets]; `second` [packets], `key` theirs.

    The talks of one profile belong together. Where both arms met the same clients, labels are exchanged among one model's talks
    of one profile; talks without a profile among themselves. Where a profile is on one side only (real sessions have none), the
    profiles exchange labels, each with all of its talks.
    """
    profiles = groups_of(key)
    mixed = pd.Series(second).groupby(profiles).nunique().max() > 1
    if mixed:
        strata = pd.factorize(key["source"] + " " + key["profile"])[0]
        order = chance.random((relabelings, len(key))).argsort(axis=1)
        order = np.take_along_axis(order, strata[order].argsort(axis=1, kind="stable"), axis=1)  # shuffled within each stratum
        labels = np.empty_like(order, dtype=bool)
        labels[:, strata.argsort(kind="stable")] = second[order]
        return labels
    kinds = pd.Series(second).groupby(profiles).first().to_numpy()
    shuffled: Kinds = chance.permuted(np.tile(kinds, (relabelings, 1)), axis=1)[:, profiles]
    return shuffled


def groups_of(key: pd.DataFrame) -> NDArray[np.int64]:
    """The number of each packet's profile; a talk without one is alone."""
    groups: NDArray[np.int64] = pd.factorize(key["profile"].where(key["profile"] != "", key["packet"]))[0]
    return groups


def aucs(values: NDArray[np.float64], second: Kinds) -> NDArray[np.float64]:
    """How often a value of the second kind exceeds one of the first, ties half (Mann & Whitney 1947).

    `values` [packets] or [relabelings, packets], `second` [relabelings, packets]; returns [relabelings].
    """
    ranks = stats.rankdata(values, axis=-1)
    count = second.sum(axis=1)
    areas: NDArray[np.float64] = ((ranks * second).sum(axis=1) - count * (count + 1) / 2) / (count * (second.shape[1] - count))
    return areas


def classified(values: NDArray[np.float64], second: Kinds, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score each packet by all measures together, higher if it looks like the second kind, with a model fitted without its group.

    `values` [packets, measures], `second` [relabelings, packets], `groups` [packets]; returns [relabelings, packets]. A linear
    discriminant: ridge regression on standardized measures (penalty 1), each group left out in turn by the closed form.
    """
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread, spread, 1)
    design = np.column_stack([scaled, np.ones(len(scaled))])
    count = second.sum(axis=1, keepdims=True)
    target = np.where(second, 1 / count, -1 / (second.shape[1] - count))
    ridge = np.eye(design.shape[1])
    ridge[-1, -1] = 1e-9
    hat = design @ np.linalg.solve(design.T @ design + ridge, design.T)
    rest = target - target @ hat
    scores: NDArray[np.float64] = np.empty(target.shape)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        scores[:, own] = target[:, own] - np.linalg.solve(np.eye(len(own)) - hat[np.ix_(own, own)], rest[:, own].T).T
    return scores


def family(kind: str, names: Sequence[str], areas: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows of one family of features: AUC and p. `areas` [1 + relabelings, features], the true labels' first.

    p is the share of labelings in which any feature of the family tells as much (Westfall & Young 1993), so it is corrected for
    there being many, and for showing the best. The true labels count as one of them, so it is never 0.
    """
    most = np.abs(areas - 0.5).max(axis=1, initial=0)
    return [
        {"kind": kind, "what": name, "auc": area, "p": (most >= abs(area - 0.5) - ROUNDING).mean()}
        for name, area in zip(names, areas[0], strict=True)
    ]


def leaks(packets: dict[str, list[Turn]], key: pd.DataFrame, seed: int, code: str = DEFAULT) -> pd.DataFrame:
    """What tells arms apart, by its AUC (0.5: nothing; toward 0 or 1: much): columns contrast, kind, what, auc, p, n.

    Each measure, all measures together (without the talks of the same profile), and the counselors' phrases whose presence tells
    most. All p come from permuted labels (`relabeled`). That of all measures together counts AUCs as high as the true one only:
    a classifier that is wrong more often than chance tells nothing.
    """
    table = pd.DataFrame([measures(packets[name]) for name in key["packet"]])
    counselors = ["\n".join(turn.text for turn in packets[name] if turn.role == "counselor") for name in key["packet"]]
    words = [set(language.load(code).cut(text)) for text in counselors]
    rows: list[dict[str, Any]] = []
    for first in ("base", REAL):
        indices = np.flatnonzero(key["arm"].isin([first, "tuned"]))
        own_key, values = key.iloc[indices].reset_index(drop=True), table.to_numpy(dtype=float)[indices]
        second = (own_key["arm"] == "tuned").to_numpy()
        if min(second.sum(), (~second).sum()) < 2:
            continue
        labels = np.vstack([second, relabeled(second, own_key, RELABELINGS, np.random.default_rng(seed))])
        together = aucs(classified(values, labels, groups_of(own_key)), labels)
        whole = {"kind": "all measures", "what": "all measures together", "auc": together[0]}
        contrast_rows = [whole | {"p": (together >= together[0] - ROUNDING).mean()}]
        contrast_rows += family("measure", list(table), np.stack([aucs(column, labels) for column in values.T], axis=1))
        vocabulary = sorted({word for index in indices for word in words[index] if len(word) > 1})
        presence = np.array([[word in words[index] for index in indices] for word in vocabulary], dtype=float)
        common = presence.mean(axis=1) >= COMMON if vocabulary else []
        kept = [word for word, often in zip(vocabulary, common, strict=True) if often]
        areas = np.stack([aucs(column, labels) for column in presence[common]], axis=1) if kept else np.zeros((len(labels), 0))
        contrast_rows += sorted(family("phrase", kept, areas), key=lambda row: -abs(row["auc"] - 0.5))[:PHRASES]
        rows += [{"contrast": f"tuned against {first}", **row, "n": len(indices)} for row in contrast_rows]
    return pd.DataFrame(rows, columns=["contrast", "kind", "what", "auc", "p", "n"]).round({"auc": 4, "p": 6})


def blind(study: Study) -> None:
    """Write the packets; see the module."""
    options = study.blind
    inputs = [*(study.path("simulate", model) for model in study.models), study.path("translate", "dialogs.jsonl")]
    with stage(study, "blind", None, inputs) as out:
        chance = study.chance("blind")
        talks = gathered(study)
        chance.shuffle(talks)
        packets: dict[str, list[Turn]] = {}
        key, removed, suspected = [], [], []
        for name, (dialog, about) in zip(names(len(talks), chance), talks, strict=True):
            turns, removals = anonymous(formatted(dialog.turns, study.language), options.remove, study.language)
            removed += [{"packet": name, "turn": number, "kind": kind, "instead": instead} for number, kind, instead in removals]
            suspected += [
                {"packet": name, "turn": number, "word": word} for number, word in suspected_names(turns, study.language)
            ]
            packets[name] = turns
            key.append({"packet": name, **about, "dialog": dialog.id})
        for path in (out / "packets").glob("*.json"):
            path.unlink()
        for name, turns in packets.items():
            content = {"packet": name, "turns": [turn.model_dump() for turn in turns]}
            storage.write_json(out / "packets" / f"{name}.json", content)
        storage.write_json(out / "packets" / "raters.json", assigned(sorted(packets), options.raters, options.overlap, chance))
        tables = {
            "key": pd.DataFrame(key, columns=["packet", "source", "arm", "dialog", "profile", "topic"]),
            "removed": pd.DataFrame(removed, columns=["packet", "turn", "kind", "instead"]),
            "suspected": pd.DataFrame(suspected, columns=["packet", "turn", "word"]),
        }
        tables["leaks"] = leaks(packets, tables["key"], study.seed_of("blind", "leaks"), study.language)
        for title, table in tables.items():
            storage.write_table(out / f"{title}.csv", table)
        numbers = {"packets": len(packets), "removed": len(removed), "suspected": len(suspected)}
        storage.write_json(out / "metrics.json", numbers)
