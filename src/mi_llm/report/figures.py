"""The report's figures, in each language, as SVG text whose bytes depend on the data only.

A figure is drawn with its words as text; for Chinese pages they are translated. The reader's font draws them, as it draws the
page: no font is shipped. One of several panels is drawn again for phones, its panels below each other.
"""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec
from xml.sax.saxutils import escape, unescape

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import CARETDOWNBASE
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from mi_llm.corpora import annomi
from mi_llm.report.chinese import chinese
from mi_llm.report.stages import stages as every_stage
from mi_llm.score.metrics import METRIC_NAMES
from mi_llm.study import ARMS, REAL

# Marks: each at least 3:1 against white, and apart in lightness or in hue for every kind of color blindness.
BASE, TUNED = "#8592a3", "#0b5750"
INK = "#1f2933"
LINE = "#b45309"
EDGE = "#52606d"
COLORS = {"base": BASE, "tuned": TUNED, REAL: LINE}
MARKERS = {"base": "s", "tuned": "o", REAL: "D"}
NARROW = 5.6  # inches: it is read on a phone without moving it sideways
NO_DATA = "no data, n = 0"
STYLE = {
    "svg.hashsalt": "mi-llm",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "figure.dpi": 72,  # as of an SVG file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8895a5",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Sheet(NamedTuple):
    """What a figure is drawn on."""

    width: float  # inches
    columns: int  # at most so many panels stand beside each other
    side: Literal["left", "right"]  # of a panel to which its title keeps: on a phone a long one runs over the names of the rows
    decimals: int  # of a number in a narrow space


WIDE, PHONE = Sheet(8.6, 6, "left", 2), Sheet(3.7, 1, "right", 1)
FORMS = ("", "-phone")  # of a figure's name, and of its language: the wide one and the phone's
Given = ParamSpec("Given")

LABEL = re.compile("(?<=>)[^<>]+(?=</text>)")
LAYOUT = ConstrainedLayoutEngine(wspace=0.03, hspace=0.05)
BOXES = "Last Resort High-Efficiency"  # matplotlib's font with a box for every sign: by it the width of Chinese words is known

PHASES = {  # folders of `src/mi_llm`: the color of their stages in Figure 1, and their name
    "corpora": ("#d9e2ec", "Corpora"),
    "construct": ("#cfe8e4", "Construction of dialogs"),
    "models": ("#fbe3c8", "Models"),
    "prefer": ("#f6efc2", "Preferences"),
    "seeds": ("#f2e0d0", "Further seeds"),
    "benchmark": ("#dde7f0", "Benchmarks"),
    "score": ("#e4dcf5", "Automatic evaluation"),
    "miti": ("#fbd5d5", "Manual evaluation"),
    "safety": ("#f3c6e0", "Clients in danger"),
    "audit": ("#e7ecc8", "Audit"),
    "report": ("#ffffff", "Report"),
}


def on_phones_too(draw: Callable[Concatenate[Sheet, Given], dict[str, str]]) -> Callable[Given, dict[str, str]]:
    """Draw a figure on both sheets; `en-phone` and `zh-phone` are the phone's drawings."""

    @wraps(draw)
    def both(*given: Given.args, **named: Given.kwargs) -> dict[str, str]:
        drawings = [draw(sheet, *given, **named) for sheet in (WIDE, PHONE)]
        return {f"{lang}{form}": of[lang] for form, of in zip(FORMS, drawings, strict=True) for lang in of}

    return both


def panels(sheet: Sheet, count: int, columns: int, height: float, share: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `height` inches each, in `columns` if the sheet has as many.

    `share`: the axes that the panels have in common, "x", "y" or both.
    """
    columns = min(columns, count, sheet.columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(sheet.width, 0.2 + rows * height))
    grid = list(figure.subplots(rows, columns, sharex="x" in share, sharey="y" in share, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def lay_out(figure: Figure) -> None:
    """Place the panels, as the figure's own layout engine would do twice.

    The solver's last digits differ from run to run, and an SVG's names are hashes of all digits: they are rounded.
    """
    LAYOUT.execute(figure)
    for axes in figure.axes:
        axes.set_position(Bbox(axes.get_position().get_points().round(9)))


def svg(figure: Figure, own: Collection[str] = ()) -> dict[str, str]:
    """The figure as an SVG element in each language, without date or version. `own` are labels that are not translated.

    It is drawn once: the Chinese one has other words in the same places. Words are text, which can be searched and read aloud.
    """

    def in_chinese(label: re.Match[str]) -> str:
        words = unescape(label[0])
        return escape(words if words in own else chinese(words))

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        lay_out(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawing = out.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return {"en": drawing, "zh": LABEL.sub(in_chinese, drawing)}


@on_phones_too
def base_and_tuned(
    sheet: Sheet, scores: pd.DataFrame, baselines: pd.DataFrame, models: Sequence[str], spreads: pd.DataFrame
) -> dict[str, str]:
    """Figure 3: one panel per metric; for each model base beside tuned, with intervals over dialogs; a line for each baseline.

    `scores` and `baselines` are the rows of one test set, as the stage `score` writes them; the reference (100) is left out.
    `spreads`, if there are any: the tuned models trained with several seeds, each seed's mean and the interval over both.
    """
    table = scores.set_index(["metric", "arm", "model"]).sort_index()
    lines = baselines[baselines["predictor"] != "reference"].set_index("predictor")
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(METRIC_NAMES), 2, 3.1)
        for axes, (metric, title) in zip(grid, METRIC_NAMES.items(), strict=True):
            for shift, arm in zip((-0.19, 0.19), ARMS, strict=True):
                present = [index for index, model in enumerate(models) if (metric, arm, model) in table.index]
                rows = table.loc[[(metric, arm, models[index]) for index in present]]
                positions = [index + shift for index in present]
                whiskers = [rows["mean"] - rows["lo"], rows["hi"] - rows["mean"]]
                axes.bar(positions, rows["mean"], 0.36, color=COLORS[arm], label=arm)
                outline(axes.errorbar(positions, rows["mean"], whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=3))
                for x, value in zip(positions, rows["mean"], strict=True):  # under its bar, where no line and no whisker is
                    words = f"{value:.{sheet.decimals}f}"
                    label(axes, words, (x, 0), ("data", "axes fraction"), (0, -3), fontsize=7.5, ha="center", va="top")
            highest = [table.loc[metric, ["mean", "hi"]].max(axis=None), lines[metric].max()]
            if len(spreads):
                highest.append(draw_seeds(axes, spreads[spreads["metric"] == metric], models))
            axes.set_ylim(0, 1.06 * max(highest))
            axes.set_xlim(-0.5, len(models) - 0.5)
            draw_baselines(axes, lines[metric])
            axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axes.set_xticks(range(len(models)), models if sheet == WIDE else [model.replace("-", "-\n") for model in models])
            axes.tick_params(axis="x", length=0, pad=14)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        return svg(figure)


def dumbbells(
    scores: pd.DataFrame, rules: "pd.Series[float]", models: Sequence[str], printed: dict[tuple[str, str], float]
) -> dict[str, str]:
    """One row per model: base and tuned with their intervals, joined by a line; below it hollow marks for what the paper prints.

    `scores`: one metric's rows with columns model, arm, mean, lo, hi. The band spans the simple `rules`. There is no legend: the
    caption says what the marks are, in the page's language.
    """
    table = scores.set_index(["model", "arm"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(NARROW, 0.9 + 0.42 * len(models)))
        axes = figure.subplots()
        axes.axvspan(rules.min(), rules.max(), color="#f3ddcb", zorder=0)
        for row, model in enumerate(models):
            arms = [arm for arm in ARMS if (model, arm) in table.index]
            ends = [table.loc[(model, arm), "mean"] for arm in arms]
            axes.plot(ends, [row] * len(ends), color=EDGE, linewidth=1, zorder=1)
            for arm in ARMS:
                color, marker = COLORS[arm], MARKERS[arm]
                if arm in arms:
                    mean, lo, hi = table.loc[(model, arm), ["mean", "lo", "hi"]]
                    spread = None if np.isnan(lo) else [[mean - lo], [hi - mean]]
                    axes.errorbar(mean, row, xerr=spread, fmt=marker, color=color, markersize=7, capsize=3, zorder=3)
                if (model, arm) in printed:
                    axes.plot(printed[model, arm], row + 0.27, marker, markersize=7, mfc="white", mec=color, zorder=2)
        axes.set_yticks(range(len(models)), models)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("BLEU-4")
        return svg(figure)


def label(axes: Axes, text: str, point: Any, coordinates: Any, offset: tuple[float, float], **style: Any) -> None:
    """Write a few letters, some printer's points away from a point that is given in `coordinates`."""
    axes.annotate(text, point, offset, xycoords=coordinates, textcoords="offset points", **style)


def outline(whiskers: ErrorbarContainer) -> None:
    """Give whiskers a white edge, so that they are seen on a dark bar, too."""
    for part in whiskers.get_children():
        part.set_path_effects([withStroke(linewidth=2.6, foreground="white")])


def draw_seeds(axes: Axes, spreads: pd.DataFrame, models: Sequence[str]) -> float:
    """Beside the bar of a tuned model a dot for each seed, and the interval over seeds and dialogs; returns the highest point."""
    tops = []
    for row in spreads.itertuples():
        x, few = models.index(row.model) + 0.32, np.isnan(row.hi)
        axes.plot([x] * len(row.means), row.means, "o", color=LINE, markersize=3, zorder=3)
        if not few:
            axes.errorbar(x, row.mean, [[row.mean - row.lo], [row.hi - row.mean]], fmt="none", ecolor=LINE, capsize=3, zorder=3)
        tops += [*row.means, row.mean if few else row.hi]
    return float(max(tops))


def draw_baselines(axes: Axes, values: "pd.Series[float]") -> None:
    """A thin line across the panel for each baseline, its name beside the panel, names kept apart and near their lines."""
    top = axes.get_ylim()[1]
    shown = values.sort_values()
    apart = 0.085 * top * np.arange(len(shown))
    heights = isotonic_regression(shown.to_numpy(dtype=float) - apart).x + apart
    for (predictor, value), height in zip(shown.items(), heights, strict=True):
        axes.axhline(value, color=LINE, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.5)
        axes.annotate(
            str(predictor).replace("_", " "),
            (1, value),
            (1.07, height / top),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=LINE,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )


@on_phones_too
def ratings(sheet: Sheet, means: pd.DataFrame, chosen: Sequence[str]) -> dict[str, str]:
    """Figure 2: one panel per aspect and one for the total, one bar per corpus with its interval; the chosen corpora stand out.

    `means` is indexed by corpus name, with columns aspect, mean, lo, hi, most (the aspect's maximum).
    """
    aspects = list(dict.fromkeys(means["aspect"]))
    corpora = list(dict.fromkeys(means.index))[::-1]
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(aspects), len(aspects), 0.6 + 0.42 * len(corpora), "y")
        for axes, aspect in zip(grid, aspects, strict=True):
            rows = means[means["aspect"] == aspect].loc[corpora]
            bar_colors = [TUNED if corpus in chosen else BASE for corpus in corpora]
            axes.barh(corpora, rows["mean"], 0.62, color=bar_colors)
            whiskers = [rows["mean"] - rows["lo"], rows["hi"] - rows["mean"]]
            outline(axes.errorbar(rows["mean"], corpora, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2))
            for corpus, value in rows["mean"].items():  # beside the panel, where no whisker is
                label(axes, f"{value:.2f}", (1, corpus), ("axes fraction", "data"), (5, 0), fontsize=8, va="center")
            axes.set_xlim(0, rows["most"].iloc[0])
            axes.set_title(aspect, loc="left", fontweight="bold", fontsize=8.5)
            axes.set_yticks(range(len(corpora)), corpora)
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("points", fontsize=9)
        return svg(figure)


@on_phones_too
def losses(sheet: Sheet, curves: pd.DataFrame) -> dict[str, str]:
    """Training loss by step, one panel per model; `curves` has the columns step and loss, by model."""
    with mpl.rc_context(STYLE):
        models = curves.index.unique()
        figure, grid = panels(sheet, len(models), len(models), 2.4, "y")
        for axes, model in zip(grid, models, strict=True):
            curve = curves.loc[[model]]
            axes.plot(curve["step"], curve["loss"], color=TUNED, linewidth=1.6)
            axes.set_title(model, loc="left", fontweight="bold", fontsize=10)
            axes.set_xlabel("training step")
            axes.grid(axis="y", color="#e3e8ee")
        grid[0].set_ylabel("loss (nats per token)")
        return svg(figure)


@on_phones_too
def arms(
    sheet: Sheet,
    table: pd.DataFrame,
    names: Mapping[str, str],
    models: Sequence[str],
    thresholds: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Table 6 as dots: one panel per indicator, one row per arm, the mean over transcripts with its interval, or few values.

    `table` is `summary/table_6.csv`; `names` the indicators shown, by code; `thresholds` the scores that the manual calls
    fair and good. Base and tuned of one model stand together; n is how many transcripts have a value.
    """
    order = [(model, arm) for model in models for arm in ARMS] + [(annomi.KEY, REAL)]
    present = [(source, arm) for source, arm in order if ((table["source"] == source) & (table["arm"] == arm)).any()]
    known = table.set_index(["indicator", "source", "arm"]).sort_index()
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(names), 3, 0.75 + 0.19 * len(present), "y")
        for axes, (code, title) in zip(grid, names.items(), strict=True):
            for y, (source, arm) in enumerate(present):
                if (code, source, arm) in known.index and known.loc[(code, source, arm), "n"] > 0:
                    draw_arm(axes, y, arm, known.loc[(code, source, arm)])
                else:
                    say_no_data(axes, y)
            for value, name in zip(thresholds.get(code, ()), ("fair", "good"), strict=False):
                offset, side = ((-2, 1), "right") if name == "fair" else ((2, 1), "left")
                axes.axvline(value, color=INK, linewidth=0.8, linestyle=(0, (1, 2) if name == "fair" else (5, 2)), zorder=0.5)
                label(axes, f"{name} {value:g}", (value, 1), ("data", "axes fraction"), offset, fontsize=7, ha=side)
            axes.set_title(title, loc=sheet.side, fontweight="bold", fontsize=8.5, pad=16)
            axes.set_yticks(range(len(present)), [REAL if arm == REAL else f"{source} {arm}" for source, arm in present])
            axes.tick_params(axis="both", length=0, labelsize=7.5)
            axes.grid(axis="x", alpha=0.25)
        grid[0].set_ylim(len(present) - 0.5, -0.5)
        return svg(figure)


@on_phones_too
def counts(sheet: Sheet, table: pd.DataFrame, names: Mapping[str, str], models: Sequence[str]) -> dict[str, str]:
    """What is counted in a transcript, as a forest: a panel per model and one for real sessions, a row per indicator.

    `table` is `summary/table_6.csv`; `names` the indicators shown, by code.
    """
    codes = list(names)
    table = table[table["indicator"].isin(codes)]
    sources = [source for source in (*models, annomi.KEY) if source in set(table["source"])]
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(sources), len(sources), 0.8 + 0.36 * len(codes), "xy")
        for axes, source in zip(grid, sources, strict=True):
            rows = table[table["source"] == source]
            for _, row in rows.iterrows():
                shift = {"base": -0.22, "tuned": 0.22}.get(row["arm"], 0)
                draw_values(axes, codes.index(row["indicator"]) + shift, row["arm"], row)
            sizes = ", ".join(f"{n:.0f}" for n in dict.fromkeys(rows["n"]))
            title = source if source in models else REAL
            finish_forest(sheet, axes, f"{title}, n = {sizes}", list(names.values()))
            axes.set_xlabel("number per transcript", fontsize=7.5)
        return svg(figure)


def draw_arm(axes: Axes, y: int, arm: str, row: "pd.Series[Any]") -> None:
    """One arm of a panel of `arms`: its values, and beside the panel its n."""
    draw_values(axes, y, arm, row)
    label(axes, f"n = {row['n']:.0f}", (1, y), ("axes fraction", "data"), (3, 0), fontsize=7, va="center")


def draw_values(axes: Axes, y: float, arm: str, row: "pd.Series[Any]") -> None:
    """The mean of an arm, with its interval or its few values."""
    axes.plot([row["lo"], row["hi"]], [y, y], color=COLORS[arm], linewidth=2, solid_capstyle="round")
    few = [] if pd.isna(row["values"]) else [float(value) for value in row["values"].split("; ")]
    axes.plot(few, [y] * len(few), "|", color=COLORS[arm], markersize=9)
    axes.plot(row["mean"], y, MARKERS[arm], color=COLORS[arm], markersize=5)


def say_no_data(axes: Axes, y: float) -> None:
    """Say in a row of a panel that nothing is known there."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    place = axes.get_yaxis_transform()
    axes.text(0.5, y, NO_DATA, transform=place, ha="center", va="center", fontsize=7.5, bbox=behind)


def draw_test(axes: Axes, ends: tuple[float, float], y: float, arm: str, tested: tuple[float, float]) -> None:
    """A row of a forest: a line from chance to the value, `ends`, with the mark of an arm, and beside the panel the value's P.

    `tested`: P, which is NaN where there was no test, and the level below which the mark is filled.
    """
    p, sure = tested
    axes.plot(ends, [y, y], color=COLORS[arm], linewidth=1)
    fill = COLORS[arm] if p < sure else "white"
    axes.plot(ends[1], y, MARKERS[arm], color=COLORS[arm], markerfacecolor=fill, markersize=4.5)
    if p >= 0:
        said = "P < .001" if p < 0.001 else f"P = {p:.3f}".replace("0.", ".")
        label(axes, said, (1, y), ("axes fraction", "data"), (3, 0), fontsize=6.5, va="center")


@on_phones_too
def contrasts(
    sheet: Sheet, table: pd.DataFrame, units: Mapping[str, Mapping[str, str]], models: Sequence[str], sure: float
) -> dict[str, str]:
    """The tests between arms as a forest: a column per model, a row of panels per unit, since units share no axis.

    `table` is `summary/tests.csv`; `units` the names of the indicators by code, for each unit. A mark is filled where P after
    Holm's correction is below `sure`.
    """
    shown = [model for model in models if model in set(table["source"])]
    with mpl.rc_context(STYLE):
        columns = min(len(shown), sheet.columns)
        rows = [len(names) for names in units.values() for _ in range(len(shown) // columns)]
        size = sheet.width, 0.5 + 0.45 * len(rows) + 0.27 * sum(rows)
        figure = Figure(figsize=size)
        grid = figure.subplots(len(rows), columns, sharey="row", squeeze=False, height_ratios=rows)
        for (unit, names), line in zip(units.items(), grid.reshape(len(units), len(shown)), strict=True):
            codes = list(names)
            for axes, model in zip(line, shown, strict=True):
                of_model = table[(table["source"] == model) & table["indicator"].isin(codes)]
                axes.axvline(0, color=INK, linewidth=0.8)
                for row in of_model.itertuples():
                    arm = row.contrast.removeprefix("tuned against ")
                    y = codes.index(row.indicator) + (-0.2 if arm == "base" else 0.2)
                    draw_test(axes, (0, row.difference), y, arm, (row.p_holm, sure))
                for code in codes:
                    if code not in set(of_model["indicator"]):
                        say_no_data(axes, codes.index(code))
                finish_forest(sheet, axes, model if line[0] is grid[0, 0] or columns == 1 else "", list(names.values()))
                axes.set_xlabel(unit, fontsize=7.5)
            limits = [limit for axes in line for limit in axes.get_xlim()]
            for axes in line:
                axes.set_xlim(min(limits), max(limits))
        return svg(figure)


@on_phones_too
def leaks(sheet: Sheet, table: pd.DataFrame, sure: float) -> dict[str, str]:
    """How well each feature of the blinded transcripts tells two arms apart, as a forest: a panel per contrast, AUC from 0.5.

    `table` is `blind/leaks.csv`, whose phrases are in the study's language.
    """
    quoted = table["what"].where(table["kind"] != "phrase", "“" + table["what"] + "”")
    table = table.assign(what=quoted)
    contrasts = list(table.groupby("contrast", sort=False))
    longest = max(len(rows) for _, rows in contrasts)
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(contrasts), len(contrasts), 0.6 + 0.2 * longest)
        for axes, (contrast, rows) in zip(grid, contrasts, strict=True):
            axes.axvline(0.5, color=INK, linewidth=0.8)
            arm = str(contrast).removeprefix("tuned against ")
            for y, row in enumerate(rows.itertuples()):
                draw_test(axes, (0.5, row.auc), y, arm, (row.p, sure))
            finish_forest(sheet, axes, f"{contrast}, n = {rows['n'].iloc[0]}", list(rows["what"]))
            for name in axes.get_yticklabels():
                name.set_fontfamily(["DejaVu Sans", BOXES, "sans-serif"])
            axes.set_xlim(-0.05, 1.05)
            axes.set_xlabel("AUC")
        return svg(figure)


@on_phones_too
def intervals(sheet: Sheet, table: pd.DataFrame, start: float, measure: str) -> dict[str, str]:
    """Values with their intervals as a forest, a panel per coder, with a line at `start`: what chance gives.

    `table`: panel, row, value, lo, hi, aside (what is said beside the panel). Without a value the panel says so in its row.
    """
    coders, names = list(table.groupby("panel", sort=False)), list(dict.fromkeys(table["row"]))
    with mpl.rc_context(STYLE):
        figure, grid = panels(sheet, len(coders), 3, 0.7 + 0.2 * len(names), "xy")
        for axes, (panel, rows) in zip(grid, coders, strict=True):
            known = rows.dropna(subset="value")
            if len(known):
                axes.axvline(start, color=INK, linewidth=0.8)
            for row in known.itertuples():
                y = names.index(row.row)
                axes.plot([row.lo, row.hi], [y, y], color=TUNED, linewidth=2, solid_capstyle="round")
                axes.plot(row.value, y, "o", color=TUNED, markersize=5)
                label(axes, row.aside, (1, y), ("axes fraction", "data"), (3, 0), fontsize=6.5, va="center")
            for y, name in enumerate(names):
                if name not in set(known["row"]):
                    say_no_data(axes, y)
            finish_forest(sheet, axes, str(panel), names)
            axes.set_xlabel(measure)
        return svg(figure)


def finish_forest(sheet: Sheet, axes: Axes, title: str, names: Sequence[str]) -> None:
    """Name a forest's panel and its rows, the first on top."""
    axes.set_title(title, loc=sheet.side, fontweight="bold", fontsize=8.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="both", length=0, labelsize=7.5, labelbottom=True)
    axes.grid(axis="y", alpha=0.25)


def stages() -> pd.DataFrame:
    """Figure 1 as a table: each stage with its phase (a folder of `src/mi_llm`), the stages it reads, and what it does."""
    rows = [(stage.name, stage.phase, " ".join(stage.reads), stage.what) for stage in every_stage().values()]
    return pd.DataFrame(rows, columns=["stage", "phase", "reads", "what"]).set_index("stage")


def pipeline(table: pd.DataFrame) -> dict[str, str]:
    """Figure 1: the stages from top to bottom, each below all stages that it reads; arrows implied by others are left out."""
    reads = {str(name): text.split() for name, text in table["reads"].items()}
    depth: dict[str, int] = {}
    for name, before in reads.items():
        depth[name] = 1 + max((depth[earlier] for earlier in before), default=-1)
    above: dict[str, set[str]] = {}
    for name in sorted(reads, key=depth.__getitem__):
        above[name] = {earlier for read in reads[name] for earlier in (read, *above[read])}
    direct = {name: [read for read in reads[name] if not any(read in above[other] for other in reads[name])] for name in reads}
    lanes = list(dict.fromkeys(table["phase"]))
    rows: dict[tuple[int, str], list[str]] = {}
    for name in reads:
        rows.setdefault((depth[name], str(table.loc[name, "phase"])), []).append(name)
    widths = {lane: max(len(names) for (_, phase), names in rows.items() if phase == lane) for lane in lanes}
    left = dict(zip(lanes, np.cumsum([0, *widths.values()])[:-1], strict=True))
    centers = {
        name: (left[phase] + (widths[phase] - len(names)) / 2 + number + 0.5, -float(row))
        for (row, phase), names in rows.items()
        for number, name in enumerate(names)
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE.width, 0.62 * (1 + max(depth.values())) + 0.6))
        axes = figure.subplots()
        widest = max(TextPath((0, 0), name, size=1).get_extents().width for name in centers)
        size = min(9, 0.72 * 72 * WIDE.width / sum(widths.values()) / widest)  # the longest name fits into its box
        for name, (x, y) in centers.items():
            axes.add_patch(
                FancyBboxPatch(
                    (x - 0.43, y - 0.22), 0.86, 0.44, boxstyle="round,pad=0.02,rounding_size=0.08",
                    facecolor=of_phase(str(table.loc[name, "phase"]))[0], edgecolor="#8895a5", linewidth=0.8, zorder=2,
                )
            )  # fmt: skip
            axes.text(x, y, name, ha="center", va="center", fontsize=size, zorder=3)
        beside = {name: [other for other in reads if depth[other] == depth[name]].index(name) for name in reads}
        for name in centers:
            for start in direct[name]:
                draw_arrow(axes, centers, start, name, 0.06 * beside[start])
        axes.set_xlim(0, sum(widths.values()))
        axes.set_ylim(-max(depth.values()) - 0.4, 0.4)
        axes.set_axis_off()
        patches = [Patch(facecolor=of_phase(lane)[0], edgecolor="#8895a5", label=of_phase(lane)[1]) for lane in lanes]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
        return svg(figure, own=centers)


def of_phase(phase: str) -> tuple[str, str]:
    """The color and the name of a phase; a study's own phase is gray."""
    return PHASES.get(phase, ("#eeeeee", phase))


def draw_arrow(axes: Axes, centers: dict[str, tuple[float, float]], start: str, end: str, shift: float) -> None:
    """Draw an arrow with right angles: across and then down to its end, or down first where boxes are in the way.

    `centers` are the boxes' centers by stage; `shift` keeps arrows of different stages apart.
    """
    (x, y), (to_x, to_y) = centers[start], centers[end]

    def free(column: float) -> bool:
        return not any(abs(column - other) < 0.47 and to_y < height < y for other, height in centers.values())

    across = y - 0.33 - shift if free(to_x) or not free(x) else to_y + 0.33 + shift
    corners = [(x, y - 0.24), (x, across), (to_x, across), (to_x, to_y + 0.3)]
    axes.plot(*zip(*corners, strict=True), color=EDGE, linewidth=0.9, solid_joinstyle="round", zorder=1)
    axes.plot(to_x, to_y + 0.3, marker=CARETDOWNBASE, color=EDGE, markersize=4, zorder=2)
