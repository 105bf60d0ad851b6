"""The paper's statements in words, read against its own tables.

For a stated direction, the printed means are compared: of every model where the paper speaks of each, pooled over the models' dialogs
where it speaks of them together (`pooled`). Notes add Welch tests from the printed moments, and rates per counselor volley if length
may explain a difference. A word of degree without a printed threshold gets no verdict.
"""

import math

from mi_llm.audit.codes import COLUMNS, COUNTS, GLOBALS, ROUNDS, adherence_codes, cell, moments, ratio_bounds, welch
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Result, holds, listed, unknown
from mi_llm.paper.claims import Claim, Paper
from mi_llm.paper.models import tuned

MODELS = tuple(model.table_6 for model in tuned().values())


def mean(paper: Paper, row: str, column: str) -> float:
    """The printed mean of one cell of Table 6."""
    return cell(paper, row, column).mean.value


def pooled(paper: Paper, row: str) -> tuple[float, float]:
    """Mean and SD of one row of Table 6 over the dialogs of all models, from the printed moments and the stated dialogs."""
    parts = [(COLUMNS[column], *(printed.value for printed in moments(paper, row, column))) for column in MODELS]
    total = sum(size for size, _, _ in parts)
    center = sum(size * average for size, average, _ in parts) / total
    squares = sum((size - 1) * sd**2 + size * (average - center) ** 2 for size, average, sd in parts)
    return center, math.sqrt(squares / (total - 1))


def tests(paper: Paper, row: str) -> str:
    """Each model's difference from the real dialogs with 95 % interval and Welch's P, as text."""
    welch_by_column = {column: welch(paper, row, column) for column in MODELS}
    parts = [
        f"{column} {test['difference']:+.2f} [{test['lo']:+.2f}, {test['hi']:+.2f}], P {'< 0.001' if test['p'] < 0.0005 else format(test['p'], '.3f')}"
        for column, test in welch_by_column.items()
    ]
    return f"Differences from the real dialogs (Welch, 95 % interval): {'; '.join(parts)}."


def rates(paper: Paper, row: str) -> str:
    """The rate of a behavior per counselor volley in each column, by the printed means, as text."""
    rate_by_column = {column: mean(paper, row, column) / paper[claim_id].mean.value for column, claim_id in ROUNDS.items()}
    return "Per counselor volley: " + ", ".join(f"{column} {rate:.2f}" for column, rate in rate_by_column.items()) + "."


def approached(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Technical and relational globals and the MI-adherent ratio: how far is each model from the real dialogs?

    “Approached” has no printed threshold, and a P above .05 does not show similarity, so there is no verdict: the note has the 95 %
    intervals of the differences (Welch, from the printed moments).
    """
    comparisons = [welch(paper, row, column) for row in ("TECH", "REL", "ADH") for column in MODELS]
    intervals = [
        f"{test['indicator']} {test['column']} {test['difference']:+.2f} [{test['lo']:+.2f}, {test['hi']:+.2f}]"
        for test in comparisons
    ]
    note = (
        f"How near “approached” is, is not said. Differences from the real dialogs with 95 % intervals: {', '.join(intervals)}."
    )
    return unknown(
        f"{note} Baichuan's rest on a column that does not fit ten dialogs, and two of the ratios on one reading of how they were made."
    )


def fewer_complex(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Complex reflections: every model's mean below the real dialogs'?"""
    truth = all(mean(paper, "CR", column) < mean(paper, "CR", "Real") for column in MODELS)
    return holds(truth, f"{tests(paper, 'CR')} {rates(paper, 'CR')}")


def lower_ratio(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Reflection-to-question ratio: every model's below the real dialogs'?"""
    truth = all(mean(paper, "RQ", column) < mean(paper, "RQ", "Real") for column in MODELS)
    return holds(truth, tests(paper, "RQ"))


def highest_complex_ratio(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Complex reflections ratio: the real dialogs' highest? By printed means of ratios, and by ratios of printed means."""
    truth = all(mean(paper, "CRR", column) < mean(paper, "CRR", "Real") for column in MODELS)
    by_counts = ", ".join(f"{column} {ratio_bounds(paper, 'CRR', column)[1]:.2f}" for column in ROUNDS)
    return holds(truth, f"{tests(paper, 'CRR')} As ratio of mean counts: {by_counts}.")


def all_fours(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """ChatGLM: 4.00 on all globals, and no column above it?"""
    rows = (*GLOBALS, "TECH", "REL")
    truth = all(mean(paper, row, "GLM") == 4 for row in rows)
    above = [f"{row} {column}" for row in rows for column in ROUNDS if mean(paper, row, column) > mean(paper, row, "GLM")]
    return holds(
        truth,
        f"Above it: {listed(above) or 'none'}. Every SD of its globals is 0: all ten dialogs were given the same four ratings.",
    )


def around_three_and_a_half(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Globals of the models, pooled: is each at least 3.5?"""
    means = {row: pooled(paper, row)[0] for row in GLOBALS}
    single = [mean(paper, row, column) for row in GLOBALS for column in MODELS]
    note = f"Pooled: {', '.join(f'{row} {value:.2f}' for row, value in means.items())}. "
    note += f"Of the {len(single)} single means {sum(value >= 3.5 for value in single)} are at least 3.5; the lowest is {min(single):.2f}."
    return holds(all(value >= 3.5 for value in means.values()), note)


def higher_empathy(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Empathy: the real dialogs' mean above every model's?"""
    truth = all(mean(paper, "EMP", column) < mean(paper, "EMP", "Real") for column in MODELS)
    return holds(truth, tests(paper, "EMP"))


def at_least_as_frequent(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Seeking collaboration and emphasizing autonomy: the simulated dialogs' mean, pooled, not below the real dialogs'?"""
    rows = ("SEEK", "EA")
    means = {row: (pooled(paper, row)[0], mean(paper, row, "Real")) for row in rows}
    below = [f"{row} {column}" for row in rows for column in MODELS if mean(paper, row, column) < mean(paper, row, "Real")]
    note = f"Pooled: {', '.join(f'{row} {ours:.2f} to {real:.2f}' for row, (ours, real) in means.items())}. "
    note += f"Single models below: {listed(below) or 'none'}. {rates(paper, 'SEEK')}"
    return holds(all(ours >= real for ours, real in means.values()), note)


def more_information(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Giving information and affirming: every model's mean above the real dialogs'?"""
    truth = all(mean(paper, row, column) > mean(paper, row, "Real") for row in ("GI", "AF") for column in MODELS)
    return holds(truth, f"GI: {tests(paper, 'GI')} AF: {tests(paper, 'AF')}")


def persuasion(paper: Paper) -> dict[str, float]:
    """Persuading: each model's mean as a multiple of the real dialogs', by column."""
    return {column: mean(paper, "PERS", column) / mean(paper, "PERS", "Real") for column in MODELS}


def infrequent(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Persuading and confronting: how often, beside the real dialogs?

    “Infrequent” has no printed threshold, so there is no verdict; the note compares the groups.
    """
    times = ", ".join(f"{column} {ratio:.1f}" for column, ratio in persuasion(paper).items())
    note = f"From which number on a behavior is frequent is not said. Persuading as a multiple of the real dialogs': {times}; pooled "
    note += f"{pooled(paper, 'PERS')[0]:.2f} to {mean(paper, 'PERS', 'Real'):.2f}. Confronting, pooled: {pooled(paper, 'CONF')[0]:.2f} to "
    note += f"{mean(paper, 'CONF', 'Real'):.2f}. {tests(paper, 'PERS')} {rates(paper, 'PERS')}"
    return unknown(note)


def order_of_adherence(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """MI-adherent ratio: the stated order by the printed ratios, and by the ratios of the printed counts.

    If a printed ratio is outside what its counts allow, the order is `possible` where an example of codes fits the ratio rater by
    rater (see the method of the ratios), else `inconsistent`.
    """
    printed = {column: mean(paper, "ADH", column) for column in ROUNDS}
    by_counts = {column: ratio_bounds(paper, "ADH", column)[1] for column in ROUNDS}
    truth = printed["GLM"] > printed["Baichuan"] >= printed["Real"] > printed["Llama"]
    order = " > ".join(f"{column} {by_counts[column]:.2f}" for column in sorted(by_counts, key=lambda name: -by_counts[name]))
    outside = [column for column in ROUNDS if not within(paper, "ADH", column)]
    note = f"By the ratios of the printed mean counts: {order}."
    if not truth or not outside:
        return holds(truth, note)
    note += f" The ratios of {listed(outside)} cannot follow from the raters' mean counts. They can if each rater's ratio was averaged, but in the"
    note += " codes found for that, one rater gives most of a dialog's persuading."
    explained = all(adherence_codes(paper, column) for column in outside)
    return Result("possible", note) if explained else Result("inconsistent", note, cause="adherence")


def within(paper: Paper, row: str, column: str) -> bool:
    """Whether a printed ratio can be the mean of per-dialog ratios."""
    low, _, high = ratio_bounds(paper, row, column)
    printed = cell(paper, row, column).mean
    return low - printed.half <= printed.value <= high + printed.half


def smaller_deviations(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """SDs of behavior counts: the simulated dialogs', pooled, below the real dialogs' for several (more than half of the rows)?"""
    deviations = {row: (pooled(paper, row)[1], moments(paper, row, "Real")[1].value) for row in COUNTS}
    smaller = [row for row, (ours, real) in deviations.items() if ours < real]
    larger = ", ".join(f"{row} {ours:.2f} to {real:.2f}" for row, (ours, real) in deviations.items() if row not in smaller)
    note = f"Pooled, {len(smaller)} of {len(COUNTS)} SDs are smaller (not: {larger or 'none'}). Rounds vary more among the real dialogs too: SD "
    note += ", ".join(f"{column} {paper[claim_id].reported_sd}" for column, claim_id in ROUNDS.items()) + "."
    return holds(len(smaller) > len(COUNTS) / 2, note)


def lengths(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 4: real dialogs with more rounds, shorter counselor and longer client volleys than every model's?"""

    def value(row: str, feature: str) -> float:
        return paper[f"T4-{row}-{feature}"].mean.value

    truth = all(
        value("real", "rounds") > value(row, "rounds")
        and value("real", "counselor") < value(row, "counselor")
        and value("real", "client") > value(row, "client")
        for row in (model.table_4 for model in tuned().values())
    )
    return holds(truth, "by the printed means of Table 4")


def most_frequent(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Questions and simple reflections: the two most frequent behaviors in every column?"""
    behaviors = [row for row in COUNTS if row != "TR"]
    first = {column: sorted(behaviors, key=lambda row, c=column: -mean(paper, row, c))[:2] for column in ROUNDS}  # type: ignore[misc]
    return holds(
        all(set(two) == {"Q", "SR"} for two in first.values()), ", ".join(f"{c}: {listed(two)}" for c, two in first.items())
    )
