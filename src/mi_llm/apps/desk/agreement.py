"""What is computed from codes once they may be seen: the export, the raters' agreement, MITI's summary scores, and how far a
trainee agrees with the gold.

A packet is *released* when everybody who codes it is done. Before that nobody, the coordinator included, sees a code of it. The
export holds the codes as given; agreement is computed after the codebook's rules for a volley.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import isnan
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.apps.desk import settling
from mi_llm.apps.desk.saving import missing
from mi_llm.apps.desk.store import Desk, Held, State
from mi_llm.codebook import consensus
from mi_llm.codebook.coding import BEHAVIORS, THRESHOLDS, Behavior, Global, volley
from mi_llm.codebook.packets import Packet, Packets
from mi_llm.codebook.tables import Coding, tables
from mi_llm.miti.reliability import cohen, table
from mi_llm.miti.summary import transcripts

States = Mapping[Desk, State]
Volleys = Sequence[tuple[frozenset[Behavior], frozenset[Behavior]]]


@dataclass(frozen=True)
class Agreement:
    """Two coders' agreement on whether a volley holds a behavior; `behavior` is None for all behaviors pooled.

    `kappa` is Cohen's, None where both decide the same of every volley, so that there is no chance to correct for; `share` the
    share of equal decisions; `seen` how often each of the two saw the behavior.
    """

    behavior: Behavior | None
    kappa: float | None
    share: float
    seen: tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """Two coders' mean ratings of a global, and the shares of packets that they rated equal, and within one point."""

    code: Global
    ratings: tuple[float, float]
    equal: float
    within_one: float


@dataclass(frozen=True)
class Pair:
    """Two coders' agreement on the packets that both finished."""

    raters: tuple[str, str]
    packets: int
    volleys: int
    behaviors: Sequence[Agreement]
    globals: Sequence[Difference]
    icc: Mapping[str, float] = field(default_factory=dict)  # ICC(2,1) of counts and ratings, by code, where it exists


@dataclass(frozen=True)
class Progress:
    """How far one rater is with one packet."""

    packet: str
    coded: int
    volleys: int
    rated: int
    done: bool
    begun: bool


def covers() -> dict[Behavior, list[Behavior]]:
    """The behaviors that each behavior replaces within a volley by the codebook's rule, for counting in the browser."""
    pairs = {behavior: [other for other in Behavior if other not in volley((behavior, other))] for behavior in Behavior}
    return {behavior: covered for behavior, covered in pairs.items() if covered}


def progress(packet: Packet, desk: Desk, state: State) -> Progress:
    """How far a rater is with a packet."""
    needed = set(missing(packet, desk, state))
    return Progress(
        packet.packet,
        sum(f"volley-{number}" not in needed for number in packet.volleys),
        len(packet.volleys),
        sum(f"global-{code}" not in needed for code in Global),
        bool(state.get("done", Held()).value),
        bool(state),
    )


def released(packets: Packets, states: States) -> list[str]:
    """The packets whose raters are all done."""
    return [
        name
        for name in sorted(packets.study)
        if all(states.get(Desk(rater, "packets", name), {}).get("done", Held()).value for rater in packets.sharing(name))
    ]


def export(packets: Packets, states: States) -> dict[str, str]:
    """What the pipeline reads of the released packets, by the file's name: codes, ratings and guesses, and what was settled."""
    codings = finished(packets, states)
    given = [coding for together in codings.values() for coding in together]
    files = {f"{name}.csv": storage.table_text(table, index=False) for name, table in tables(given).items()}
    rows = consensus.written(settling.decisions(codings, states))
    return files | {"consensus.csv": storage.csv_text(consensus.COLUMNS, rows)}


def finished(packets: Packets, states: States) -> dict[str, list[Coding]]:
    """The codings of each released packet, as given."""
    return {
        name: [coding(packets.study[name], rater, states) for rater in packets.sharing(name)]
        for name in released(packets, states)
    }


def counted(coding: Coding) -> Coding:
    """A coding by the codebook's rule for a volley."""
    return replace(coding, behaviors={number: volley(seen) for number, seen in coding.behaviors.items()})


def scores(packets: Packets, states: States) -> list[dict[str, Any]]:
    """MITI's summary scores of each released packet, of its raters' means: packet, and by code a number or None."""
    codings = [counted(coding) for together in finished(packets, states).values() for coding in together]
    if not codings:
        return []
    made = tables(codings)
    key = pd.DataFrame({"packet": sorted({coding.packet for coding in codings}), "source": "", "arm": "", "profile": ""})
    rows = transcripts(made["codes"], made["globals"], key).to_dict("records")
    return [
        {"packet": row["packet"]} | {code: None if isnan(row[code]) else float(row[code]) for code in THRESHOLDS} for row in rows
    ]


def locked(packets: Packets, states: States, rater: str) -> bool:
    """Whether a rater, who must train first, still has exercises to finish; whoever has begun a packet may go on."""
    begun = any(states.get(Desk(rater, "packets", name)) for name in packets.raters[rater])
    return not begun and not all(
        states.get(Desk(rater, "training", name), {}).get("done", Held()).value for name in packets.training
    )


def coding(packet: Packet, rater: str, states: States) -> Coding:
    """One rater's finished coding of one packet."""
    state = states[Desk(rater, "packets", packet.packet)]
    behaviors = {number: frozenset(codes_of(state, number)) for number in packet.volleys}
    return Coding(rater, packet.packet, behaviors, _ratings(state), state.get("guess", Held()).value or "")


def notes(packets: Packets, states: States) -> list[tuple[str, str, str]]:
    """Raters' notes on released packets: packet, rater, text."""
    return [
        (name, rater, note)
        for name in released(packets, states)
        for rater in packets.sharing(name)
        if (note := states[Desk(rater, "packets", name)].get("note", Held()).value)
    ]


def reliability(packets: Packets, states: States) -> list[Pair]:
    """The agreement of every two raters who share released packets."""
    shared: dict[tuple[str, str], list[tuple[Coding, Coding]]] = {}
    for codings in finished(packets, states).values():
        for first, second in combinations(map(counted, codings), 2):
            shared.setdefault((first.rater, second.rater), []).append((first, second))
    pairs = []
    for raters, both in sorted(shared.items()):
        volleys = [(first.behaviors[number], second.behaviors[number]) for first, second in both for number in first.behaviors]
        ratings = [(first.ratings, second.ratings) for first, second in both]
        icc = iccs([coding for pair in both for coding in pair])
        pairs.append(Pair(raters, len(both), len(volleys), agreements(volleys), differences(ratings), icc))
    return pairs


def iccs(codings: Sequence[Coding]) -> dict[str, float]:
    """ICC(2,1) of each behavior's count and each global's rating, where it exists; the export has what intervals need."""
    made = tables(codings)
    measures = table(made["codes"], made["globals"])
    single = measures[(measures["measure"] == "ICC(2,1)") & measures["value"].notna()]
    return dict(zip(single["code"], single["value"], strict=True))


def training(packets: Packets, states: States, rater: str, names: Iterable[str]) -> Pair | None:
    """A trainee's agreement with the gold codes on finished training packets; None where none is finished."""
    volleys, ratings, count = [], [], 0
    for name in names:
        state = states.get(Desk(rater, "training", name), {})
        if state.get("done", Held()).value:
            gold = packets.gold[name]
            count += 1
            volleys += [(volley(gold.behaviors[number]), volley(codes_of(state, number))) for number in gold.behaviors]
            ratings += [(gold.ratings, _ratings(state))]
    return Pair(("gold", rater), count, len(volleys), agreements(volleys), differences(ratings)) if count else None


def agreements(volleys: Volleys) -> list[Agreement]:
    """Agreement on each behavior that either coder saw, and on all behaviors pooled."""
    kinds = [entry.code for entry in BEHAVIORS]
    rows = [_agreement(code, [(code in first, code in second) for first, second in volleys]) for code in kinds]
    pooled = _agreement(None, [(code in first, code in second) for code, (first, second) in product(kinds, volleys)])
    return [row for row in rows if any(row.seen)] + [pooled]


def _agreement(behavior: Behavior | None, decisions: Sequence[tuple[bool, bool]]) -> Agreement:
    first, second = [one_saw for one_saw, _ in decisions], [other_saw for _, other_saw in decisions]
    kappa = cohen(first, second)
    share = sum(one_saw == other_saw for one_saw, other_saw in decisions) / len(decisions)
    return Agreement(behavior, None if isnan(kappa) else kappa, share, (sum(first), sum(second)))


def differences(ratings: Sequence[tuple[Mapping[Global, int], Mapping[Global, int]]]) -> list[Difference]:
    """For each global the mean ratings of both coders, and the shares of packets rated equal, and within one point."""
    rows = []
    for code in Global:
        pairs = [(first[code], second[code]) for first, second in ratings]
        apart = Counter(abs(first - second) for first, second in pairs)
        means = (sum(first for first, _ in pairs) / len(pairs), sum(second for _, second in pairs) / len(pairs))
        rows.append(Difference(code, means, apart[0] / len(pairs), (apart[0] + apart[1]) / len(pairs)))
    return rows


def codes_of(state: State, number: int) -> list[Behavior]:
    """What was given to a coded volley."""
    return [Behavior(code) for code in state[f"volley-{number}"].value]


def _ratings(state: State) -> dict[Global, int]:
    return {code: state[f"global-{code}"].value for code in Global}
