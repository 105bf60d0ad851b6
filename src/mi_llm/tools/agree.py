"""`mi-llm tool agree`: how far raters agree, on any codes (paper, Methods, Manual Evaluation).

Reads tables of codes (rater, packet, volley, code) and of ratings (rater, packet, code, rating), as the desk exports them or a
spreadsheet has them: further columns are ignored, and the codes may have any names. Writes nothing.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mi_llm import storage
from mi_llm.codebook.coding import Behavior, Global
from mi_llm.codebook.tables import CODES, RATINGS
from mi_llm.miti import reliability
from mi_llm.problem import Problem


def agreement(
    codes: pd.DataFrame,
    ratings: pd.DataFrame | None = None,
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Every measure of agreement for each pair of raters, and for all if there are more than two.

    `codes` has the columns rater, packet, volley, code (empty: coded, nothing there; several rows: several codes), `ratings`
    rater, packet, code, rating (any numbers in an order). Both may have codes of any name, and be empty. Columns of the result:
    measure, code, raters, n, value, lo, hi, agreement (the share of equal decisions), note (why a value or an interval does not
    exist). Cohen's κ and Krippendorff's α say whether two or more raters see a code in the same volleys; where nobody gave two
    codes to one volley, the rows `which code` compare the codes themselves. ICC(2,1), ICC(2,k) and Pearson's r compare counts
    per packet, and ratings; α of ratings is ordinal. Intervals are the jackknife's over packets (docs/statistics.md); fewer than
    five packets have none. Raises Problem where no two raters coded the same.
    """
    rated = pd.DataFrame(columns=RATINGS) if ratings is None else ratings
    known, names = named(codes, list(Behavior)), named(rated, list(Global))
    scale = sorted(set(rated["rating"])) if len(rated) else [1]
    table = reliability.table(codes, rated, confidence, behaviors=known, rated=names, scale=scale)
    if table.empty:
        raters = sorted({*map(str, codes["rater"]), *map(str, rated["rater"])})
        found = f"raters {', '.join(raters)}, none of whom coded the same as another" if raters else "no row"
        raise Problem("the codes", found, "a volley or packet that two raters coded", "give the tables of two raters or more")
    if len(codes) and not codes.duplicated(["rater", "packet", "volley"]).any():
        table = pd.concat([reliability.labels(codes, confidence), table], ignore_index=True)
    return table


def named(table: pd.DataFrame, standard: Sequence[str]) -> list[str]:
    """The codes of a table, those of MITI in its order first."""
    present = {str(code) for code in table["code"]} - {""}
    return [*(str(code) for code in standard if code in present), *sorted(present - set(map(str, standard)))]


def read_codes(paths: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of some CSV files as one table of codes and one of ratings; a file with a column `rating` holds ratings.

    Without a column `volley`, the packet is what is coded. Raises Problem with the file and row that are wrong.
    """
    tables: dict[str, list[pd.DataFrame]] = {"codes": [], "ratings": []}
    for path in paths:
        try:
            table = pd.read_csv(io.StringIO(storage.read_text(path)), dtype=str, keep_default_na=False, skip_blank_lines=True)
        except ValueError as error:  # pandas' own errors are of this kind
            remedy = "save the table as CSV"
            raise Problem(str(path), f"not CSV ({' '.join(str(error).split())})", "a CSV file", remedy) from None
        table = table.rename(columns=lambda name: str(name).strip().lower())
        kind = "ratings" if "rating" in table else "codes"
        if kind == "codes" and "volley" not in table:
            table["volley"] = "1"
        wanted = RATINGS if kind == "ratings" else CODES
        if missing := [name for name in wanted if name not in table]:
            found = f"the columns {', '.join(table.columns)}, without {', '.join(missing)}"
            raise Problem(str(path), found, f"the columns {', '.join(wanted)}", "rename the columns")
        table = table[wanted].apply(lambda column: column.str.strip())
        for name in ("rater", "packet"):
            empty = table.index[table[name] == ""]
            if len(empty):
                raise Problem(f"{path}, row {empty[0] + 2}", f"no {name}", f"a {name} in every row", "fill it in")
        if kind == "ratings":
            numbers = pd.to_numeric(table["rating"], errors="coerce")
            wrong = table.index[numbers.isna()]
            if len(wrong):
                found = f"the rating {table['rating'][wrong[0]]!r}"
                raise Problem(f"{path}, row {wrong[0] + 2}", found, "a number", "correct the row")
            table["rating"] = numbers
        tables[kind].append(table)
    return (
        pd.concat([pd.DataFrame(columns=CODES), *tables["codes"]], ignore_index=True),
        pd.concat([pd.DataFrame(columns=RATINGS), *tables["ratings"]], ignore_index=True),
    )
