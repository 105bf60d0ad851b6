"""The audit's page in two languages: all verdicts as squares, small pictures, the findings, and a table to filter and sort.

Made of what `audit` found. Squares, tiles and pictures are links: to a claim, `#T6-EMP-Llama`, or to a view of the table,
`#table=T6&verdict=differs` (`claims.js`). The page loads nothing and shows everything without its script.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from mi_llm import __version__
from mi_llm.audit.chinese import chinese
from mi_llm.audit.findings import Finding
from mi_llm.audit.pictures import number, picture
from mi_llm.audit.verdict import BASES, CHINESE, NEGATIVE, VERDICTS, Result
from mi_llm.frame.pages import address, environment, inline, style
from mi_llm.paper.claims import Claim, Paper
from mi_llm.study import Study

HERE = "audit/index"
ALONE = (HERE, "certificate/index")  # the pages of `./reproduce.sh audit`, which ends without a report
GROUPS = {  # where a claim stands, by its id: how views of the table name the group, and the ids that belong to it
    **{f"T{number}": rf"T{number}-.*" for number in range(1, 7)},
    "F3": r"X-bleu-.*",
    "text": r"X-(?!bleu-).*",
    "words": r"S\d+",
}
LINKS = re.compile(r"https?://[^\s;,)“”；，。）]+|\b[\w-]+\.(?:csv|md)\b", re.ASCII)
CODE = re.compile("`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """A claim as the page shows it in one language: where it stands, what it says, and the note on its verdict."""

    claim: Claim
    result: Result
    group: str
    place: str
    note: str

    @property
    def reported(self) -> str:
        """The printed number, to sort by; empty where there is none."""
        return sortable(number(self.claim.reported))

    @property
    def recomputed(self) -> str:
        """The recomputed number, to sort by."""
        return sortable(number(self.result.recomputed))

    @property
    def departure(self) -> str:
        """How far the recomputed number is from the printed one, relative to it; empty where one is missing, or 0 was printed."""
        printed, recomputed = number(self.claim.reported), number(self.result.recomputed)
        return sortable(abs(recomputed - printed) / printed if printed and recomputed is not None else None)


def sortable(value: float | None) -> str:
    """A number for the table's script; empty for None."""
    return "" if value is None else f"{value:.6g}"


def group_of(claim: Claim) -> str:
    """The group of a claim. Raises LookupError for an id that belongs to none."""
    for name, pattern in GROUPS.items():
        if re.fullmatch(pattern, claim.id):
            return name
    raise LookupError(claim.id)


def rows(paper: Paper, results: Mapping[str, Result], lang: str) -> list[Row]:
    """The claims with their verdicts, in the paper's order."""
    word = chinese if lang == "zh" else str
    shown = []
    for claim in paper.values():
        parts = claim.location.replace("/ Fig", "/ Figure").split(" / ")
        if claim.claim not in parts:
            parts.append(claim.claim)
        place = " / ".join(word(part.strip('"')) for part in parts)
        shown.append(Row(claim, results[claim.id], group_of(claim), place, word(results[claim.id].note)))
    return shown


def linked(text: str, files: Sequence[str]) -> Markup:
    """A text in which addresses, and the audit's own files, are links; what stands in backquotes is code."""
    parts, end = [], 0
    for match in LINKS.finditer(text):
        target = match[0].rstrip(".")
        if target.startswith("http") or target in files:
            parts += [escape(text[end : match.start()]), Markup('<a href="{0}">{0}</a>').format(target)]
            end = match.start() + len(target)
    return Markup(CODE.sub(r"<code>\1</code>", str(Markup("").join([*parts, escape(text[end:])]))))  # noqa: S704 — escaped above


def pages(
    study: Study,
    paper: Paper,
    results: Mapping[str, Result],
    findings: Sequence[Finding],
    *,
    tables: Mapping[str, pd.DataFrame],
    counts: Mapping[str, int],
    methods: Mapping[str, Callable[..., Any]],
) -> dict[str, str]:
    """The page in each language, by language; inputs as `audit` makes them."""
    files = [*(f"{name}.csv" for name in ("claims", "adherence_codes", *tables)), "letter.md"]
    templates = environment(__package__)
    here = resources.files(__package__)

    def page(lang: str) -> str:
        word = chinese if lang == "zh" else str
        shown = rows(paper, results, lang)
        groups = {name: [row for row in shown if row.group == name] for name in GROUPS}
        return templates.get_template("page.html.jinja").render(
            lang=lang,
            study=study,
            version=__version__,
            here=HERE,
            address=address,
            linked=lambda path: not study.from_hub or path in ALONE,
            links=partial(linked, files=files),
            word=word,
            style=style(here / "audit.css"),
            script=inline(here / "claims.js"),
            groups=groups,
            pictures={name: picture([(row.claim, row.result) for row in own]) for name, own in groups.items()},
            findings=[(finding, finding.words(lang)) for finding in findings],
            counts=counts,
            meanings=VERDICTS,
            verdict_names=CHINESE if lang == "zh" else {verdict: verdict for verdict in VERDICTS},
            bases=BASES,
            negative=NEGATIVE,
            methods={name: word(" ".join((inspect.getdoc(method) or "").split())) for name, method in methods.items()},
            tables=tables,
        )

    return {lang: page(lang) for lang in ("en", "zh")}
