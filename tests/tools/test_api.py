"""docs/api.md: its Python examples run, one after the other, and it names every function of `mi_llm.api`."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from repository import ROOT

from mi_llm import api

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FENCES = [token for token in MarkdownIt("commonmark").parse(PAGE) if token.type == "fence"]


def test_the_examples_run_and_show_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for fence in FENCES:
        if fence.info.startswith("text "):
            path = tmp_path / fence.info.partition(" file=")[2]
            path.parent.mkdir(exist_ok=True)
            path.write_text(fence.content, encoding="utf-8")
    examples = "\n".join(fence.content for fence in FENCES if fence.info.startswith("python "))
    test = doctest.DocTestParser().get_doctest(examples, {}, "docs/api.md", "docs/api.md", 0)
    assert len(test.examples) > 15
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(test, out=printed.append)
    assert "".join(printed) == ""


def test_every_function_is_named_and_says_what_it_takes_and_gives() -> None:
    for name in api.__all__:
        assert re.search(rf"\bapi\.{name}\b", PAGE), name
        assert inspect.getdoc(getattr(api, name))
