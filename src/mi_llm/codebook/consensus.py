"""Consensus: where raters of one transcript differ, and what was settled (`consensus.csv`, which the desk's coordinator writes).

A row of `consensus.csv` is one behavior of a settled volley (code empty: none), or one global's settled rating (volley empty),
with the reason. Table 6 is then made by the raters' mean and by consensus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mi_llm.codebook.coding import Behavior, Global, volley
from mi_llm.codebook.tables import SCALE, Behaviors, Coding, require, rows

COLUMNS = ["packet", "volley", "code", "rating", "reason"]
RATER = "consensus"  # in the column `rater`
Item = int | Global  # a volley's number, or a global


@dataclass(frozen=True)
class Settled:
    """What was settled for one item of a transcript: a volley's behaviors or a global's rating, and why."""

    value: frozenset[Behavior] | int
    reason: str


Decisions = Mapping[tuple[str, Item], Settled]  # by packet and item


def differences(codings: Sequence[Coding]) -> list[Item]:
    """The items that the raters of one transcript see differently: volleys in order, then globals.

    Volleys count by the codebook's rule for a volley. Who did not code an item does not differ from those who did.
    """
    behaviors: dict[int, set[frozenset[Behavior]]] = {}
    ratings: dict[Global, set[int]] = {}
    for coding in codings:
        for number, seen in coding.behaviors.items():
            behaviors.setdefault(number, set()).add(volley(seen))
        for code, rating in coding.ratings.items():
            ratings.setdefault(code, set()).add(rating)
    open_volleys = [number for number in sorted(behaviors) if len(behaviors[number]) > 1]
    return [*open_volleys, *(code for code in Global if len(ratings.get(code, ())) > 1)]


def agreed(codings: Sequence[Coding], decisions: Decisions) -> list[Coding]:
    """One coding per transcript: what its raters agree on, and what was settled where they differ.

    A transcript of one rater is taken as it is; one with a difference that nobody settled is left out.
    """
    by_packet: dict[str, list[Coding]] = {}
    for coding in codings:
        by_packet.setdefault(coding.packet, []).append(coding)
    agreements = []
    for packet, together in sorted(by_packet.items()):
        differing = differences(together)
        if all((packet, item) in decisions for item in differing):
            behaviors: Behaviors = {number: volley(seen) for coding in together for number, seen in coding.behaviors.items()}
            ratings = {code: rating for coding in together for code, rating in coding.ratings.items()}
            for item in differing:
                value = decisions[packet, item].value
                if isinstance(value, int):
                    ratings[Global(str(item))] = value
                else:
                    behaviors[int(item)] = volley(value)
            agreements.append(Coding(RATER, packet, behaviors, ratings))
    return agreements


def written(decisions: Decisions) -> list[tuple[str, ...]]:
    """The rows of `consensus.csv`, by packet, volleys before globals."""
    lines: list[tuple[str, ...]] = []
    for (packet, item), settled in sorted(decisions.items(), key=lambda entry: (entry[0][0], str(entry[0][1]).zfill(9))):
        if isinstance(settled.value, int):
            lines.append((packet, "", str(item), str(settled.value), settled.reason))
        else:
            codes = sorted(map(str, settled.value)) or [""]
            lines += [(packet, str(item), code, "", settled.reason) for code in codes]
    return lines


def read(path: Path) -> dict[tuple[str, Item], Settled]:
    """The decisions of a `consensus.csv`; raises Problem with the row that is wrong."""
    codes: dict[tuple[str, Item], set[Behavior]] = {}
    decisions: dict[tuple[str, Item], Settled] = {}
    for where, (packet, number, code, rating, reason) in rows(path, COLUMNS):
        if number:
            require(number.isdecimal(), where, f"the volley {number!r}", "the number of a turn of the counselor")
            require(not code or code in list(Behavior), where, f"the code {code!r}", f"{', '.join(Behavior)}, or nothing")
            seen = codes.setdefault((packet, int(number)), set())
            seen.update([Behavior(code)] if code else [])
            decisions[packet, int(number)] = Settled(frozenset(seen), reason)
        else:
            require(code in list(Global), where, f"the code {code!r} without a volley", ", ".join(Global))
            require(rating in map(str, SCALE), where, f"the rating {rating!r}", "a whole number from 1 to 5")
            decisions[packet, Global(code)] = Settled(int(rating), reason)
    return decisions
