"""The draft of a letter to the paper's authors, made of the findings: `templates/letter.md.jinja`, written to `audit/letter.md`.

The committed `docs/letter-to-the-authors.md` is what this gives on the public files; a test holds the two equal.
"""

import re
import textwrap
from collections.abc import Sequence

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from mi_llm.audit.findings import Finding

WIDTH = 118  # characters of a line


def letter(findings: Sequence[Finding], table: pd.DataFrame) -> str:
    """The letter in Markdown, its paragraphs wrapped; `table` has the verdicts (`claims.csv`)."""
    environment = Environment(  # noqa: S701 — Markdown, not HTML
        loader=PackageLoader("mi_llm.audit"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    data = table[table["basis"] == "data"]
    text = environment.get_template("letter.md.jinja").render(
        findings=[(finding, finding.words("en")) for finding in findings],
        claims=len(table),
        reproduced=int((table["verdict"] == "reproduced").sum()),
        from_data=int((data["verdict"] == "reproduced").sum()),
    )
    return "\n\n".join(map(wrapped, re.split(r"\n{2,}", text.strip()))) + "\n"


def wrapped(paragraph: str) -> str:
    """A paragraph in lines of at most `WIDTH` characters; a heading stays one line, and so does each item of a list."""
    if paragraph.startswith("#"):
        return paragraph
    lines = re.split(r"\n(?=- )", paragraph)
    indents = ["  " if line.startswith("- ") else "> " if line.startswith("> ") else "" for line in lines]
    return "\n".join(
        textwrap.fill(" ".join(line.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line, indent in zip(lines, indents, strict=True)
    )
