"""How the single tools show a table: on the terminal, as CSV, or as JSON."""

import json
from typing import Literal

import pandas as pd

from mi_llm import storage
from mi_llm.problem import printable

Form = Literal["table", "csv", "json"]


def shown(tables: dict[str, pd.DataFrame], form: Form) -> str:
    """Some tables, by their titles, as text.

    As CSV one below the other with an empty line between; as JSON a list of rows, or, of several tables, an object of such lists.
    A number that does not exist is `–` on the terminal, empty in CSV, and null in JSON.
    """
    if form == "csv":
        return "\n".join(storage.table_text(table, index=False) for table in tables.values())
    if form == "json":
        rows = {title: json.loads(table.to_json(orient="records", force_ascii=False)) for title, table in tables.items()}
        return json.dumps(rows if len(rows) > 1 else next(iter(rows.values())), ensure_ascii=False, indent=2) + "\n"
    with pd.option_context("display.unicode.east_asian_width", True, "display.width", None):
        parts = [f"{title}\n\n{text(table)}\n" for title, table in tables.items()]
    return printable("\n".join(parts))


def text(table: pd.DataFrame) -> str:
    """A table with its columns aligned; numbers to at most three decimals."""
    if table.empty:
        return "(no row)"
    return str(table.to_string(index=False, na_rep="–", float_format=lambda value: f"{round(value, 3) + 0:g}"))
