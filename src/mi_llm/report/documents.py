"""The documents that the report shows whole: each model's card, the data sheet, and how to cite.

Reads `finetune/<model>/adapter/README.md`, `docs/datasheet.md` and `CITATION.cff`; Markdown becomes HTML in which no raw HTML
survives.
"""

from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from mi_llm import storage
from mi_llm.study import Study

DATASHEET, CITATION = Path("docs/datasheet.md"), Path("CITATION.cff")


def html(text: str) -> Markup:
    """Markdown as HTML: without its head of metadata, headings two levels lower, tables in boxes that scroll by themselves."""
    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") else text
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    boxed = [part for number, token in enumerate(tokens) for part in box(token, number)]
    return Markup(markdown.renderer.render(boxed, markdown.options, {}))  # noqa: S704 — raw HTML is off


def box(token: Token, number: int) -> list[Token]:
    """A table's tokens inside a box, which has a numbered label for screen readers; other tokens as they are."""
    if token.type not in ("table_open", "table_close"):
        return [token]
    edge = Token("div_open" if token.nesting == 1 else "div_close", "div", token.nesting, block=True)
    if token.nesting == 1:
        edge.attrs = {"class": "wide", "tabindex": "0", "role": "region", "aria-label": f"Table {number}"}
        return [edge, token]
    return [token, edge]


def cards(study: Study) -> dict[str, Markup]:
    """The card of each tuned model."""
    return {model: html(storage.read_text(study.path("finetune", model, "adapter", "README.md"))) for model in study.tuned}


def datasheet() -> Markup:
    """The data sheet of the bundle's own data."""
    return html(storage.read_text(DATASHEET))


def bibtex(study: Study) -> str:
    """The paper and the bundle, from CITATION.cff."""
    cff = storage.read_yaml(CITATION)
    paper = cff["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    return (
        f"@article{{hu{paper['year']}mi,\n  title   = {{{paper['title']}}},\n  author  = {{{authors}}},\n"
        f"  journal = {{{paper['journal']}}},\n  volume  = {{{paper['volume']}}},\n  pages   = {{{paper['start']}}},\n"
        f"  year    = {{{paper['year']}}},\n  doi     = {{{paper['doi']}}}\n}}\n\n"
        f"@software{{mi-llm,\n  title   = {{{cff['title']}}},\n  author  = {{{{{cff['authors'][0]['name']}}}}},\n"
        f"  version = {{{cff['version']}}},\n  note    = {{study {study.name}, parameters' SHA-256 {study.sha256()}}}\n}}\n"
    )
