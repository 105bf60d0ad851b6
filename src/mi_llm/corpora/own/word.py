"""Word files: paragraphs are lines; tables of speaker and text are read as tables."""

import docx
from docx.table import Table

from mi_llm.corpora.files import File, office
from mi_llm.corpora.own.labeled import Page, lines_of
from mi_llm.corpora.own.tables import Row
from mi_llm.problem import Problem


def parts(file: File) -> tuple[Page, list[list[Row]]]:
    """The paragraphs as a page, and the rows of each table."""
    try:
        content = list(docx.Document(office(file)).iter_inner_content())
    except Problem:
        raise
    except Exception as error:  # python-docx raises whatever its parsers raise
        fault = f"not a Word file ({type(error).__name__})"
        raise Problem(file.name, fault, "a Word file (.docx)", "save it again as .docx, or as text") from None
    paragraphs: list[tuple[str, str]] = []
    tables: list[list[Row]] = []
    for number, block in enumerate(content, 1):
        if isinstance(block, Table):
            title = f"{file.name}, table {len(tables) + 1}"
            tables.append([(f"{title}, row {at}", [cell.text for cell in row.cells]) for at, row in enumerate(block.rows, 1)])
        else:
            paragraphs.append((f"{file.name}, paragraph {number}", block.text))
    return lines_of(paragraphs, file.name), tables
