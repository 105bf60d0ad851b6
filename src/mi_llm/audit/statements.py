"""The paper's statements in words, read against its own tables.

For a stated direction, the printed means are compared. Notes add Welch tests from the printed moments, and
rates per counselor volley if length may explain a difference.
"""

from mi_llm.audit.codes import COUNTS, GLOBALS, cell, ratio_bounds, welch
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Result, holds, listed
from mi_llm.paper.claims import Claim, Paper
from mi_llm.paper.models import REAL, tuned

MODELS = tuple(model.table_6 for model in tuned().values())
ROUNDS = {model.table_6: f"T4-{model.table_4}-rounds" for model in tuned().values()} | {REAL: "T4-real-rounds"}
INFREQUENT = 0.10  # share of all behaviors below which one counts as infrequent


def mean(paper: Paper, row: str, column: str) -> float:
    """The printed mean of one cell of Table 6."""
    return cell(paper, row, column).mean.value


def tests(paper: Paper, row: str) -> str:
    """Welch's p of each model against the real dialogs, as text."""
    return "Welch p: " + ", ".join(f"{column} {welch(paper, row, column)['p']:.2f}" for column in MODELS) + "."


def rates(paper: Paper, row: str) -> str:
    """The rate of a behavior per counselor volley in each column, by the printed means, as text."""
    rate_by_column = {column: mean(paper, row, column) / paper[claim_id].mean.value for column, claim_id in ROUNDS.items()}
    return "Per counselor volley: " + ", ".join(f"{column} {rate:.2f}" for column, rate in rate_by_column.items()) + "."


def approached(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Technical and relational globals and the MI-adherent ratio: is any model's distinguishable from the real dialogs'?"""
    comparisons = [welch(paper, row, column) for row in ("TECH", "REL", "ADH") for column in MODELS]
    apart = [f"{test['indicator']} {test['column']}" for test in comparisons if test["p"] < 0.05]
    widest = max(comparisons, key=lambda test: test["hi"] - test["lo"])
    note = f"{listed(apart) or 'None'} of 9 differ{'s' if len(apart) == 1 else ''} at p < .05. That does not prove similarity: the widest 95 % interval, "
    note += f"{widest['indicator']} {widest['column']}, is {widest['lo']:+.2f} to {widest['hi']:+.2f}."
    return holds(not apart, note)


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
    pooled = ", ".join(f"{column} {ratio_bounds(paper, 'CRR', column)[1]:.2f}" for column in ROUNDS)
    return holds(truth, f"{tests(paper, 'CRR')} As ratio of mean counts: {pooled}.")


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
    """Globals of the models: how many are at least 3.5?"""
    values = [mean(paper, row, column) for row in GLOBALS for column in MODELS]
    note = f"{sum(value >= 3.5 for value in values)} of {len(values)} are at least 3.5; the lowest is {min(values):.2f}."
    return holds(sum(value >= 3.5 for value in values) > len(values) / 2, note)


def higher_empathy(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Empathy: the real dialogs' mean above every model's?"""
    truth = all(mean(paper, "EMP", column) < mean(paper, "EMP", "Real") for column in MODELS)
    return holds(truth, tests(paper, "EMP"))


def at_least_as_frequent(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Seeking collaboration and emphasizing autonomy: no model's mean below the real dialogs'?"""
    below = [
        f"{row} {column}" for row in ("SEEK", "EA") for column in MODELS if mean(paper, row, column) < mean(paper, row, "Real")
    ]
    return holds(not below, f"Below: {listed(below) or 'none'}. {rates(paper, 'SEEK')}")


def more_information(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Giving information and affirming: every model's mean above the real dialogs'?"""
    truth = all(mean(paper, row, column) > mean(paper, row, "Real") for row in ("GI", "AF") for column in MODELS)
    return holds(truth, f"GI: {tests(paper, 'GI')} AF: {tests(paper, 'AF')}")


def infrequent(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Persuading and confronting: under 10 % of all coded behaviors in every column?"""
    behaviors = [row for row in COUNTS if row != "TR"]
    shares = {
        column: (mean(paper, "PERS", column) + mean(paper, "CONF", column)) / sum(mean(paper, row, column) for row in behaviors)
        for column in ROUNDS
    }
    note = (
        "Share of all behaviors: "
        + ", ".join(f"{column} {share:.3f}" for column, share in shares.items())
        + f". {tests(paper, 'PERS')}"
    )
    return holds(all(share < INFREQUENT for share in shares.values()), f"{note} {rates(paper, 'PERS')}")


def order_of_adherence(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """MI-adherent ratio: the stated order by the printed ratios, and by the ratios of the printed counts.

    `inconsistent` if a ratio in the order is impossible given its counts.
    """
    printed = {column: mean(paper, "ADH", column) for column in ROUNDS}
    pooled = {column: ratio_bounds(paper, "ADH", column)[1] for column in ROUNDS}
    truth = printed["GLM"] > printed["Baichuan"] >= printed["Real"] > printed["Llama"]
    order = " > ".join(f"{column} {pooled[column]:.2f}" for column in sorted(pooled, key=lambda name: -pooled[name]))
    impossible = [column for column in ROUNDS if not within(paper, "ADH", column)]
    note = f"By the printed counts: {order}. Ratios that are impossible given their counts: {listed(impossible) or 'none'}."
    return Result("inconsistent", note) if truth and impossible else holds(truth, note)


def within(paper: Paper, row: str, column: str) -> bool:
    """Whether a printed ratio can be the mean of per-dialog ratios."""
    low, _, high = ratio_bounds(paper, row, column)
    printed = cell(paper, row, column).mean
    return low - printed.half <= printed.value <= high + printed.half


def smaller_deviations(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """SDs of behavior counts: how many of the models' are below the real dialogs'?"""
    deviations = {(row, column): cell(paper, row, column).sd for row in COUNTS for column in ROUNDS}
    smaller = [
        (row, column)
        for row in COUNTS
        for column in MODELS
        if (own := deviations[row, column]) and (real := deviations[row, "Real"]) and own.value < real.value
    ]
    note = f"{len(smaller)} of {len(COUNTS) * len(MODELS)} SDs are smaller. Rounds vary more among the real dialogs too: SD "
    note += ", ".join(f"{column} {paper[claim_id].reported_sd}" for column, claim_id in ROUNDS.items()) + "."
    return holds(len(smaller) > len(COUNTS) * len(MODELS) / 2, note)


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
