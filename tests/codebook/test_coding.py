"""The codebook, the lexical coder, and how far the coder agrees with experts."""

import math
import time
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from edits import edit
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mi_llm import registry, storage
from mi_llm.audit import annomi as audit_annomi
from mi_llm.audit import codes
from mi_llm.audit.evidence import Evidence
from mi_llm.codebook import lexical
from mi_llm.codebook.coding import (
    ADHERENT,
    ADHERENT_RATIO,
    BEHAVIORS,
    COMPLEX_SHARE,
    GLOBALS,
    NONADHERENT,
    REFLECTIONS,
    REFLECTIONS_TO_QUESTIONS,
    RELATIONAL,
    TECHNICAL,
    THRESHOLDS,
    Behavior,
    Global,
    Summary,
    rating,
    volley,
)
from mi_llm.construct.translate import translate
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.language import language
from mi_llm.miti import miti as validation
from mi_llm.miti.reliability import cohen
from mi_llm.study import Study, load

TABLE_6 = {  # means of the behavior counts as printed
    "Llama": {
        "GI": 4.5,
        "PwP": 0.1,
        "Q": 16.0,
        "SR": 13.1,
        "CR": 5.0,
        "AF": 3.35,
        "SEEK": 1.4,
        "EA": 0.45,
        "PERS": 3.4,
        "CONF": 0,
    },
    "Real": {
        "GI": 1.07,
        "PwP": 0.8,
        "Q": 13.43,
        "SR": 14.17,
        "CR": 6.13,
        "AF": 3.3,
        "SEEK": 1.53,
        "EA": 0.6,
        "PERS": 1.57,
        "CONF": 0.1,
    },
}
GLOBALS_6 = {
    "Llama": {"CCT": 4.0, "SST": 3.9, "EMP": 3.8, "PAR": 4.0},
    "Real": {"CCT": 3.97, "SST": 3.87, "EMP": 4.07, "PAR": 3.83},
}


def test_the_codebook_has_an_entry_for_each_code_in_both_languages() -> None:
    assert [entry.code for entry in GLOBALS] == list(Global)
    assert [entry.code for entry in BEHAVIORS] == list(Behavior)
    told = [entry.name for entry in (*GLOBALS, *BEHAVIORS)] + [anchor for entry in GLOBALS for anchor in entry.anchors]
    told += [entry.rule for entry in BEHAVIORS]
    assert all(text.en.isascii() and language.load("zh").letter.search(text.zh) for text in told)
    assert len(told) == len(set(told)) == 14 + 20 + 10


def test_the_codebook_agrees_with_the_audit_of_table_6() -> None:
    assert tuple(Global) == codes.GLOBALS
    assert set(Behavior) == set(codes.COUNTS) - {"TR"}
    assert {score.code: score.top for score in (REFLECTIONS, TECHNICAL, RELATIONAL)} == codes.SUMS
    for score in (COMPLEX_SHARE, REFLECTIONS_TO_QUESTIONS, ADHERENT_RATIO):
        assert isinstance(score.bottom, tuple)
        top, bottom = codes.RATIOS[score.code]
        assert (set(score.top), set(score.bottom)) == (set(top), set(bottom))


def test_adherent_behaviors_are_those_of_the_formulas() -> None:
    assert {entry.code for entry in BEHAVIORS if entry.adherent} == set(ADHERENT.top)
    assert {entry.code for entry in BEHAVIORS if entry.adherent is False} == set(NONADHERENT.top)


@pytest.mark.parametrize(
    ("score", "column", "expected"),
    [
        (REFLECTIONS, "Llama", 18.1),
        (REFLECTIONS, "Real", 20.3),
        (ADHERENT, "Real", 5.43),
        (NONADHERENT, "Real", 1.67),
        (COMPLEX_SHARE, "Llama", 0.2762),
        (COMPLEX_SHARE, "Real", 0.3020),
        (REFLECTIONS_TO_QUESTIONS, "Llama", 1.1313),
        (ADHERENT_RATIO, "Llama", 0.6047),
        (ADHERENT_RATIO, "Real", 0.7648),
    ],
)
def test_scores_of_the_counts_of_table_6(score: Summary[Behavior], column: str, expected: float) -> None:
    counts = {behavior: TABLE_6[column][behavior] for behavior in Behavior}
    assert score(counts) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("score", "column", "printed"),
    [(TECHNICAL, "Llama", 3.95), (TECHNICAL, "Real", 3.92), (RELATIONAL, "Llama", 3.9), (RELATIONAL, "Real", 3.95)],
)
def test_global_scores_are_those_printed_in_table_6(score: Summary[Global], column: str, printed: float) -> None:
    assert score({code: GLOBALS_6[column][code] for code in Global}) == pytest.approx(printed)


def test_a_ratio_without_a_denominator_does_not_exist() -> None:
    silent: Counter[Behavior] = Counter()
    assert COMPLEX_SHARE(silent) is REFLECTIONS_TO_QUESTIONS(silent) is ADHERENT_RATIO(silent) is None
    assert REFLECTIONS(silent) == ADHERENT(silent) == 0
    assert rating(None, THRESHOLDS["RQ"]) is None


def test_formulas_read_as_in_table_2() -> None:
    assert str(COMPLEX_SHARE) == "CR / (SR + CR)"
    assert str(REFLECTIONS_TO_QUESTIONS) == "(SR + CR) / Q"
    assert str(TECHNICAL) == "(CCT + SST) / 2"
    assert str(ADHERENT_RATIO) == "(SEEK + AF + EA) / (SEEK + AF + EA + CONF + PERS)"
    assert str(NONADHERENT) == "CONF + PERS"


@pytest.mark.parametrize(
    ("code", "below", "fair", "good"), [("TECH", 2.9, 3, 4), ("REL", 3.4, 3.5, 4), ("RQ", 0.9, 1, 2), ("CRR", 0.39, 0.4, 0.5)]
)
def test_ratings_begin_at_the_published_thresholds(code: str, below: float, fair: float, good: float) -> None:
    assert [rating(value, THRESHOLDS[code]) for value in (below, fair, good)] == ["below fair", "fair", "good"]


def test_a_volley_counts_each_behavior_once_and_one_reflection() -> None:
    b = Behavior
    assert volley([b.QUESTION, None, b.QUESTION]) == {b.QUESTION}
    assert volley([b.SIMPLE, b.QUESTION, b.COMPLEX]) == {b.COMPLEX, b.QUESTION}
    assert volley([b.PERSUADE, b.PERSUADE_WITH]) == {b.PERSUADE_WITH}


CUES: list[
    tuple[str, str, list[str | None]]
] = [  # what the client said, what the counselor answers, and the codes of its utterances
    ("", "你好，很高兴见到你。", [None]),
    ("我知道该动一动，可下班就不想动了。", "听起来你下班就不想动了。", ["SR"]),
    ("我知道该动一动，可下班就不想动了。", "一边是心里那份对健康的渴望，一边像是被抽空了的身体，你很纠结。", ["CR"]),
    ("我昨天没喝酒。", "听起来你昨天没喝酒，这对你来说是什么感觉呢？", ["SR", "Q"]),
    ("我昨天没喝酒。", "你昨天没喝酒，对吗？", ["SR"]),
    ("我昨天没喝酒。", "能说说昨天是怎么过的吗？", ["Q"]),
    ("我昨天没喝酒。", "忍住一整晚需要很大的勇气，这值得肯定。", ["AF"]),
    ("我想想。", "戒不戒由你自己决定。", ["EA"]),
    ("我想想。", "我们一起看看哪条路合适。", ["SEEK"]),
    ("我想想。", "研究表明，睡前喝酒会导致半夜醒来。", ["GI"]),
    ("我想想。", "你应该每天走一万步。", ["PERS"]),
    ("我该怎么办？", "你可以尝试每天走一万步。", ["PwP"]),
    ("我想想。", "如果你愿意，可以试试饭后散步。", ["PwP"]),
    ("我想想。", "以下是一些建议：\n1. **散步**：每天半小时。\n2. **早睡**：十点关灯。", ["PERS", "PERS", "PERS"]),
    ("我又喝了。", "你总是找借口，你根本不想改。", ["CONF"]),
    ("", "Hello, and thank you for coming.", [None]),
    ("I skip breakfast and then I eat all evening.", "So you skip breakfast, and you eat all evening.", ["SR"]),
    (
        "I skip breakfast and then I eat all evening.",
        "It sounds like food is a way to feel comforted after a lonely day.",
        ["CR"],
    ),
    ("I walked on Monday.", "You walked on Monday. How was that?", ["SR", "Q"]),
    ("I walked on Monday.", "You walked on Monday, is that right?", ["SR"]),
    ("I walked on Monday.", "Tell me more about Monday.", ["Q"]),
    ("I walked on Monday.", "You've worked really hard on that.", ["AF"]),
    ("I don't know.", "Whether you walk at all is up to you.", ["EA"]),
    ("I don't know.", "Would it be okay if we looked at your week?", ["SEEK"]),
    ("I don't know.", "Studies find that short walks lower blood pressure.", ["GI"]),
    ("I don't know.", "You should walk every day.", ["PERS"]),
    ("What should I do?", "You could walk every day.", ["PwP"]),
    ("I don't know.", "I'd recommend a walk. What do you think?", ["PwP", "SEEK"]),
    ("I don't know.", "Why don't you try a walk?", ["PERS"]),
    ("I drank again.", "You're just making excuses.", ["CONF"]),
]


@pytest.mark.parametrize(("client", "counselor", "expected"), CUES)
def test_cues_give_codes(client: str, counselor: str, expected: list[str | None]) -> None:
    assert [utterance.behavior for utterance in lexical.code(client, counselor)] == expected


def test_a_volley_is_read_in_the_language_that_it_is_in() -> None:
    english, chinese = "It sounds like you are worried about it.", "听起来你很担心。"
    for code in registry.languages():
        assert [lexical.spoken(text, code).language.code for text in (english, chinese)] == ["en", "zh"]
    assert lexical.spoken("…", "zh").language.code == "en", "as before there were languages"


@pytest.mark.parametrize("chinese", [True, False])
def test_every_behavior_is_reached_in_both_languages(chinese: bool) -> None:
    table = [told for _, counselor, told in CUES if bool(language.load("zh").letter.search(counselor)) == chinese]
    assert {code for told in table for code in told if code} == set(Behavior)


def test_counts_take_each_volley_with_the_client_before_it() -> None:
    volleys = [("counselor", "你好。"), ("client", "我想少抽烟。"), ("counselor", "听起来你想少抽烟。什么时候最想抽？为什么呢？")]
    dialog = Dialog(id="a", source="b", turns=tuple(Turn.model_validate({"role": role, "text": text}) for role, text in volleys))
    assert lexical.counts(dialog) == {Behavior.SIMPLE: 1, Behavior.QUESTION: 1}


@given(st.text(alphabet="你想吗呢。？！，：；…—-*1.\n \"”ab'Mr,?!;(", max_size=60))
def test_the_utterances_joined_are_the_volley(counselor: str) -> None:
    assert "".join(utterance.text for utterance in lexical.code("", counselor)) == counselor


def test_ten_thousand_volleys_take_a_few_seconds() -> None:
    volleys = [(client, counselor) for client, counselor, _ in CUES] * 334
    start = time.process_time()
    for client, counselor in volleys:
        lexical.code(client, counselor)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", registry.languages())
def test_cue_files_have_the_groups_the_coder_asks_for_each_with_a_reason(name: str) -> None:
    groups = language.load(name).read("cues.yaml")
    beside = {"openers", "idle", "uncoded", "permission", "asked", "interrogative", "tags", "client", "speaker", "meaning"}
    assert set(groups) == {group for group, _ in lexical.ORDER} | beside
    for entry in groups.values():
        cues = lexical.words(entry["cues"])
        assert entry["why"].endswith(".")
        assert all(cues)
        assert len(cues) == len(set(cues))


# AnnoMI's experts


def rows(*told: tuple[str, str, str, str, str]) -> list[tuple[str, dict[str, str]]]:
    """AnnoMI rows of (utterance, expert, interlocutor, text, main behavior); a question or reflection has its mark."""
    return [
        (
            "here",
            {"transcript_id": "1", "mi_quality": "high", "utterance_id": number, "annotator_id": expert, "interlocutor": who}
            | {"utterance_text": text, "main_therapist_behaviour": "reflection" if main in ("simple", "complex") else main}
            | {"therapist_input_exists": str(main == "therapist_input")}
            | {"question_exists": str(main == "question"), "reflection_exists": str(main in ("simple", "complex"))}
            | {"reflection_subtype": main if main in ("simple", "complex") else "n/a"}
            | {"therapist_input_subtype": "advice" if main == "therapist_input" else "n/a", "client_talk_type": main},
        )
        for number, expert, who, text, main in told
    ]


def test_where_several_experts_coded_most_of_them_decide() -> None:
    (session,) = validation.sessions_of(
        rows(
            ("2", "a", "therapist", "You rest.", "other"),
            ("1", "a", "client", "I rest.", "n/a"),
            ("2", "b", "therapist", "You rest.", "complex"),
            ("1", "b", "client", "I rest.", "n/a"),
            ("2", "c", "therapist", "You rest.", "complex"),
            ("2", "d", "therapist", "You rest.", "simple"),
        )
    )
    assert [(turn.role, turn.text) for turn in session.turns] == [("client", "I rest."), ("counselor", "You rest.")]
    assert list(session.experts) == ["a", "b", "c", "d"]
    assert validation.consensus(session)[2]["reflection"] == "True"
    assert validation.consensus(session)[2]["complex reflection"] == "complex"
    session.experts["e"] = session.experts["f"] = session.experts["a"]
    assert validation.consensus(session)[2]["reflection"] == "False"  # told equally often: the first expert's
    assert "complex reflection" not in validation.consensus(session)[2]


SESSION = rows(
    ("1", "a", "therapist", "Why?", "question"),
    ("2", "a", "therapist", "You rest.", "simple"),
    ("3", "a", "therapist", "Who?", "question"),
    ("4", "a", "therapist", "Walk more.", "therapist_input"),
)
RIGHT = {1: Behavior.QUESTION, 2: Behavior.SIMPLE, 3: Behavior.QUESTION, 4: Behavior.PERSUADE}


def agreement(seen: dict[int, Behavior]) -> dict[str, dict[str, Any]]:
    """Of a coder who saw these behaviors in `SESSION`."""
    (session,) = validation.sessions_of(SESSION)
    coded = validation.labeled({number: frozenset({behavior}) for number, behavior in seen.items()})
    pairs = [[(coded, validation.consensus(session))]]
    return {row["code"]: row for row in validation.agreement("someone", "en", pairs, 0.95)}


def test_agreement_is_cohens_kappa_and_one_for_a_perfect_coder() -> None:
    perfect = agreement(RIGHT)
    assert set(perfect) == set(validation.CODES)
    known = {code: row["kappa"] for code, row in perfect.items() if not math.isnan(row["kappa"])}
    assert known == dict.fromkeys(["main behavior", "question", "reflection", "input", "advice"], 1.0)
    wrong = agreement(RIGHT | {3: Behavior.COMPLEX})
    expected = cohen([True, False, False, False], [True, False, True, False])
    assert wrong["question"]["kappa"] == pytest.approx(expected) == pytest.approx(0.5)
    assert (wrong["question"]["n"], wrong["complex reflection"]["n"]) == (4, 1)


def test_a_coder_is_told_by_what_annomi_would_say() -> None:
    seen = frozenset({Behavior.SEEK, Behavior.COMPLEX, Behavior.PERSUADE_WITH})
    assert validation.labels(seen) == {
        "main behavior": "therapist_input", "question": "True", "reflection": "True", "complex reflection": "complex",
        "input": "True", "information": "False", "advice": "True",
    }  # fmt: skip
    assert validation.labels(frozenset({Behavior.AFFIRM}))["main behavior"] == "other"


def test_separation_is_the_share_of_pairs_in_their_order() -> None:
    high, low = [3.0, 2.0, 2.0, 5.0, 1.0], [1.0, 2.0, 4.0, 0.0, 1.0, 2.0]
    estimate = validation.separation(high, low, 0.95)
    assert estimate.value == pytest.approx(stats.mannwhitneyu(high, low).statistic / 30)
    assert 0 < estimate.lo < estimate.value < estimate.hi < 1
    reverse = validation.separation(low, high, 0.95)
    assert (reverse.lo, reverse.hi) == pytest.approx((1 - estimate.hi, 1 - estimate.lo))
    for higher, lower in (([2.0, 3.0], [0.0, 1.0]), (high[:4], low), ([3.0] * 5, [1.0] * 5), ([2.0, 3.0], [1.0])):
        assert math.isnan(validation.separation(higher, lower, 0.95).lo)  # too few on one side, or perfect


def test_a_translated_volley_has_the_labels_of_all_its_utterances() -> None:
    (session,) = validation.sessions_of(
        rows(
            ("1", "a", "client", "Hm.", "n/a"),
            ("2", "a", "therapist", "You rest.", "simple"),
            ("3", "a", "therapist", "Who?", "question"),
            ("4", "a", "client", "I want to.", "change"),
            ("5", "a", "client", "I cannot.", "sustain"),
            ("6", "a", "client", "Yes.", "neutral"),
        )
    )
    turns = [("client", "嗯。"), ("counselor", "你休息。谁？"), ("client", "我想，可是不行。对。")]
    dialog = Dialog(
        id=session.name, source="annomi-zh", turns=tuple(Turn.model_validate({"role": r, "text": t}) for r, t in turns)
    )
    (translated,) = validation.translated([session], [dialog])
    (expert,) = translated.experts.values()
    assert translated.turns == list(dialog.turns)
    assert set(expert) == {2}
    assert (expert[2]["question"], expert[2]["reflection"], expert[2]["complex reflection"]) == ("True", "True", "simple")
    assert expert[2]["main behavior"] == "question"
    assert [labels[validation.CLIENT] for labels in translated.heard["a"].values()] == ["sustain"]  # the later of one and one
    cut = dialog.model_copy(update={"turns": dialog.turns[:2]})
    assert validation.translated([session], [cut]) == []


def test_totals_are_told_a_volley_and_ratios_only_where_they_exist() -> None:
    b = Behavior
    seen = {1: frozenset({b.QUESTION, b.SIMPLE}), 2: frozenset({b.COMPLEX}), 4: frozenset({b.AFFIRM}), 6: frozenset[Behavior]()}
    scores = validation.scores(seen)
    assert scores["CRR", "ratio"] == 0.5
    assert scores["RQ", "ratio"] == 2
    assert scores["TR", "per volley"] == 0.5
    assert scores["MIA", "per volley"] == 0.25
    assert validation.scores({1: frozenset()})["RQ", "ratio"] is None
    assert set(validation.scores(seen, validation.TOLD_BY_EXPERTS)) == {("CRR", "ratio"), ("RQ", "ratio"), ("TR", "per volley")}


def acquired(study: Study) -> Study:
    for corpus in ("annomi", *(("release",) if "release" in study.corpora else ())):
        acquire(study, corpus)
        read(study, corpus)
    write_dialogs(study.path("translate", "dialogs.jsonl"), [])
    return study


def tables(study: Study) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in (study.folder / "miti").glob("*.csv")}


def test_the_miniature_is_validated_on_its_sample(study: Study) -> None:
    translate(acquired(study))
    validation.miti(study)
    results = tables(study)
    assert list(results["coder_validation"]) == ["coder", "language", "code", "kappa", "lo", "hi", "n", "note"]
    of_clients = results["coder_validation"]["code"].isin(validation.CLIENT_CODES)
    coders = results["coder_validation"][~of_clients].groupby(["coder", "language"])["n"].max()
    of_clients = results["coder_validation"][of_clients].set_index(["coder", "language"])
    absent = [("llm:bundle-author", language) for language in ("en", "zh")]
    assert set(of_clients.index) == {*coders.index, *absent}
    assert set(of_clients.loc[absent, "note"]) == {"not recorded"}
    assert coders.to_dict() == {("experts", "en"): 22, ("lexical", "en"): 48, ("lexical", "zh"): 42}
    assert results["coder_validation"].query("language == 'zh'")["lo"].isna().all()  # four sessions are translated
    assert set(zip(results["released"]["source"], results["released"]["arm"], strict=True)) == {("annomi", "real")}
    assert set(results["released"]["rater"]) == {"lexical"}
    assert len(results["features"]) == 0
    written = {path.name: path.read_bytes() for path in (study.folder / "miti").iterdir()}
    validation.miti(study)
    assert {path.name: path.read_bytes() for path in (study.folder / "miti").iterdir()} == written


TABLE_4 = {  # as printed: rounds, characters of a counselor's and of a client's volley; mean and SD
    "glm-4-9b": [17.40, 5.17, 52.28, 10.30, 11.45, 4.93],
    "llama-3-8b-chinese": [18.90, 5.80, 43.79, 8.70, 10.71, 5.80],
}


def test_experts_words_and_the_authors_dialogs(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_MIRROR", str(mirror))
    edit(Path("released/params.yaml"), {"upstream: [release]": "upstream: [annomi, release]"})
    study = acquired(load(Path("released/params.yaml")))
    began = time.process_time()
    validation.miti(study)
    assert time.process_time() - began < 60
    results = tables(study)
    kappa = results["coder_validation"].set_index(["coder", "code"])
    evidence = Evidence(study)
    audited = audit_annomi.agreement(evidence).set_index("code")["kappa_mean"]
    names = {"main_behavior": "main behavior", "question_present": "question", "reflection_present": "reflection"}
    for theirs, ours in (names | {"reflection_type": "complex reflection"}).items():
        assert kappa.loc[("experts", ours), "kappa"] == pytest.approx(audited[theirs], abs=1e-4)
    assert set(kappa["language"]) == {"en"}
    words = kappa.loc["lexical"]
    assert words.loc["question", "n"] == 2742
    assert (words["lo"] < words["kappa"]).all()
    assert (words["kappa"] < words["hi"]).all()
    least = {"question": 0.78, "reflection": 0.42, "main behavior": 0.58, "input": 0.39, "complex reflection": 0.05}
    assert all(words.loc[code, "kappa"] > value for code, value in least.items())
    auc = results["quality"].set_index(["coder", "measure"])
    for row in (("experts", "RQ"), ("experts", "TR"), ("lexical", "ADH")):
        assert auc.loc[row, "lo"] > 0.5, row
    for code, measured in storage.read_yaml(resources.files("mi_llm.miti") / "validity.yaml")["lexical"].items():
        names = {"Q": "question", "GI": "information", "PERS": "advice", "PwP": "advice", "CR": "complex reflection"}
        for kind in measured.keys() & {"auc", "kappa"}:
            row = auc.loc[("lexical", code)] if kind == "auc" else words.loc[names[code]]
            assert [round(row[name], 3) for name in (kind, "lo", "hi")] == pytest.approx(measured[kind], abs=1.1e-3), code
        assert measured.get("of", names.get(code)) == names.get(code)
        assert "n" not in measured or words.loc[names[code], "n"] == measured["n"]
    counts = results["released"].query("code == 'Q'").set_index(["source", "arm"])["n"]
    assert counts.xs("tuned", level="arm").sum() == 29
    assert counts.xs("base", level="arm").sum() == 30
    assert counts["annomi", "real"] == 133
    features = results["features"].set_index(["source", "arm"]).drop(columns="n").round(2)
    for model, printed in TABLE_4.items():
        assert features.loc[(model, "tuned")].tolist() == printed
