"""The documents that the report shows whole: each model's card, the data sheet, and how to cite.

Reads `finetune/<model>/adapter/README.md`, `docs/datasheet.md` and `CITATION.cff`; Markdown becomes HTML in which no raw HTML
survives. Cards and data sheet are in English; the Chinese pages say their sentences in Chinese, by `documents_zh.yaml`, so that
a fact has one home.
"""

import re
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from mi_llm import storage
from mi_llm.report.chinese import chinese
from mi_llm.study import Study

DATASHEET, CITATION = Path("docs/datasheet.md"), Path("CITATION.cff")
TABLE = {"en": "Table", "zh": "表格"}


def html(text: str, lang: str) -> Markup:
    """Markdown as HTML: without its head of metadata, headings two levels lower, tables in boxes that scroll by themselves.

    In Chinese, a paragraph, heading or cell with a sentence that `documents_zh.yaml` does not know stays English, marked as such.
    """
    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") else text
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    for opening, token in pairwise(tokens if lang == "zh" else []):
        if token.type == "inline" and (words := in_chinese(" ".join(token.content.split()))) is not None:
            token.children = markdown.parseInline(words)[0].children
        elif token.type == "inline":
            opening.attrSet("lang", "en")
    boxed = [part for number, token in enumerate(tokens) for part in box(token, f"{TABLE[lang]} {number}")]
    return Markup(markdown.renderer.render(boxed, markdown.options, {}))  # noqa: S704 — raw HTML is off


def box(token: Token, label: str) -> list[Token]:
    """A table's tokens inside a box, which has a label for screen readers; other tokens as they are."""
    if token.type not in ("table_open", "table_close"):
        return [token]
    edge = Token("div_open" if token.nesting == 1 else "div_close", "div", token.nesting, block=True)
    if token.nesting == 1:
        edge.attrs = {"class": "wide", "tabindex": "0", "role": "region", "aria-label": label}
        return [edge, token]
    return [token, edge]


@cache
def sentences() -> list[tuple[re.Pattern[str], str]]:
    """The documents' sentences: a pattern of each in English, and what it is in Chinese."""
    return [
        (re.compile(english), said) for english, said in storage.read_yaml(resources.files(__package__) / "documents_zh.yaml")
    ]


def in_chinese(text: str) -> str | None:
    """A paragraph, heading or cell in Chinese; None where it has a sentence that `documents_zh.yaml` does not know."""
    whole, rest = "", text
    while rest:
        match, said = next(((match, said) for english, said in sentences() if (match := english.match(rest))), (None, ""))
        if match is None:
            return None if " " in text else text  # a word is a name
        whole += said.format(*map(chinese, match.groups()))
        rest = rest[match.end() :].lstrip()
    return whole


def cards(study: Study, lang: str) -> dict[str, Markup]:
    """The card of each tuned model, in a language."""
    texts = {model: storage.read_text(study.path("finetune", model, "adapter", "README.md")) for model in study.tuned}
    return {model: html(text, lang) for model, text in texts.items()}


def datasheet(lang: str) -> Markup:
    """The data sheet of the bundle's own data, in a language."""
    return html(storage.read_text(DATASHEET), lang)


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
