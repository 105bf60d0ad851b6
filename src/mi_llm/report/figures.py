"""The report's figures, as SVG text whose bytes depend on the data only. Letters are drawn as shapes: no font is needed."""

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWNBASE
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke
from scipy.optimize import isotonic_regression

from mi_llm.report.stages import stages as every_stage
from mi_llm.score.metrics import METRIC_NAMES
from mi_llm.study import ARMS, REAL

BASE, TUNED = "#9fb0c3", "#0f766e"
INK = "#1f2933"
LINE = "#9a4a12"
EDGE = "#52606d"
STYLE = {
    "svg.hashsalt": "mi-llm",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8895a5",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


PHASES = {
    "corpora": "#d9e2ec", "construct": "#cfe8e4", "models": "#fbe3c8", "prefer": "#f6efc2", "seeds": "#f2e0d0",
    "benchmark": "#dde7f0", "score": "#e4dcf5", "miti": "#fbd5d5",
    "safety": "#f3c6e0", "audit": "#e7ecc8", "report": "#ffffff",
}  # fmt: skip


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without date or version."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = out.getvalue()
    return text[text.index("<svg") :]


def base_and_tuned(scores: pd.DataFrame, baselines: pd.DataFrame, models: Sequence[str], spreads: pd.DataFrame) -> str:
    """Figure 3: one panel per metric; for each model base beside tuned, with intervals over dialogs; a line for each baseline.

    `scores` and `baselines` are the rows of one test set, as the stage `score` writes them; the reference (100) is left out.
    `spreads`, if there are any: the tuned models trained with several seeds, each seed's mean and the interval over both.
    """
    table = scores.set_index(["metric", "arm", "model"]).sort_index()
    lines = baselines[baselines["predictor"] != "reference"].set_index("predictor")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 6.0), layout="constrained")
        for axes, (metric, title) in zip(figure.subplots(2, 2).flat, METRIC_NAMES.items(), strict=True):
            for shift, arm, colour in ((-0.19, "base", BASE), (0.19, "tuned", TUNED)):
                present = [index for index, model in enumerate(models) if (metric, arm, model) in table.index]
                rows = table.loc[[(metric, arm, models[index]) for index in present]]
                positions = [index + shift for index in present]
                whiskers = [rows["mean"] - rows["lo"], rows["hi"] - rows["mean"]]
                axes.bar(positions, rows["mean"], 0.36, color=colour, label=arm)
                axes.errorbar(positions, rows["mean"], whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
                for x, value, top in zip(positions, rows["mean"], rows["hi"].fillna(rows["mean"]), strict=True):
                    number = axes.annotate(f"{value:.2f}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=8)
                    number.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # lines pass behind it
            highest = [table.loc[metric, ["mean", "hi"]].max(axis=None), lines[metric].max()]
            if len(spreads):
                highest.append(draw_seeds(axes, spreads[spreads["metric"] == metric], models))
            axes.set_ylim(0, 1.14 * max(highest))
            axes.set_xlim(-0.5, len(models) - 0.5)
            draw_baselines(axes, lines[metric])
            axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
            axes.set_xticks(range(len(models)), models)
            axes.tick_params(axis="x", length=0)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        return svg(figure)


def dumbbells(
    scores: pd.DataFrame, rules: "pd.Series[float]", models: Sequence[str], printed: dict[tuple[str, str], float]
) -> str:
    """One row per model: base and tuned with their intervals, joined by a line; hollow marks for what the paper prints.

    `scores`: one metric's rows with columns model, arm, mean, lo, hi. The band spans the simple `rules`. There is no legend: the
    caption says what the marks are, in the page's language.
    """
    table = scores.set_index(["model", "arm"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.9 + 0.42 * len(models)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(rules.min(), rules.max(), color="#f3ddcb", zorder=0)
        for row, model in enumerate(models):
            arms = [arm for arm in ARMS if (model, arm) in table.index]
            ends = [table.loc[(model, arm), "mean"] for arm in arms]
            axes.plot(ends, [row] * len(ends), color=EDGE, linewidth=1, zorder=1)
            for arm, colour, marker in zip(ARMS, (EDGE, TUNED), "so", strict=True):
                if arm in arms:
                    mean, lo, hi = table.loc[(model, arm), ["mean", "lo", "hi"]]
                    spread = None if np.isnan(lo) else [[mean - lo], [hi - mean]]
                    axes.errorbar(mean, row, xerr=spread, fmt=marker, color=colour, markersize=7, capsize=3, zorder=3)
                if (model, arm) in printed:
                    axes.plot(printed[model, arm], row, marker, markersize=7, mfc="white", mec=colour, zorder=2)
        axes.set_yticks(range(len(models)), models)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("BLEU-4")
        return svg(figure)


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
    apart = 0.08 * top * np.arange(len(shown))
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
            fontsize=7,
            color=LINE,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def ratings(means: pd.DataFrame, chosen: Sequence[str]) -> str:
    """Figure 2: one panel per aspect and one for the total, one bar per corpus with its interval; the chosen corpora stand out.

    `means` is indexed by corpus name, with columns aspect, mean, lo, hi, most (the aspect's maximum).
    """
    aspects = list(dict.fromkeys(means["aspect"]))
    corpora = list(dict.fromkeys(means.index))[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.5 + 0.42 * len(corpora)), layout="constrained")
        panels = figure.subplots(1, len(aspects), sharey=True, squeeze=False)[0]
        for axes, aspect in zip(panels, aspects, strict=True):
            rows = means[means["aspect"] == aspect].loc[corpora]
            colours = [TUNED if corpus in chosen else BASE for corpus in corpora]
            axes.barh(corpora, rows["mean"], 0.62, color=colours)
            whiskers = [rows["mean"] - rows["lo"], rows["hi"] - rows["mean"]]
            axes.errorbar(rows["mean"], corpora, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
            for corpus, value in rows["mean"].items():
                axes.annotate(
                    f"{value:.2f}",
                    (0, corpus),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color="white" if corpus in chosen else INK,
                )
            axes.set_xlim(0, rows["most"].iloc[0])
            axes.set_title(aspect, loc="left", fontweight="bold", fontsize=8.5)
            axes.tick_params(axis="y", length=0)
        return svg(figure)


def losses(curves: pd.DataFrame) -> str:
    """Training loss by step, one panel per model; `curves` has the columns step and loss, by model."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.5), layout="constrained")
        models = curves.index.unique()
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            curve = curves.loc[[model]]
            axes.plot(curve["step"], curve["loss"], color=TUNED, linewidth=1.6)
            axes.set_title(model, loc="left", fontweight="bold", fontsize=10)
            axes.set_xlabel("step")
            axes.grid(axis="y", color="#e3e8ee")
        panels[0].set_ylabel("loss")
        return svg(figure)


def arms(table: pd.DataFrame, names: dict[str, str], models: Sequence[str]) -> str:
    """Table 6 as dots: one panel per indicator, one row per arm, the mean over transcripts with its interval, or few values.

    `table` is `summary/table_6.csv`; `names` the indicators shown, by code. Base and tuned of one model stand together.
    """
    order = [(model, arm) for model in models for arm in ARMS] + [("annomi", REAL)]
    present = [(source, arm) for source, arm in order if ((table["source"] == source) & (table["arm"] == arm)).any()]
    colours = {"base": BASE, "tuned": TUNED, REAL: LINE}
    known = table.set_index(["indicator", "source", "arm"]).sort_index()
    columns = 3
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.7 + rows * (0.55 + 0.17 * len(present))), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
        for axes, (code, title) in zip(panels, names.items(), strict=False):
            for y, (source, arm) in enumerate(present):
                if (code, source, arm) in known.index:
                    row = known.loc[(code, source, arm)]
                    axes.plot([row["lo"], row["hi"]], [y, y], color=colours[arm], linewidth=2, solid_capstyle="round")
                    few = [] if pd.isna(row["values"]) else [float(value) for value in row["values"].split("; ")]
                    axes.plot(few, [y] * len(few), "|", color=colours[arm], markersize=8)
                    axes.plot(row["mean"], y, "o", color=colours[arm], markersize=5)
            axes.set_title(title, loc="left", fontweight="bold", fontsize=8.5)
            axes.set_yticks(range(len(present)), ["real" if arm == REAL else f"{source} {arm}" for source, arm in present])
            axes.tick_params(axis="both", length=0, labelsize=7.5)
            axes.grid(axis="x", alpha=0.25)
        figure.axes[0].invert_yaxis()
        for axes in figure.axes[len(names) :]:
            axes.set_axis_off()
        return svg(figure)


def stages() -> pd.DataFrame:
    """Figure 1 as a table: each stage with its phase (a folder of `src/mi_llm`), the stages it reads, and what it does."""
    rows = [(stage.name, stage.phase, " ".join(stage.reads), stage.what) for stage in every_stage().values()]
    return pd.DataFrame(rows, columns=["stage", "phase", "reads", "what"]).set_index("stage")


def pipeline(table: pd.DataFrame) -> str:
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
        figure = Figure(figsize=(8.6, 0.62 * (1 + max(depth.values()))), layout="constrained")
        axes = figure.subplots()
        for name, (x, y) in centers.items():
            axes.add_patch(
                FancyBboxPatch(
                    (x - 0.4, y - 0.22), 0.8, 0.44, boxstyle="round,pad=0.02,rounding_size=0.08",
                    facecolor=PHASES.get(str(table.loc[name, "phase"]), "#eeeeee"), edgecolor="#8895a5", linewidth=0.8, zorder=2,
                )
            )  # fmt: skip
            axes.text(x, y, name, ha="center", va="center", fontsize=9, zorder=3)
        for name in centers:
            for start in direct[name]:
                draw_arrow(axes, centers, start, name, 0.05 * (list(centers).index(start) % 3))
        axes.set_xlim(0, sum(widths.values()))
        axes.set_ylim(-max(depth.values()) - 0.4, 0.4)
        axes.set_axis_off()
        return svg(figure)


def draw_arrow(axes: Axes, centers: dict[str, tuple[float, float]], start: str, end: str, shift: float) -> None:
    """Draw an arrow with right angles: across and then down to its end, or down first where boxes are in the way.

    `centers` are the boxes' centers by stage; `shift` keeps arrows of different stages apart.
    """
    (x, y), (to_x, to_y) = centers[start], centers[end]

    def free(column: float) -> bool:
        return not any(abs(column - other) < 0.45 and to_y < height < y for other, height in centers.values())

    across = y - 0.33 - shift if free(to_x) or not free(x) else to_y + 0.33 + shift
    corners = [(x, y - 0.24), (x, across), (to_x, across), (to_x, to_y + 0.3)]
    axes.plot(*zip(*corners, strict=True), color=EDGE, linewidth=0.9, solid_joinstyle="round", zorder=1)
    axes.plot(to_x, to_y + 0.3, marker=CARETDOWNBASE, color=EDGE, markersize=4, zorder=2)
