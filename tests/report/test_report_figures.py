"""The report's figures: what is written in them, and whether it can be read."""

import re
from collections.abc import Collection
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from mi_llm.frame.pages import SUFFIXES
from mi_llm.report import figures, manual, tables
from mi_llm.study import Study

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def linear(color: str) -> "np.ndarray[Any, Any]":
    parts = np.array(to_rgb(color))
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def opponent(light: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """CIE L*a*b* of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], LUMINANCE, [0.0193, 0.1192, 0.9505]]) @ light.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture
def drawn(scored: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as they are before they are written, once the report that all tests share is made."""

    def laid_out(figure: Figure, own: Collection[str] = ()) -> dict[str, Figure]:
        figures.lay_out(figure)
        return {"en": figure}

    monkeypatch.setattr(figures, "svg", laid_out)


def texts(drawings: Any, form: str = "") -> list[Text]:
    figure = drawings[f"en{form}"]
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    beyond = [
        tick
        for axes in figure.axes
        for tick in axes.get_xticklabels()
        if not min(axes.get_xlim()) <= tick.get_position()[0] <= max(axes.get_xlim())
    ]  # matplotlib makes them and does not draw them
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible() and text not in beyond]


def written(drawings: Any) -> list[str]:
    return [text.get_text() for text in texts(drawings)]


def arms_of(study: Study, table: pd.DataFrame) -> Any:
    names = {"CRR": manual.NAMES["CRR"], "ADH": manual.NAMES["ADH"]}
    return figures.arms(table, names, [*study.models], manual.thresholds(study))


@pytest.mark.parametrize("color", [*figures.COLORS.values(), figures.EDGE])
def test_every_mark_is_seen_against_white(color: str) -> None:
    assert contrast(LUMINANCE @ linear(color), 1) >= 3


@pytest.mark.parametrize("kind", BLINDNESS)
def test_arms_are_told_apart_by_the_color_blind(kind: str) -> None:
    seen = {arm: opponent(np.array(BLINDNESS[kind]) @ linear(color)) for arm, color in figures.COLORS.items()}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, (one, other)


@pytest.mark.usefixtures("drawn")
def test_an_arm_without_a_value_says_so_and_others_say_their_n(scored: Study) -> None:
    table = manual.read(scored, "table_6")
    lost = (table["indicator"] == "CRR") & (table["source"] == "tiny-glm4") & (table["arm"] == "tuned")
    assert lost.any()
    before, after = written(arms_of(scored, table)), written(arms_of(scored, table[~lost]))
    assert after.count(figures.NO_DATA) == before.count(figures.NO_DATA) + 1
    counted = table[table["indicator"].isin(["CRR", "ADH"])]
    assert sorted(text for text in before if text.startswith("n = ")) == sorted(f"n = {n}" for n in counted["n"])


@pytest.mark.usefixtures("drawn")
def test_the_manuals_thresholds_are_drawn(scored: Study) -> None:
    words = written(arms_of(scored, manual.read(scored, "table_6")))
    assert [word for word in words if word.startswith(("fair", "good"))] == ["fair 0.4", "good 0.5"]


@pytest.mark.usefixtures("drawn")
def test_stage_names_stay_inside_their_boxes() -> None:
    table = figures.stages()
    table["reads"] = table["reads"].str.replace("benchmark", "benchmark_of_a_long_name")
    figure: Any = figures.pipeline(table.rename(index={"benchmark": "benchmark_of_a_long_name"}))["en"]
    figure.draw_without_rendering()
    labels = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches]
    for (name, label), box in zip(labels.items(), boxes, strict=True):
        assert box.x0 < label.x0 < label.x1 < box.x1, name


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("form", figures.FORMS)
def test_no_two_labels_run_together_or_leave_the_figure(scored: Study, form: str) -> None:
    baselines = pd.read_csv(scored.path("score", "baselines.csv"))
    each: tuple[Any, ...] = (
        figures.base_and_tuned(tables.scores(scored), baselines, [*scored.models], pd.DataFrame()),
        figures.ratings(tables.rating_means(scored), tables.chosen(scored)),
        arms_of(scored, manual.read(scored, "table_6")),
        figures.counts(manual.read(scored, "table_6"), {"Q": manual.NAMES["Q"], "SR": manual.NAMES["SR"]}, [*scored.models]),
        figures.contrasts(manual.read(scored, "tests"), manual.by_unit(scored), [*scored.models], 0.05),
        figures.leaks(pd.read_csv(scored.path("blind", "leaks.csv")), 0.05),
        figures.intervals(manual.validation_rows(scored), 0, "κ"),
        figures.intervals(manual.quality_rows(scored), 0.5, "AUC"),
    )
    for drawings in each:
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(drawings, form)]  # without arrows
        touching = [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]
        assert touching == []
        sheet = drawings[f"en{form}"].bbox
        assert [words for words, box in boxes if box.x0 < sheet.x0 or box.x1 > sheet.x1] == []


def test_a_figure_of_panels_has_the_same_bytes_each_time() -> None:
    held, drawings = [], set()
    for count in range(24):  # the solver of the layout orders by address: every other time, last digits differed
        held.append([bytearray(size) for size in range(997 * count % 300)])
        with mpl.rc_context(figures.STYLE):
            figure = Figure(figsize=(4, 4.28))
            for axes in figure.subplots(3, height_ratios=[4, 3, 2]):
                axes.plot([0.1, 0.7, 0.3], [0, 1, 2])
                axes.set_yticks([0, 1, 2], ["aaa", "bb", "c" * 17])
                axes.set_xlabel("xxxxxx")
            drawings.add(figures.svg(figure)["en"])
    assert len(drawings) == 1


@pytest.mark.usefixtures("drawn")
def test_panels_stand_in_one_column_on_a_phone(scored: Study) -> None:
    drawings: Any = figures.contrasts(manual.read(scored, "tests"), manual.by_unit(scored), [*scored.models], 0.05)
    wide, phone = ([axes.get_position() for axes in drawings[f"en{form}"].axes] for form in figures.FORMS)
    assert len(wide) == len(phone) == len(scored.models) * len(manual.by_unit(scored))
    assert len({round(box.y0, 3) for box in wide}) == len(manual.by_unit(scored))
    assert len({round(box.y0, 3) for box in phone}) == len(phone)
    of_unit: dict[str, set[tuple[float, float]]] = {}
    for axes in drawings["en-phone"].axes:
        of_unit.setdefault(axes.get_xlabel(), set()).add(axes.get_xlim())
    assert [len(limits) for limits in of_unit.values()] == [1] * len(manual.by_unit(scored)), "one unit, one scale"


@pytest.mark.parametrize("end", SUFFIXES.values())
def test_captions_name_n_interval_and_who_coded_with_what_worth(scored: Study, end: str) -> None:
    page = (scored.folder / f"report/index{end}.html").read_text(encoding="utf-8").replace("&nbsp;", " ").replace("\xa0", " ")
    captions = dict(
        zip(("abstract", "1", "2", "loss", "3", "arms"), re.findall(r"<figcaption>(.*?)</figcaption>", page), strict=False)
    )
    samples = pd.read_csv(scored.path("score", "samples.csv"))
    assert f"n = {samples['round'].nunique()} " in captions["3"]
    assert f"n = {pd.read_csv(scored.path('rate', 'means.csv'))['n'].max()} " in captions["2"]
    for name in ("2", "3", "arms"):
        assert f"{scored.score.confidence:.0%}".replace("%", " %") in captions[name]
    assert "tiny-glm4 60" in captions["loss"]
    for limit in manual.thresholds(scored)["RQ"]:
        assert f" {limit:g}" in captions["arms"]
    assert "κ" in captions["arms"]
    assert manual.coders(scored, "zh" if end else "en") in captions["arms"]


def test_every_figure_is_an_svg_file_that_is_linked_beside_it(scored: Study) -> None:
    out = scored.folder / "report"
    files = sorted(path.name for path in (out / "figures").iterdir())
    alone = ("abstract", "stages")  # one panel
    drawn = ("contrasts", "indicators", "kappas", "leaks", "loss", "quality", "rates", "ratings", "scores-test", *alone)
    names = [f"{name}{form}" for name in drawn for form in figures.FORMS if not form or name not in alone]
    assert files == sorted(f"{name}{end}.svg" for name in names for end in SUFFIXES.values())
    for end in SUFFIXES.values():
        shown = (out / f"index{end}.html").read_text(encoding="utf-8")
        for name in [f"{name}{end}.svg" for name in drawn]:
            drawing = (out / "figures" / name).read_text(encoding="utf-8")
            assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
            assert drawing.strip() in shown
            assert f'href="figures/{name}"' in shown


@pytest.mark.usefixtures("drawn")
def test_tests_between_arms_are_a_forest_with_a_p_for_each_test(scored: Study) -> None:
    table = manual.read(scored, "tests")
    drawings: Any = figures.contrasts(table, manual.by_unit(scored), [*scored.models], 0.05)
    words = written(drawings)
    assert sum(word.startswith("P ") for word in words) == table["p_holm"].notna().sum() > 0
    marks = [mark for mark in drawings["en"].findobj(Line2D) if mark.get_marker() == figures.MARKERS["base"]]
    sure = table[(table["contrast"] == "tuned against base") & (table["p_holm"] < 0.05)]
    assert sum(mark.get_markerfacecolor() != "white" for mark in marks) == len(sure)


@pytest.mark.usefixtures("drawn")
def test_differences_of_another_unit_have_an_axis_of_their_own(scored: Study) -> None:
    units = manual.by_unit(scored)
    figure: Any = figures.contrasts(manual.read(scored, "tests"), units, [*scored.models], 0.05)["en"]
    first = figure.axes[:: len(scored.models)]  # of each row of panels
    rows = {axes.get_xlabel(): {text.get_text() for text in axes.get_yticklabels()} for axes in first}
    assert rows == {unit: set(names.values()) for unit, names in units.items()}
    assert {"number per round", "ratio, no unit"} <= set(rows)
    assert manual.NAMES["CRR"] in rows["ratio, no unit"]


@pytest.mark.usefixtures("drawn")
def test_every_auc_of_a_feature_is_drawn_with_its_p(scored: Study) -> None:
    table = pd.read_csv(scored.path("blind", "leaks.csv"))
    drawings: Any = figures.leaks(table, 0.05)
    marks = [mark.get_xdata()[0] for mark in drawings["en"].findobj(Line2D) if mark.get_marker() in figures.MARKERS.values()]
    assert sorted(marks) == sorted(table["auc"])
    assert sum(word.startswith("P ") for word in written(drawings)) == len(table)


def test_figures_speak_the_language_of_their_page(scored: Study) -> None:
    own = {"P", "AUC", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "n", "κ", "llm:bundle-author", *scored.models}
    own |= {*figures.stages().index, *tables.rating_means(scored).index}
    own |= {part for model in scored.models for part in model.replace("-", "-\n").split()}  # on a phone, in lines
    for path in (scored.folder / "report/figures").glob("*.zh.svg"):
        drawing = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        said = "\n".join(str(text.text) for text in drawing.iter("{http://www.w3.org/2000/svg}text"))
        for name in sorted(own, key=len, reverse=True):
            said = said.replace(name, "")
        assert re.findall("[A-Za-z]+", said) == [], path.name
    stages = (scored.folder / "report/figures/stages.zh.svg").read_text(encoding="utf-8")
    assert all(f">{name}</text>" in stages for name in figures.stages().index), "names of stages stay as they are"
