"""Drift: whether agreement falls while the raters code, by week, in the order of finishing, and with hidden gold codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from operator import itemgetter

from mi_llm.apps.desk import agreement
from mi_llm.apps.desk.agreement import States, Volleys
from mi_llm.apps.desk.store import Desk, Held
from mi_llm.codebook.coding import volley
from mi_llm.codebook.packets import Packets

KAPPA = 0.6  # agreement below it is a warning, unless the coordinator names another
BLOCK = 5  # packets in a row whose agreement is shown together
Dated = Mapping[tuple[str, str], list[tuple[str, Volleys]]]  # by two coders: when a packet was finished, and their codes of it


@dataclass(frozen=True)
class Span:
    """Two coders' agreement on all behaviors of some packets: those of a week, or some in the order they were finished.

    `when` is an ISO week, or the first and last place in that order. `kappa` is None where both decide the same of everything.
    """

    raters: tuple[str, str]
    when: str
    packets: int
    volleys: int
    kappa: float | None
    share: float


@dataclass(frozen=True)
class Drift:
    """How agreement changes: by week and in the order of finishing, between raters and with hidden gold codes."""

    weeks: Sequence[Span]
    order: Sequence[Span]
    gold: Sequence[Span]

    def below(self, threshold: float) -> list[Span]:
        """The spans whose κ is below a threshold."""
        spans = (*self.weeks, *self.order, *self.gold)
        return [span for span in spans if span.kappa is not None and span.kappa < threshold]


def drift(packets: Packets, states: States, times: Mapping[tuple[str, str], str]) -> Drift:
    """How far two raters of a packet agree, and each with hidden gold codes, by week and in the order of finishing.

    A packet of two raters belongs to the moment when the later one finished; `times` holds the moments (ISO, UTC) by rater and
    packet. Gold codes are compared as soon as a rater has finished a packet.
    """
    pairs: dict[tuple[str, str], list[tuple[str, Volleys]]] = {}
    for name, codings in agreement.finished(packets, states).items():
        for first, second in combinations(map(agreement.counted, codings), 2):
            together = [(first.behaviors[number], second.behaviors[number]) for number in first.behaviors]
            moment = max(times[first.rater, name], times[second.rater, name])
            pairs.setdefault((first.rater, second.rater), []).append((moment, together))
    with_gold: dict[tuple[str, str], list[tuple[str, Volleys]]] = {}
    for name, gold in packets.hidden.items():
        for rater in packets.sharing(name):
            state = states.get(Desk(rater, "packets", name), {})
            if state.get("done", Held()).value:
                together = [(volley(gold[number]), volley(agreement.codes_of(state, number))) for number in gold]
                with_gold.setdefault(("gold", rater), []).append((times[rater, name], together))
    return Drift(_weeks(pairs), _places(pairs), _weeks(with_gold))


def _weeks(pairs: Dated) -> list[Span]:
    spans = []
    for raters, coded in sorted(pairs.items()):
        weeks: dict[str, list[Volleys]] = {}
        for moment, together in sorted(coded, key=itemgetter(0)):
            year, week, _ = datetime.fromisoformat(moment).isocalendar()
            weeks.setdefault(f"{year}-W{week:02}", []).append(together)
        spans += [_span(raters, week, parts) for week, parts in weeks.items()]
    return spans


def _places(pairs: Dated) -> list[Span]:
    spans = []
    for raters, coded in sorted(pairs.items()):
        parts = [together for _, together in sorted(coded, key=itemgetter(0))]
        for start in range(0, len(parts), BLOCK):
            block = parts[start : start + BLOCK]
            spans.append(_span(raters, f"{start + 1}–{start + len(block)}", block))
    return spans


def _span(raters: tuple[str, str], when: str, parts: Sequence[Volleys]) -> Span:
    pooled = agreement.agreements([pair for part in parts for pair in part])[-1]
    return Span(raters, when, len(parts), sum(map(len, parts)), pooled.kappa, pooled.share)
