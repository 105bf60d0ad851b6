"""`mi-llm tool tables`: Tables 4 and 6 (paper, Manual Evaluation) for any arms, by the raters' mean and by consensus.

Reads codes as `tool code` or the desk writes them, a key that says which packet belongs to which arm, and, for Table 4, the
transcripts. Writes nothing.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.codebook import consensus
from mi_llm.codebook.coding import Behavior, Global
from mi_llm.codebook.tables import Coding
from mi_llm.dialog import Dialog
from mi_llm.miti.summary import ABOUT, INDICATORS, table_4, table_6, transcripts
from mi_llm.problem import Problem
from mi_llm.statistics import FEWEST, why_none
from mi_llm.tools.agree import read_codes
from mi_llm.tools.code import both

ANY = ["packet", "arm"]  # columns that a key must have


def arm_tables(
    codes: pd.DataFrame,
    ratings: pd.DataFrame,
    key: pd.DataFrame,
    dialogs: Sequence[Dialog] = (),
    decisions: consensus.Decisions | None = None,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 1,
) -> dict[str, pd.DataFrame]:
    """Table 6, with `decisions` also by consensus, and with `dialogs` Table 4; by their names.

    `codes` and `ratings` are as `codes.csv` and `globals.csv` have them, with MITI's codes; `key` has the columns packet, arm,
    and perhaps source (a model's name, for instance). Table 6: one row per indicator and arm: n transcripts, mean, sample SD,
    bootstrap-t interval of the mean over transcripts (docs/statistics.md) or, of fewer than five transcripts and of too like
    ones, all values and a note, count per round, ratio of the summed counts. Table 4: rounds per dialog and
    characters per volley. By consensus a transcript with an open difference is left out, so n may be smaller. Raises Problem for
    an unknown code, and where the key names no coded packet.
    """
    about = key.reindex(columns=ABOUT, fill_value="").fillna("").astype(str)
    known = set(codes["packet"])
    coded = about[about["packet"].isin(known)]
    if coded.empty:
        found = f"packets {', '.join(about['packet'][:3])}, …; coded are {', '.join(sorted(known)[:3])}, …"
        raise Problem("the key", found, "the packets that were coded", "correct the key's column packet")
    codings = codings_of(codes, ratings)

    def sixth(rows: Sequence[Coding]) -> pd.DataFrame:
        measured = transcripts(*both(rows), coded)
        table = table_6(measured, resamples=resamples, confidence=confidence, seed_of=lambda *purpose: seed)
        whys = [why_none(n, "transcripts") if missing else "" for n, missing in zip(table["n"], table["lo"].isna(), strict=True)]
        table.insert(table.columns.get_loc("values") + 1, "note", whys)
        return table

    made = {"Table 6": sixth(codings)}
    if decisions is not None:
        made["Table 6 by consensus"] = sixth(consensus.agreed(codings, decisions))
    turns = {dialog.id: dialog.turns for dialog in dialogs}
    if listed := about["packet"].isin(list(turns)).to_numpy(dtype=bool).nonzero()[0].tolist():
        made["Table 4"] = table_4(about.iloc[listed], turns)
    return made


def codings_of(codes: pd.DataFrame, ratings: pd.DataFrame) -> list[Coding]:
    """The rows of `codes.csv` and `globals.csv` as one coding per rater and packet; raises Problem for unknown codes."""
    for table, allowed in ((codes, ["", *Behavior]), (ratings, [*Global])):
        if unknown := sorted(set(table["code"]) - set(allowed)):
            expected = f"MITI's: {', '.join(filter(None, allowed))}"
            raise Problem("the codes", f"the code {unknown[0]!r}", expected, "rename the codes, or use `mi-llm tool agree`")
    rated: dict[tuple[str, str], dict[Global, int]] = {}
    for row in ratings.itertuples():
        rated.setdefault((row.rater, row.packet), {})[Global(row.code)] = int(row.rating)
    seen: dict[tuple[str, str], dict[int, set[Behavior]]] = {}
    for row in codes.itertuples():
        volley = seen.setdefault((row.rater, row.packet), {}).setdefault(int(row.volley), set())
        volley.update([Behavior(row.code)] if row.code else [])
    return [
        Coding(*coded, {number: frozenset(behaviors) for number, behaviors in volleys.items()}, rated.get(coded, {}))
        for coded, volleys in sorted(seen.items())
    ]


def read_coded(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, consensus.Decisions | None]:
    """Codes, ratings and decisions of a folder with `codes.csv` and, where they exist, `globals.csv` and `consensus.csv`.

    A file stands for itself.
    """
    folder = path if path.is_dir() else path.parent
    files = [folder / "codes.csv", *filter(Path.is_file, [folder / "globals.csv"])] if path.is_dir() else [path]
    settled = folder / "consensus.csv"
    decisions: Mapping[tuple[str, consensus.Item], consensus.Settled] | None = None
    if path.is_dir() and settled.is_file():
        decisions = consensus.read(settled)
    return *read_codes(files), decisions


def read_key(path: Path) -> pd.DataFrame:
    """Which packet belongs to which arm; raises Problem without the columns packet and arm."""
    key = pd.read_csv(io.StringIO(storage.read_text(path)), dtype=str, keep_default_na=False)
    if missing := [name for name in ANY if name not in key]:
        found = f"the columns {', '.join(key.columns)}, without {', '.join(missing)}"
        raise Problem(str(path), found, "the columns packet, arm, and perhaps source", "add the column")
    return key


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Table 6 as the paper prints it, an indicator per row, an arm per column: `mean (SD) [interval]`, or a few values."""

    def cell(row: Any) -> str:
        parts = [f"{row.mean:.2f}", "" if pd.isna(row.sd) else f"({row.sd:.2f})"]
        if not pd.isna(row.lo):
            parts.append(f"[{row.lo:.2f}, {row.hi:.2f}]")
        elif 1 < row.n < FEWEST:
            parts.append(f"of {row.values}")
        return " ".join(filter(None, parts))

    columns: dict[str, dict[str, str]] = {}
    for (source, arm), rows in table.groupby(["source", "arm"], sort=False):
        cells = {row.indicator: cell(row) for row in rows.itertuples()}
        columns[f"{source} {arm}".strip() + f", n = {rows['n'].max()}"] = cells
    return pd.DataFrame(columns).reindex(list(INDICATORS)).fillna("–").rename_axis("indicator").reset_index()
