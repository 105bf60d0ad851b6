"""How far raters agree: published worked examples, reference implementations, and the table over whole transcripts."""

import math
import re
import time
from itertools import combinations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nltk.metrics.agreement import AnnotationTask
from numpy.typing import NDArray
from scipy import stats

from mi_llm.codebook.coding import Behavior, Global
from mi_llm.miti.reliability import (
    COLUMNS,
    EQUAL,
    FEW,
    HANGS,
    NEGATIVE,
    NO_VALUE,
    SINGLE,
    Numbers,
    alphas,
    cohen,
    coincidences,
    estimate,
    fleiss,
    icc_sums,
    iccs,
    kappas,
    pearson_sums,
    pearsons,
    table,
)
from mi_llm.report.chinese import chinese

Places = NDArray[np.int64]

# Cohen 1960, table 1: 200 patients by two psychiatrists, as frequencies; kappa .492.
COHEN_1960 = [[88, 10, 2], [14, 40, 6], [18, 10, 12]]

# Fleiss 1971, table 1: how many of 6 psychiatrists gave each of 30 patients each of 5 diagnoses; kappa .430.
FLEISS_1971 = (
    "00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031"
    " 00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"
)

# Shrout & Fleiss 1979, table 2: 6 targets by 4 judges; ICC(2,1) .29, ICC(2,4) .62 (table 4).
SHROUT_1979 = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: A binary, two observers; B nominal, two observers; C four
# observers, some silent.
KRIPPENDORFF_A = ["0100000010", "1110010000"]
KRIPPENDORFF_B = ["aabbdcccedda", "babbbccceddd"]
KRIPPENDORFF_C = ["123321412***", "1233224125*3", "*3332342251*", "12332441251*"]

# Anscombe 1973, the first of four: r .816.
ANSCOMBE_1973 = [
    [10.0, 8.04], [8.0, 6.95], [13.0, 7.58], [9.0, 8.81], [11.0, 8.33], [14.0, 9.96],
    [6.0, 7.24], [4.0, 4.26], [12.0, 10.84], [7.0, 4.82], [5.0, 5.68],
]  # fmt: skip


def codes_of(observers: list[str], silent: str = "") -> Numbers:
    """Observers' codes as units x observers, each code by its place in the alphabet of those used."""
    known = sorted(set("".join(observers)) - set(silent))
    return np.array([[known.index(code) if code in known else np.nan for code in unit] for unit in zip(*observers, strict=True)])


def alpha(values: Numbers, levels: int, *, ordinal: bool = False) -> float:
    """Alpha of units x raters."""
    return float(alphas(coincidences(values, levels).sum(axis=0), ordinal=ordinal))


def icc(scores: Numbers, *, mean: bool = False) -> float:
    """The ICC of transcripts x raters."""
    return float(iccs(icc_sums(scores).sum(axis=0), mean=mean))


def test_cohen_1960() -> None:
    pairs = [(row, column) for row in range(3) for column in range(3) for _ in range(COHEN_1960[row][column])]
    first, second = zip(*pairs, strict=True)
    assert cohen(first, second) == pytest.approx(0.492, abs=5e-4)
    assert float(kappas(np.array(COHEN_1960, dtype=float))) == pytest.approx(cohen(first, second))


def test_fleiss_1971() -> None:
    counts = [[int(count) for count in patient] for patient in FLEISS_1971.split()]
    assert np.sum(counts, axis=0).tolist() == [26, 26, 30, 55, 43]
    items = [[code for code, count in enumerate(patient) for _ in range(count)] for patient in counts]
    assert fleiss(items) == pytest.approx(0.430, abs=5e-4)


def test_shrout_and_fleiss_1979() -> None:
    scores = np.array(SHROUT_1979, dtype=float)
    assert round(icc(scores), 2) == 0.29
    assert round(icc(scores, mean=True), 2) == 0.62


@pytest.mark.parametrize(
    ("scores", "single", "mean"),  # ICC(A,1) and ICC(A,k) of pingouin 0.7.0's intraclass_corr
    [
        (SHROUT_1979, 0.289764, 0.620051),
        ([[16, 16], [2, 3], [6, 5], [5, 4], [7, 7], [16, 16], [19, 19], [16, 14]], 0.989496, 0.994720),
        ([[14, 3, 8], [11, 7, 8], [11, 13, 10], [4, 10, 12], [6, 10, 8], [14, 4, 9]], -0.357220, -3.752852),
    ],
)
def test_icc_equals_pingouins(scores: list[list[int]], single: float, mean: float) -> None:
    assert icc(np.array(scores, dtype=float)) == pytest.approx(single, abs=1e-6)
    assert icc(np.array(scores, dtype=float), mean=True) == pytest.approx(mean, abs=1e-6)


def test_krippendorff_2011() -> None:
    assert alpha(codes_of(KRIPPENDORFF_A), 2) == pytest.approx(0.095, abs=5e-4)
    assert alpha(codes_of(KRIPPENDORFF_B), 5) == pytest.approx(0.692, abs=5e-4)
    four = codes_of(KRIPPENDORFF_C, silent="*")
    assert alpha(four, 5) == pytest.approx(0.743, abs=5e-4)
    assert alpha(four, 5, ordinal=True) == pytest.approx(0.815, abs=5e-4)


def test_anscombe_1973() -> None:
    assert float(pearsons(pearson_sums(np.array(ANSCOMBE_1973)).sum(axis=0))) == pytest.approx(0.816, abs=5e-4)


def same(ours: float, reference: float) -> bool:
    """Equal, or both nan."""
    return ours == pytest.approx(reference, nan_ok=True, abs=1e-9)


codings = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30)


@given(codings)
def test_kappa_equals_nltks(pairs: list[tuple[int, int]]) -> None:
    assume(len({code for pair in pairs for code in pair}) > 1)
    task = AnnotationTask([(str(rater), str(item), code) for item, pair in enumerate(pairs) for rater, code in enumerate(pair)])
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    first, second = zip(*pairs, strict=True)
    assert same(cohen(first, second), float(kappas(counts)))
    if math.isfinite(cohen(first, second)):
        assert same(cohen(first, second), task.kappa())


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 4, np.nan]), min_size=3, max_size=3), min_size=3, max_size=20))
def test_alpha_equals_krippendorffs_library(units: list[list[float]]) -> None:
    values = np.array(units, dtype=float)
    pairable = values[(~np.isnan(values)).sum(axis=1) > 1]
    assume(len(set(pairable[~np.isnan(pairable)])) > 1)
    nominal = krippendorff.alpha(values.T, value_domain=np.arange(5), level_of_measurement="nominal")
    ordinal = krippendorff.alpha(values.T, value_domain=np.arange(5), level_of_measurement="ordinal")
    assert same(alpha(values, 5), nominal)
    assert same(alpha(values, 5, ordinal=True), ordinal)


scores_of = st.integers(2, 4).flatmap(
    lambda raters: st.lists(st.lists(st.integers(0, 20), min_size=raters, max_size=raters), min_size=3, max_size=12)
)


def analysis_of_variance(scores: Numbers) -> tuple[float, float, float]:
    """The mean squares of transcripts, raters and rest, from least squares on indicators: what adding each factor explains."""
    n, k = scores.shape
    rows, columns = (indices.ravel() for indices in np.indices(scores.shape))

    def unexplained(*factors: tuple[Places, int]) -> float:
        design = np.column_stack([np.ones(n * k), *(factor[:, None] == np.arange(size) for factor, size in factors)])
        return float(((scores.ravel() - design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]) ** 2).sum())

    rest = unexplained((rows, n), (columns, k))
    transcripts, raters = unexplained((columns, k)) - rest, unexplained((rows, n)) - rest
    return transcripts / (n - 1), raters / (k - 1), rest / ((n - 1) * (k - 1))


@given(scores_of)
def test_icc_equals_that_of_an_analysis_of_variance(table: list[list[int]]) -> None:
    scores = np.array(table, dtype=float)
    between, raters, rest = analysis_of_variance(scores)
    n, k = scores.shape
    assume(between + (raters - rest) / n > 1e-6)
    assert icc(scores) == pytest.approx((between - rest) / (between + (k - 1) * rest + k * (raters - rest) / n), abs=1e-6)
    assert icc(scores, mean=True) == pytest.approx((between - rest) / (between + (raters - rest) / n), rel=1e-4, abs=1e-6)


@given(scores_of)
def test_r_equals_scipys(table: list[list[int]]) -> None:
    pairs = np.array(table, dtype=float)[:, :2]
    assume(len(set(pairs[:, 0])) > 1 and len(set(pairs[:, 1])) > 1)
    assert same(float(pearsons(pearson_sums(pairs).sum(axis=0))), float(stats.pearsonr(*pairs.T).statistic))


def test_what_does_not_vary_has_no_agreement() -> None:
    constant = np.full((4, 2), 3.0)
    assert math.isnan(icc(constant))
    assert math.isnan(icc(np.array([[1.0, 2.0]])))
    assert math.isnan(alpha(constant, 5))
    assert math.isnan(float(pearsons(pearson_sums(constant).sum(axis=0))))
    assert math.isnan(float(kappas(np.array([[4.0, 0.0], [0.0, 0.0]]))))
    assert math.isnan(float(kappas(np.zeros((2, 2)))))


def test_an_interval_is_made_of_the_measure_without_each_transcript() -> None:
    chance = np.random.default_rng(7)
    transcripts = [chance.integers(0, 2, size=(size, 2)) for size in (5, 9, 4, 12, 4, 8)]
    tables = np.zeros((6, 2, 2))
    for index, pairs in enumerate(transcripts):
        np.add.at(tables[index], tuple(pairs.T), 1)
    kappa = estimate(tables, kappas, 0.9)
    without = []
    for left_out in range(6):
        pairs = np.concatenate([pairs for index, pairs in enumerate(transcripts) if index != left_out])
        without.append(cohen(pairs[:, 0].tolist(), pairs[:, 1].tolist()))
    error = math.sqrt(5 / 6 * sum((value - sum(without) / 6) ** 2 for value in without))
    half = stats.t.ppf(0.95, 5) * error / (1 - kappa.value)
    assert kappa.value == pytest.approx(cohen(*np.concatenate(transcripts).T.tolist()))
    assert (kappa.lo, kappa.hi) == pytest.approx(tuple(1 - (1 - kappa.value) * math.exp(side * half) for side in (1, -1)))
    assert estimate(tables, kappas, 0.9, least=0.0).lo == max(kappa.lo, 0.0)


def test_an_interval_that_does_not_exist_says_why() -> None:
    agree = np.tile(np.diag([2.0, 3.0]), (6, 1, 1))
    assert estimate(agree, kappas, 0.95).note == f"no interval: {EQUAL}"
    assert estimate(np.tile([[2.0, 1.0], [1.0, 3.0]], (4, 1, 1)), kappas, 0.95).note == f"no interval: {FEW}"
    tables = np.tile(np.array([[2.0, 0.0], [0.0, 0.0]]), (6, 1, 1))
    tables[0] = [[1.0, 1.0], [0.0, 1.0]]  # without it, there is a single code
    kappa = estimate(tables, kappas, 0.95)
    assert (math.isnan(kappa.value), math.isnan(kappa.lo), kappa.note) == (False, True, f"no interval: {HANGS}")


def frames(rows: list[tuple[str, str, int, str]], ratings: dict[tuple[str, str], str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of codes.csv, and of globals.csv from four digits a rater and packet."""
    rated = [(*key, str(code), int(digit)) for key, digits in ratings.items() for code, digit in zip(Global, digits, strict=True)]
    return (
        pd.DataFrame(rows, columns=["rater", "packet", "volley", "code"]),
        pd.DataFrame(rated, columns=["rater", "packet", "code", "rating"]),
    )


def spread(rater: str, packet: str, volleys: str) -> list[tuple[str, str, int, str]]:
    """`Q+SR - Q` as rows: the volleys 2, 4, 6."""
    return [
        (rater, packet, 2 * number, "" if code == "-" else code)
        for number, codes in enumerate(volleys.split(), 1)
        for code in codes.split("+")
    ]


TWO = frames(
    [
        *spread("r1", "p", "Q+SR Q - AF"),
        *spread("r2", "p", "Q CR - AF"),
        *spread("r1", "q", "SR SR Q"),
        *spread("r2", "q", "SR Q Q"),
        *spread("r1", "s", "Q - Q+AF"),
        *spread("r2", "s", "Q - Q"),
        *spread("r1", "only", "CONF"),
    ],
    {
        ("r1", "p"): "3345",
        ("r2", "p"): "3355",
        ("r1", "q"): "2222",
        ("r2", "q"): "3222",
        ("r1", "s"): "5444",
        ("r2", "s"): "4444",
    },
)


def test_the_table_holds_what_the_functions_give_of_what_both_coded() -> None:
    measures = table(*TWO)
    assert list(measures.columns) == COLUMNS
    assert set(measures["raters"]) == {"r1, r2"}
    value = {(row.measure, row.code): (row.value, row.n) for row in measures.itertuples()}
    seen = {  # in the ten volleys that both coded
        "Q": ([1, 1, 0, 0, 0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 1, 1, 1, 0, 1]),
        "SR": ([1, 0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
        "AF": ([0, 0, 0, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        "CR": ([0] * 10, [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
    for code, (first, second) in seen.items():
        assert value["kappa", code] == (pytest.approx(cohen(first, second), abs=1e-4), 10)
        nominal = krippendorff.alpha([first, second], level_of_measurement="nominal")
        assert value["alpha", code] == (pytest.approx(nominal, abs=1e-4), 10)
    nothing = [0] * 10
    pooled = [[seen_here for code in Behavior for seen_here in seen.get(code, (nothing, nothing))[which]] for which in (0, 1)]
    assert value["kappa", "behaviors"] == (pytest.approx(cohen(*pooled), abs=1e-4), 100)
    assert math.isnan(value["kappa", "CONF"][0])  # coded in a packet that one rater coded only
    counts = np.array([[1, 0], [2, 1], [0, 0]], dtype=float)  # SR in p, q, s
    assert value["ICC(2,1)", "SR"] == (pytest.approx(icc(counts), abs=1e-4), 3)
    assert value["ICC(2,k)", "SR"] == (pytest.approx(icc(counts, mean=True), abs=1e-4), 3)
    assert value["pearson", "SR"] == (pytest.approx(stats.pearsonr(*counts.T).statistic, abs=1e-4), 3)
    ratings = [[3, 2, 5], [3, 3, 4]]  # CCT
    assert value["ICC(2,1)", "CCT"] == (pytest.approx(icc(np.array(ratings, dtype=float).T), abs=1e-4), 3)
    assert value["alpha", "CCT"] == (pytest.approx(krippendorff.alpha(ratings, level_of_measurement="ordinal"), abs=1e-4), 3)
    assert value["pearson", "CCT"] == (pytest.approx(stats.pearsonr(*ratings).statistic, abs=1e-4), 3)
    told = [[3, 3, 4, 5, 2, 2, 2, 2, 5, 4, 4, 4], [3, 3, 5, 5, 3, 2, 2, 2, 4, 4, 4, 4]]
    assert value["pearson", "globals"] == (pytest.approx(stats.pearsonr(*told).statistic, abs=1e-4), 12)
    known = measures.dropna()
    assert ((known["lo"] <= known["value"]) & (known["value"] <= known["hi"])).all()


def test_the_table_does_not_depend_on_the_order_of_rows_nor_on_how_an_empty_field_was_read() -> None:
    codes, ratings = TWO
    again = table(codes.sample(frac=1, random_state=1), ratings.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(again, table(codes, ratings))
    codes = codes.assign(code=codes["code"].replace("", None))  # as pandas reads an empty field
    pd.testing.assert_frame_equal(again, table(codes, ratings))


def test_what_does_not_exist_is_said_with_the_reason_beside_the_share_of_equal_decisions() -> None:
    always = [row for packet in "pqst" for rater in ("r1", "r2") for row in spread(rater, packet, "Q Q Q")]
    pairs = {"p": ("3333", "3333"), "q": ("3333", "3333"), "s": ("3333", "4333"), "t": ("4333", "3333")}
    ratings = {(rater, packet): rated[index] for packet, rated in pairs.items() for index, rater in enumerate(("r1", "r2"))}
    measures = table(*frames(always, ratings)).set_index(["measure", "code"])
    for measure, why in (("kappa", "both raters always gave the same single code"), ("alpha", "the codes do not vary")):
        for code in ("Q", "SR"):  # seen always, and never
            row = measures.loc[(measure, code)]
            assert math.isnan(row["value"])
            assert (row["agreement"], row["note"]) == (1, f"no value: {why}")
    assert measures.loc[("ICC(2,1)", "SST"), ["agreement", "note"]].tolist() == [1, "no value: no variance"]
    assert measures.loc[("pearson", "SST"), "note"] == "no value: one rater's numbers do not vary"
    icc_of_mean = measures.loc[("ICC(2,k)", "CCT")]  # 3 3, 3 3, 3 4, 4 3: half are equal, and the rest is swapped
    assert icc_of_mean["value"] == -2
    assert icc_of_mean["agreement"] == 0.5
    assert icc_of_mean["note"].startswith(
        "below 0: the raters differ more within a transcript than the transcripts do; no interval"
    )
    assert (measures["note"] != "")[measures["value"].isna() | measures["lo"].isna()].all()
    assert measures.loc[("alpha", "CCT"), "agreement"] == measures.loc[("pearson", "CCT"), "agreement"] == 0.5


def test_a_reason_is_said_in_chinese_too() -> None:
    for note in (
        *(f"no value: {why}" for why in NO_VALUE.values()), f"no value: {SINGLE}", NEGATIVE,
        *(f"no interval: {why}" for why in (FEW, HANGS, EQUAL)), f"{NEGATIVE}; no interval: {FEW}",
    ):  # fmt: skip
        assert not re.search("[a-z]", chinese(note))


def test_without_two_raters_of_one_packet_the_table_is_empty() -> None:
    empty = frames([], {})
    apart = frames([*spread("r1", "p", "Q"), *spread("r2", "q", "Q")], {("r1", "p"): "3333", ("r2", "q"): "3333"})
    for codes, ratings in (empty, apart):
        measures = table(codes, ratings)
        assert (list(measures.columns), len(measures)) == (COLUMNS, 0)


def test_a_single_transcript_has_values_and_no_interval() -> None:
    codes, ratings = frames([*spread("r1", "p", "Q Q -"), *spread("r2", "p", "Q - -")], {})
    row = table(codes, ratings).set_index(["measure", "code"]).loc[("kappa", "Q")]
    assert row["value"] == pytest.approx(cohen([1, 1, 0], [1, 0, 0]), abs=1e-4)
    assert math.isnan(row["lo"])
    assert math.isnan(row["hi"])
    assert row["note"] == "no interval: fewer than 5 transcripts"


def test_three_raters_are_compared_two_by_two_and_all_together() -> None:
    codes_by_rater = {"a": "Q SR - Q", "b": "Q - - Q", "c": "- SR - Q"}
    rows = [
        row for packet in ("p", "q", "s") for rater, volleys in codes_by_rater.items() for row in spread(rater, packet, volleys)
    ]
    rows += [*spread("a", "more", "SR"), *spread("c", "more", "Q")]
    measures = table(*frames(rows, {}))
    raters = ["a, b", "a, c", "b, c", "a, b, c"]
    assert list(dict.fromkeys(measures["raters"])) == raters
    n = measures[measures["code"] == "Q"].pivot_table(index="raters", columns="measure", values="n", aggfunc="first")
    assert n.loc[raters, "alpha"].tolist() == [12, 13, 12, 13]
    assert n.loc[raters[:3], "kappa"].tolist() == [12, 13, 12]
    assert n.loc[raters, "ICC(2,k)"].tolist() == [3, 4, 3, 3]
    assert "a, b, c" not in set(measures[measures["measure"].isin(["kappa", "pearson"])]["raters"])


def test_sixty_packets_of_two_raters_take_seconds() -> None:
    chance = np.random.default_rng(1)
    names = [f"p{number:02}" for number in range(60)]
    rows = [
        (rater, name, volley, str(code))
        for name in names
        for rater in ("r1", "r2")
        for volley in range(2, 42, 2)
        for code in chance.choice(list(Behavior), 2, replace=False)
    ]
    ratings = {(rater, name): "".join(map(str, chance.integers(1, 6, 4))) for rater in ("r1", "r2") for name in names}
    began = time.process_time()
    measures = table(*frames(rows, ratings))
    assert time.process_time() - began < 20
    assert len(measures) == 2 * 11 + 3 * 10 + 4 * 4 + 1
    inside = measures.dropna()
    assert len(inside) == len(measures)
    assert ((inside["lo"] <= inside["value"]) & (inside["value"] <= inside["hi"])).mean() > 0.9


def test_kappa_of_raters_who_code_by_chance_is_near_zero() -> None:
    chance = np.random.default_rng(5)
    rows = [
        (rater, f"p{packet:02}", volley, str(chance.choice(["Q", "SR", ""])))
        for packet, volley in combinations(range(2, 42, 2), 2)
        for rater in ("r1", "r2")
    ]
    row = table(*frames(rows, {})).set_index(["measure", "code"]).loc[("kappa", "Q")]
    assert row["lo"] < 0 < row["hi"]
    assert abs(row["value"]) < 0.15
