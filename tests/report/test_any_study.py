"""The report of a newcomer's own study: it shows what the study has, and takes nothing of the paper for granted."""

from collections.abc import Iterator
from pathlib import Path

import newcomer
import pandas as pd
import pytest
from edits import edit
from scored import Page, make_scored, site

from mi_llm import storage
from mi_llm.certificate.certify import certify
from mi_llm.corpora.own.importing import import_dialogs
from mi_llm.frame.pages import SUFFIXES
from mi_llm.new import new
from mi_llm.report.page import PAGES, report
from mi_llm.study import Study, load

PARAMS = Path("mine/params.yaml")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study of six talks in five formats, one model, with made-up answers in the place of training and answering."""
    folder = newcomer.repository(tmp_path_factory.mktemp("newcomer") / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        new("mine", "mini", "Sleep talks")
        for name, place in newcomer.bring(folder.parent / "talks").items():
            import_dialogs(load(PARAMS), [place], name, {}, check=False, train=True)
        edit(PARAMS, newcomer.ONE_MODEL)
        study = load(PARAMS)
        make_scored(study)
        report(study)
        certify(study)  # as a run ends; nothing is committed here
        yield study


def pages(study: Study) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (study.folder / "report").glob("*.html")}


def test_every_page_is_there_and_every_link_leads_somewhere(own: Study) -> None:
    seen = site(own.folder / "report" / "index.html")
    own_pages = {path.name for path in seen if path.parent.name == "report"}
    assert own_pages == {f"{page}{end}.html" for page in PAGES for end in SUFFIXES.values()}


def test_both_languages_show_the_same(own: Study) -> None:
    for name in PAGES:
        english, chinese = (Page(own.folder / f"report/{name}{end}.html") for end in SUFFIXES.values())
        assert english.ids == chinese.ids
        assert [len(table) for table in english.tables] == [len(table) for table in chinese.tables]


def test_title_and_notice_are_the_studys_and_nothing_is_compared_with_the_paper(own: Study) -> None:
    said = pages(own)
    assert "<h1>Results</h1>" in said["index.html"]
    assert all("Sleep talks" in page.split("<main", 1)[0] for page in said.values())
    assert "uses the bundle&#39;s tiny models" in said["index.html"]
    said = {name: page for name, page in said.items() if not name.startswith(("data", "models"))}  # with whole documents in them
    for gone in ("Published values", "audit/claims.csv", "the paper's scale", "GPT-4", "real sessions among", "论文的规模"):
        assert [name for name, page in said.items() if gone in page] == [], gone
    for table in sorted((own.folder / "report/tables").glob("*.csv")):
        columns = list(pd.read_csv(table, nrows=1).columns)
        assert [name for name in columns if "paper" in name.lower() or name == "Verdict"] == [], table.name
    assert storage.read_json(own.path("audit", "metrics.json")) == {"claims": 0}


def test_sections_are_those_of_what_the_study_has(own: Study) -> None:
    ids = Page(own.folder / "report/index.html").ids
    assert {"run", "data", "screening", "training", "scores", "examples", "manual", "limits"} <= set(ids)
    assert not {"benchmarks", "ratings", "verdicts", "findings"} & set(ids)
    tables = {path.stem for path in (own.folder / "report/tables").glob("*.csv")}
    assert not {"benchmarks", "published", "coder-validation", "coder-quality"} & tables
    features = pd.read_csv(own.folder / "report/tables/dialog-features.csv", index_col=0)
    parts = {"Training dialogs (MI style)": 5, "Test dialogs (MI style)": 1}
    assert features["Dialogs"].to_dict() == {"text": 2, "csv": 1, "excel": 1, "openai": 1, "sharegpt": 1} | parts
    assert list(pd.read_csv(own.folder / "report/tables/sources.csv")["Source"].unique()) == ["own"]
    page = pages(own)["index.html"]
    assert "5 corpora were read (text, csv, excel, openai, sharegpt)" in page
    assert "<summary>Tuned against base</summary>" in page
    data = pages(own)["data.html"]
    assert "read from where they lie" in data
    assert "<em>Sample</em>" not in data


@pytest.mark.slow
def test_a_corpus_that_has_a_reader_only_has_to_be_named(own: Study) -> None:
    edit(PARAMS, {"\ncorpora: ": "\ncorpora:\n  annomi: {} "})
    other = load(PARAMS).model_copy(update={"out": "runs/other"})
    make_scored(other)
    report(other)
    certify(other)
    page = other.folder / "report/index.html"
    ids = Page(page).ids
    ids.remove("coders")  # what coders are worth is known from the real sessions
    assert ids == Page(own.folder / "report/index.html").ids
    site(page)
    said = page.read_text(encoding="utf-8")
    assert "real sessions among them" in said
    assert "Tuned against base, and against real sessions" in said
    assert (other.folder / "report/tables/coder-validation.csv").is_file()
    assert "<em>Sample</em>" in (other.folder / "report/data.html").read_text(encoding="utf-8")
