"""Packets of one's own transcripts, without a study: anonymous, dealt out to raters, some coded by all, gold ones by everybody.

Reads transcripts, and gold codes where there are any. Writes into the desk's folder what stage `blind` writes: `packets/`, and
beside them `key.csv` (which packet is which transcript; not for raters), `removed.csv` and `suspected.csv`; and `gold.csv`, the
gold codes by packet. Packets that are there already stay: whoever has coded one must find it again.
"""

import csv
import hashlib
import io
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_llm import storage
from mi_llm.codebook.packets import COORDINATOR, hidden_gold
from mi_llm.codebook.tables import CODES, Behaviors
from mi_llm.corpora.own.understand import read_transcripts
from mi_llm.dialog import Turn
from mi_llm.miti import blind
from mi_llm.problem import Problem

GOLD = "gold.csv"
KEY = ["packet", "transcript", "sha256"]
Transcripts = Mapping[str, Sequence[Turn]]


def prepare(
    transcripts: Path, data: Path, raters: Sequence[str], overlap: float, gold: Path | None = None, **settings: Any
) -> Path:
    """Make the packets of some transcripts in `data/packets`, or find them made before; returns their folder.

    `overlap` is the share that all raters code; transcripts with gold codes are coded by all as well, and nothing shows which
    they are; `settings` are those of `read_transcripts`. Raises Problem for a transcript that no reader understands, for fewer
    than one rater, and where the desk was made for other transcripts.
    """
    dialogs, repairs = read_transcripts(transcripts, **settings)
    turns = {dialog.id: blind.formatted(dialog.turns) for dialog in dialogs}
    codable = {name: said for name, said in turns.items() if any(turn.role == "counselor" for turn in said)}
    for name in turns.keys() - codable.keys():
        print(f"left out: {name}, in which no counselor speaks")
    folder, key = data / "packets", data / "key.csv"
    if key.exists():
        check_same(key, codable)
        return folder
    if not raters or len(set(raters)) < len(raters) or COORDINATOR in raters:
        found = f"the raters {', '.join(raters) or 'nobody'}"
        raise Problem("--raters", found, "different names, separated by commas", "name them, for instance --raters A,B")
    golden = hidden_gold(gold, codable) if gold else {}
    chance = random.Random(secrets.randbits(128))
    order = chance.sample(list(codable), len(codable))
    packets = dict(zip(order, blind.names(len(order), chance), strict=True))
    removed: list[tuple[object, ...]] = []
    suspected: list[tuple[object, ...]] = []
    for transcript, packet in packets.items():
        said, taken_out = blind.anonymous(codable[transcript])
        removed += [(packet, *row) for row in taken_out]
        suspected += [(packet, *row) for row in blind.suspected_names(said)]
        content = {"packet": packet, "turns": [turn.model_dump() for turn in said], "guess": False}
        storage.write_json(folder / f"{packet}.json", content)
    shared = [packets[transcript] for transcript in golden]
    dealt = blind.assigned([name for name in packets.values() if name not in shared], len(raters), overlap, chance)
    lists = {
        rater: chance.sample([*own, *shared], len(own) + len(shared)) for rater, own in zip(raters, dealt.values(), strict=True)
    }
    storage.write_json(folder / "raters.json", lists)
    storage.write_text(data / "removed.csv", storage.csv_text(["packet", "turn", "kind", "instead"], removed))
    storage.write_text(data / "suspected.csv", storage.csv_text(["packet", "turn", "word"], suspected))
    if golden:
        rows = [("gold", packets[name], number, code) for name, seen in golden.items() for number, code in listed(seen)]
        storage.write_text(data / GOLD, storage.csv_text(CODES, rows))
    storage.write_text(key, storage.csv_text(KEY, [(packets[name], name, digest(codable[name])) for name in packets]))
    both = sum(all(name in own for own in lists.values()) for name in packets.values())
    repaired = sum(repairs.counts.values())
    print(f"{len(packets)} packets of {transcripts} ({repaired} repairs), {both} of them for all {len(raters)} raters: {folder}")
    print(f"Look at {data / 'suspected.csv'}: {len(suspected)} words in them may be names of persons.")
    return folder


def listed(seen: Behaviors) -> list[tuple[int, str]]:
    """The rows of a coding: volley and code, empty where there is nothing to code."""
    return [(number, code) for number, codes in sorted(seen.items()) for code in sorted(map(str, codes)) or [""]]


def digest(turns: Sequence[Turn]) -> str:
    """SHA-256 of a transcript's turns."""
    return hashlib.sha256(storage.dump([turn.model_dump() for turn in turns]).encode()).hexdigest()


def check_same(key: Path, transcripts: Transcripts) -> None:
    """Refuse other transcripts than those that the packets were made of."""
    known = {row["transcript"]: row["sha256"] for row in csv.DictReader(io.StringIO(storage.read_text(key)))}
    # a name that a spreadsheet would take for a formula stands there with an apostrophe
    present = {str(storage.no_formula(name)): digest(turns) for name, turns in transcripts.items()}
    differing = sorted(known.items() ^ present.items())
    if differing:
        found = f"{differing[0][0]} is new, gone, or changed"
        expected = f"the {len(known)} transcripts that {key.parent / 'packets'} was made of"
        raise Problem(str(key), found, expected, "restore them, or open a new desk with another --data")
