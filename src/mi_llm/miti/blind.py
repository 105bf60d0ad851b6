"""Stage `blind`: make of all talks packets that do not say where they come from (paper, Methods, Manual Evaluation).

Reads `simulate/<model>/{base,tuned}.jsonl` and `translate/dialogs.jsonl` (real sessions). Writes `blind/packets/` (one JSON a
transcript with an opaque name, and `raters.json`: who codes which, in which order), `blind/key.csv` (which packet is which; for
nobody who codes), `removed.csv` (what was taken out), `suspected.csv` (words that may be names, for a person to look at) and
`leaks.csv` (what in the packets still tells the arms apart).
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jieba
import jieba.posseg
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML
from scipy import stats

from mi_llm import storage
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.stage import stage
from mi_llm.study import Study

REAL = "real"
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another
PHRASES = 10  # that tell most, a contrast
COMMON = 0.2  # share of packets in which a phrase must occur, so that it is more than one talk's topic


@dataclass(frozen=True)
class Rule:
    """Patterns of one kind, and what stands in the place of what they find."""

    kind: str
    replace: str
    patterns: tuple[re.Pattern[str], ...]


@cache
def rules() -> tuple[Rule, ...]:
    """The rules of `deidentify.yaml`."""
    content = YAML(typ="safe").load((resources.files(__package__) / "deidentify.yaml").read_text(encoding="utf-8"))
    return tuple(Rule(one["kind"], one["replace"], tuple(map(re.compile, one["patterns"]))) for one in content)


def deidentified(text: str, also: Sequence[str] = ()) -> tuple[str, list[tuple[str, str]]]:
    """A volley without what would name its people, places or model, nor the words of `also`; (kind, what stands there now)."""
    named = tuple(re.compile(re.escape(word)) for word in sorted(also, key=len, reverse=True))
    removed: list[tuple[str, str]] = []
    for rule in (*rules(), Rule("name", "某某", named)):
        for pattern in rule.patterns:
            removed += [(rule.kind, found.expand(rule.replace)) for found in pattern.finditer(text)]
            text = pattern.sub(rule.replace, text)
    return text, removed


def formatted(turns: Sequence[Turn]) -> list[Turn]:
    """One format for all transcripts: white space and marks of lists and bold gone, one person's neighboring turns together."""
    found: list[Turn] = []
    for turn in turns:
        text = " ".join(re.sub(r"\*\*|^\s*#+\s*|^\s*[-*•]\s+", "", turn.text, flags=re.MULTILINE).split())
        text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])", "", text)
        if found and found[-1].role == turn.role:
            found[-1] = Turn(role=turn.role, text=f"{found[-1].text}{text}")
        else:
            found.append(Turn(role=turn.role, text=text))
    return found


def suspected_names(turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
    """Words that jieba takes for persons' names, with the turn: many are none, which a person sees at a glance."""
    for number, turn in enumerate(turns, 1):
        for word, flag in jieba.posseg.cut(turn.text):
            if flag.startswith("nr") and len(word) > 1 and not word.startswith("某"):
                yield number, word


def gathered(study: Study) -> list[tuple[Dialog, dict[str, str]]]:
    """All talks with their row of the key, model by model and arm by arm, then the real sessions."""
    found = []
    for model in study.models:
        for arm in study.arms(model):
            for dialog in read_dialogs(study.folder / "simulate" / model / f"{arm}.jsonl"):
                about = {"source": model, "arm": arm, "profile": dialog.meta["profile"], "topic": dialog.meta["topic"]}
                found.append((dialog, about))
    for dialog in read_dialogs(study.folder / "translate" / "dialogs.jsonl"):
        found.append((dialog, {"source": "annomi", "arm": REAL, "profile": "", "topic": dialog.meta["topic"]}))
    return found


def names(count: int, chance: random.Random) -> list[str]:
    """So many different opaque names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(chance.choices(LETTERS, k=6))] = None
    return list(found)


def assigned(packets: Sequence[str], raters: int, overlap: float, chance: random.Random) -> dict[str, list[str]]:
    """Who codes which packet: a share of them everybody, the others dealt out; each in an order of their own."""
    drawn = chance.sample(packets, len(packets))
    shared = drawn[: round(overlap * len(drawn))]
    rest = drawn[len(shared) :]
    found = {}
    for number in range(raters):
        mine = shared + rest[number::raters]
        found[f"rater-{number + 1}"] = chance.sample(mine, len(mine))
    return found


def measures(turns: Sequence[Turn]) -> dict[str, float]:
    """What a rater could notice of a transcript without reading it."""
    said = {role: [turn.text for turn in turns if turn.role == role] for role in ("client", "counselor")}
    counselor = "".join(said["counselor"])
    openings = [text[:2] for text in said["counselor"]]
    return {
        "rounds": len(said["counselor"]),
        "characters per counselor volley": len(counselor) / max(1, len(said["counselor"])),
        "characters per client volley": len("".join(said["client"])) / max(1, len(said["client"])),
        "counselor speaks first": float(turns[0].role == "counselor"),
        "counselor speaks last": float(turns[-1].role == "counselor"),
        "question marks per counselor volley": (counselor.count("？") + counselor.count("?")) / max(1, len(said["counselor"])),
        "Latin letters": sum("a" <= character.lower() <= "z" for character in counselor) / max(1, len(counselor)),
        "volleys with the same beginning": 1 - len(set(openings)) / max(1, len(openings)),
        "repeated volleys": 1 - len(set(said["counselor"])) / max(1, len(said["counselor"])),
        "empty volleys": sum(not text for text in said["counselor"]) / max(1, len(said["counselor"])),
    }


def auc(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """How often a value of the second kind exceeds one of the first, ties half, with the two-sided p (Mann & Whitney 1947)."""
    found = stats.mannwhitneyu(second, first)
    return float(found.statistic) / (len(first) * len(second)), float(found.pvalue)


def classified(values: NDArray[np.float64], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far each packet lies on the second kind's side by all measures together: a linear discriminant that never saw it.

    Least squares on standardized measures with a ridge of one packet's weight, leaving one out (its known closed form).
    """
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread, spread, 1)
    design = np.column_stack([scaled, np.ones(len(scaled))])
    target = np.where(second, 1 / second.sum(), -1 / (~second).sum())
    ridge = np.eye(design.shape[1])
    ridge[-1, -1] = 1e-9
    hat = design @ np.linalg.solve(design.T @ design + ridge, design.T)
    fitted, own = hat @ target, np.diag(hat)
    left_out: NDArray[np.float64] = (fitted - own * target) / (1 - own)
    return left_out


def leaks(packets: dict[str, list[Turn]], key: pd.DataFrame) -> pd.DataFrame:
    """What tells arms apart, by its AUC (0.5: nothing; toward 0 or 1: much): columns contrast, kind, what, auc, p, n.

    Measures one by one, all of them together (leaving one out), and the phrases of counselors whose presence tells most.
    """
    table = pd.DataFrame([measures(packets[name]) for name in key["packet"]])
    words = [set(jieba.cut("\n".join(turn.text for turn in packets[name] if turn.role == "counselor"))) for name in key["packet"]]
    arms = key["arm"].to_numpy()
    rows: list[dict[str, Any]] = []
    for first, second in (("base", "tuned"), (REAL, "tuned")):
        one, other = arms == first, arms == second
        if one.sum() < 2 or other.sum() < 2:
            continue
        contrast, n = f"{second} against {first}", int(one.sum() + other.sum())

        def told(kind: str, what: str, values: NDArray[np.float64], first: Any = one, second: Any = other) -> dict[str, Any]:
            found, p = auc(values[first], values[second])
            return {"kind": kind, "what": what, "auc": round(found, 4), "p": round(p, 6)}

        both = one | other
        together = np.zeros(len(arms))
        together[both] = classified(table.to_numpy(dtype=float)[both], other[both])
        found = [told("all measures", "all measures together", together)]
        found += [told("measure", what, table[what].to_numpy(dtype=float)) for what in table]
        places = np.flatnonzero(both)
        known = sorted({word for place in places for word in words[place] if len(word) > 1})
        presence = {word: np.array([word in mine for mine in words], dtype=float) for word in known}
        common = [word for word in known if presence[word][both].mean() >= COMMON]
        phrases = [told("phrase", word, presence[word]) for word in common]
        found += sorted(phrases, key=lambda row: -abs(row["auc"] - 0.5))[:PHRASES]
        rows += [{"contrast": contrast, **row, "n": n} for row in found]
    return pd.DataFrame(rows, columns=["contrast", "kind", "what", "auc", "p", "n"])


def blind(study: Study) -> None:
    """Make the packets; see the module."""
    options = study.blind
    inputs = [*(study.folder / "simulate" / model for model in study.models), study.folder / "translate" / "dialogs.jsonl"]
    with stage(study, "blind", None, inputs) as out:
        chance = random.Random(study.seed_of("blind"))
        talks = gathered(study)
        chance.shuffle(talks)
        packets: dict[str, list[Turn]] = {}
        key, removed, suspected = [], [], []
        for name, (dialog, about) in zip(names(len(talks), chance), talks, strict=True):
            turns = []
            for number, turn in enumerate(formatted(dialog.turns), 1):
                text, gone = deidentified(turn.text, options.remove)
                turns.append(Turn(role=turn.role, text=text))
                removed += [{"packet": name, "turn": number, "kind": kind, "instead": instead} for kind, instead in gone]
            suspected += [{"packet": name, "turn": number, "word": word} for number, word in suspected_names(turns)]
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
        tables["leaks"] = leaks(packets, tables["key"])
        for title, table in tables.items():
            storage.write_text(out / f"{title}.csv", table.to_csv(index=False, lineterminator="\n"))
        numbers = {"packets": len(packets), "removed": len(removed), "suspected": len(suspected)}
        storage.write_json(out / "metrics.json", numbers)
