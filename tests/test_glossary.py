"""What people read keeps to docs/glossary.md: one term for one thing, American spelling, plain words, short lines."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from repository import PAGES, ROOT
from ruamel.yaml import YAML

GLOSSARY = ROOT / "docs/glossary.md"
STUDIES = [ROOT, ROOT / "mini", ROOT / "mini-en", ROOT / "released", ROOT / "small"]
KINDS = (".py", ".yaml", ".jinja", ".js", ".css", ".csv")
READ = [
    *PAGES,
    *(folder / name for folder in STUDIES for name in ("params.yaml", "dvc.yaml", "publish.yaml")),
    *sorted(
        path
        for path in (ROOT / "src/mi_llm").rglob("*")
        if path.suffix in KINDS and path.name != "packages.csv" and "prompts" not in path.parts
    ),
    *(ROOT / name for name in ("reproduce.sh", "setup.sh", "Makefile", ".env.example", "licenses.yaml", "pins.yaml")),
    *(ROOT / name for name in ("pyproject.toml", "CITATION.cff", "Dockerfile", "docker-compose.yml", "docker-compose.gpu.yml")),
    *(page for folder in STUDIES for page in sorted(folder.glob("people/*/README.md"))),
]
DOCUMENTS = [path for path in READ if path.suffix == ".md"]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@cache
def tables() -> dict[str, list[dict[str, str]]]:
    """The rows of each table of the glossary, by the heading above it."""
    found: dict[str, list[dict[str, str]]] = {}
    heading = ""
    columns: list[str] = []
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading, columns = line.removeprefix("## "), []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not columns:
                columns = cells
            elif set("".join(cells)) != {"-"}:
                found.setdefault(heading, []).append(dict(zip(columns, cells, strict=True)))
    return found


@cache
def avoided() -> tuple[str, ...]:
    """Every word that the glossary forbids."""
    cells = [row[column] for rows in tables().values() for row in rows for column in ("not", "不用") if column in row]
    return tuple(word for cell in cells for word in map(str.strip, cell.split(",")) if word)


@cache
def pattern() -> re.Pattern[str]:
    """A pattern of all forbidden words: Chinese ones anywhere, others as whole words."""
    words = sorted(avoided(), key=len, reverse=True)
    return re.compile("|".join(re.escape(w) if CHINESE.search(w) else rf"\b{re.escape(w)}\b" for w in words), re.IGNORECASE)


def prose(text: str) -> str:
    """The text without code, web addresses and file names."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|\bhttps?://\S+|\]\([^)]*\)|[\w./-]+\.(?:csv|json|xlsx|txt|md|yaml|py)\b", " ", text)


def scalars(node: Any) -> Iterator[str]:
    """The texts among the values of a YAML document."""
    if isinstance(node, dict):
        for value in node.values():
            yield from scalars(value)
    elif isinstance(node, list):
        for value in node:
            yield from scalars(value)
    elif isinstance(node, str):
        yield node


def template(text: str) -> str:
    """The words of a Jinja template: comments, text outside tags, and quoted sentences inside them."""
    inside = [said for tag in re.findall(r"\{[%{].*?[%}]\}", text, re.DOTALL) for said in QUOTED.findall(tag)]
    outside = re.sub(r"<style>.*?</style>|\{[%{].*?[%}]\}|<[^>]*>", " ", text, flags=re.DOTALL)
    return "\n".join([outside, *filter(sentence, inside)])


def sentence(text: str) -> bool:
    """Whether a string is for people: an identifier has no space in it."""
    return " " in text.strip() or bool(CHINESE.search(text))


def read_by_people(path: Path) -> str:
    """The part of a file that people read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        nodes = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        return prose("\n".join(filter(sentence, (value for value in nodes if isinstance(value, str)))))
    if path.suffix == ".yaml":
        comments = re.findall(r"(?:^|\s)#.*", text)
        values = [template(value) for value in scalars(YAML(typ="safe").load(text)) if sentence(value)]
        return prose("\n".join([*comments, *values]))
    if path.suffix == ".jinja":
        return prose(template(text))
    if path.suffix == ".js":
        return prose("\n".join([*re.findall(r"//.*", text), *filter(sentence, QUOTED.findall(text))]))
    if path.suffix == ".css":
        return prose("\n".join(re.findall(r"/\*.*?\*/", text, re.DOTALL)))
    return prose(text)


def exceptions(path: Path) -> set[str]:
    name = path.relative_to(ROOT).as_posix()
    return {row["word"].lower() for row in tables()["Exceptions"] if row["file"] == name}


@pytest.mark.parametrize("path", READ, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_people_read_uses_the_glossarys_terms(path: Path) -> None:
    allowed = exceptions(path)
    if "*" in allowed:
        return
    text = read_by_people(path)
    found = {match.group(): text[max(0, match.start() - 40) : match.end() + 40] for match in pattern().finditer(text)}
    assert {word: around for word, around in found.items() if word.lower() not in allowed} == {}


def test_every_term_has_a_name_in_both_languages_and_one_sentence() -> None:
    for row in tables()["Terms"]:
        assert row["English"]
        assert row["Chinese"]
        assert row["meaning"].endswith("."), row
        assert not pattern().search(" | ".join((row["English"], row["Chinese"], prose(row["meaning"])))), row


def test_exceptions_are_about_files_that_exist() -> None:
    assert [row["file"] for row in tables()["Exceptions"] if not (ROOT / row["file"]).is_file()] == []


@pytest.mark.parametrize("line", ["the behaviour of", "用动机性访谈的", "No file could not be had."])
def test_a_forbidden_word_is_seen(line: str) -> None:
    assert pattern().search(line)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_of_pages_are_short(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert [f"{number}: {line}" for number, line in lines if len(line) > 120 and not line.startswith("|")] == []
