"""What is computed from codes once they may be seen: the export, the raters' agreement, a trainee's agreement with the gold.

A packet is *released* when everybody who codes it is done. Before that nobody, the coordinator included, sees a code of it. The
export holds the codes as given; agreement is computed after the codebook's rules for a volley.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import isnan

from mi_llm import storage
from mi_llm.apps.desk.saving import missing
from mi_llm.apps.desk.store import Desk, Held, State
from mi_llm.codebook.coding import BEHAVIOURS, Behaviour, Global, volley
from mi_llm.codebook.packets import Packet, Packets
from mi_llm.codebook.tables import Coding, tables
from mi_llm.miti.reliability import cohen

States = Mapping[Desk, State]
Volleys = Sequence[tuple[frozenset[Behaviour], frozenset[Behaviour]]]


@dataclass(frozen=True)
class Agreement:
    """Two coders' agreement on whether a volley holds a behavior; `behaviour` is None for all behaviors pooled.

    `kappa` is Cohen's, None where both decide the same of every volley, so that there is no chance to correct for; `share` the
    share of equal decisions; `seen` how often each of the two saw the behavior.
    """

    behaviour: Behaviour | None
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
    behaviours: Sequence[Agreement]
    globals: Sequence[Difference]


@dataclass(frozen=True)
class Progress:
    """How far one rater is with one packet."""

    packet: str
    coded: int
    volleys: int
    rated: int
    done: bool
    begun: bool


def covers() -> dict[Behaviour, list[Behaviour]]:
    """The behaviors that each behavior replaces within a volley by the codebook's rule, for counting in the browser."""
    pairs = {behaviour: [other for other in Behaviour if other not in volley((behaviour, other))] for behaviour in Behaviour}
    return {behaviour: covered for behaviour, covered in pairs.items() if covered}


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
    """The released packets' codes, ratings and guesses as the pipeline reads them, by the file's name, sorted."""
    finished = [(name, rater) for name in released(packets, states) for rater in packets.sharing(name)]
    codings = [coding(packets.study[name], rater, states) for name, rater in finished]
    return {f"{name}.csv": storage.table_text(table, index=False) for name, table in tables(codings).items()}


def coding(packet: Packet, rater: str, states: States) -> Coding:
    """One rater's finished coding of one packet."""
    state = states[Desk(rater, "packets", packet.packet)]
    behaviours = {number: frozenset(_codes(state, number)) for number in packet.volleys}
    return Coding(rater, packet.packet, behaviours, _ratings(state), state.get("guess", Held()).value or "")


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
    shared: dict[tuple[str, str], list[str]] = {}
    for name in released(packets, states):
        for pair in combinations(packets.sharing(name), 2):
            shared.setdefault(pair, []).append(name)
    pairs = []
    for (first, second), names in sorted(shared.items()):
        volleys, ratings = [], []
        for name in names:
            left, right = (states[Desk(rater, "packets", name)] for rater in (first, second))
            volleys += [(volley(_codes(left, number)), volley(_codes(right, number))) for number in packets.study[name].volleys]
            ratings += [(_ratings(left), _ratings(right))]
        pairs.append(Pair((first, second), len(names), len(volleys), agreements(volleys), differences(ratings)))
    return pairs


def training(packets: Packets, states: States, rater: str, names: Iterable[str]) -> Pair | None:
    """A trainee's agreement with the gold codes on finished training packets; None where none is finished."""
    volleys, ratings, count = [], [], 0
    for name in names:
        state = states.get(Desk(rater, "training", name), {})
        if state.get("done", Held()).value:
            gold = packets.gold[name]
            count += 1
            volleys += [(volley(gold.behaviours[number]), volley(_codes(state, number))) for number in gold.behaviours]
            ratings += [(gold.ratings, _ratings(state))]
    return Pair(("gold", rater), count, len(volleys), agreements(volleys), differences(ratings)) if count else None


def agreements(volleys: Volleys) -> list[Agreement]:
    """Agreement on each behavior that either coder saw, and on all behaviors pooled."""
    kinds = [entry.code for entry in BEHAVIOURS]
    table = [_agreement(code, [(code in first, code in second) for first, second in volleys]) for code in kinds]
    pooled = _agreement(None, [(code in first, code in second) for code, (first, second) in product(kinds, volleys)])
    return [row for row in table if any(row.seen)] + [pooled]


def _agreement(behaviour: Behaviour | None, decisions: Sequence[tuple[bool, bool]]) -> Agreement:
    first, second = [one_saw for one_saw, _ in decisions], [other_saw for _, other_saw in decisions]
    kappa = cohen(first, second)
    share = sum(one_saw == other_saw for one_saw, other_saw in decisions) / len(decisions)
    return Agreement(behaviour, None if isnan(kappa) else kappa, share, (sum(first), sum(second)))


def differences(ratings: Sequence[tuple[Mapping[Global, int], Mapping[Global, int]]]) -> list[Difference]:
    """For each global the mean ratings of both coders, and the shares of packets rated equal, and within one point."""
    table = []
    for code in Global:
        pairs = [(first[code], second[code]) for first, second in ratings]
        apart = Counter(abs(first - second) for first, second in pairs)
        means = (sum(first for first, _ in pairs) / len(pairs), sum(second for _, second in pairs) / len(pairs))
        table.append(Difference(code, means, apart[0] / len(pairs), (apart[0] + apart[1]) / len(pairs)))
    return table


def _codes(state: State, number: int) -> list[Behaviour]:
    return [Behaviour(code) for code in state[f"volley-{number}"].value]


def _ratings(state: State) -> dict[Global, int]:
    return {code: state[f"global-{code}"].value for code in Global}
