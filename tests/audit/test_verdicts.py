"""Verdicts that the authors would grant: which reading each rests on, what makes it negative, and how verdicts are counted."""

import csv
import random
import statistics
from collections import defaultdict
from dataclasses import replace

import pandas as pd
import pytest
from repository import ROOT

from mi_llm.audit import annomi, codes, dialogs, statements
from mi_llm.audit.audit import METHODS, causes, check, rows, tally
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.findings import LANGUAGES, PARTS, Finding, every_sentence, findings
from mi_llm.audit.letter import letter
from mi_llm.audit.verdict import CHINESE, NEGATIVE, VERDICTS, Result
from mi_llm.codebook.topics import topic_and_word
from mi_llm.dialog import Dialog, Turn
from mi_llm.miti.reliability import fleiss
from mi_llm.paper.claims import Claim, Paper, Printed, claims
from mi_llm.report.chinese import chinese
from mi_llm.study import Study

RATIO_ROWS = [f"T6-{row}-{column}" for row in ("CRR", "RQ", "ADH") for column in codes.COLUMNS]


@pytest.fixture
def evidence(study: Study) -> Evidence:
    """No public files: the paper's arithmetic alone."""
    return Evidence(study)


def changed(name: str, reported: str) -> Paper:
    """The paper with another printed number or formula."""
    paper = claims()
    assert paper[name].reported != reported
    return paper | {name: replace(paper[name], reported=reported)}


def result(name: str, evidence: Evidence, paper: Paper | None = None) -> Result:
    """What the claim's method finds."""
    paper = paper or claims()
    return METHODS[paper[name].method](paper[name], paper, evidence)


# Table 6


def test_the_example_of_codes_matches_all_that_is_printed_and_gives_persuading_to_one_rater() -> None:
    with (ROOT / "src/mi_llm/audit/adherence_codes.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    for column, (size, share, most) in {"Baichuan": (9, 0.78, 19), "Llama": (10, 0.84, 11)}.items():
        by_dialog: dict[str, list[dict[str, int]]] = defaultdict(list)
        for row in table:
            if row["column"] == column:
                by_dialog[row["dialog"]].append({name: int(row[name]) for name in ("SEEK", "AF", "EA", "CONF", "PERS")})
        assert len(by_dialog) == size
        values: dict[str, list[float]] = defaultdict(list)
        for first, second in by_dialog.values():
            for name in first:
                values[name].append((first[name] + second[name]) / 2)
            ratios = [(counts["SEEK"] + counts["AF"] + counts["EA"]) / sum(counts.values()) for counts in (first, second)]
            values["ADH"].append(statistics.fmean(ratios))
        for name, numbers in values.items():
            printed = claims()[f"T6-{name}-{column}"]
            assert printed.mean.shows(statistics.fmean(numbers)), (column, name)
            assert printed.sd is not None
            assert printed.sd.shows(statistics.stdev(numbers)), (column, name)
        example = codes.adherence_codes(claims(), column)
        assert example is not None
        assert (round(example.share, 2), example.most) == (share, most)
    assert codes.adherence_codes(claims(), "GLM") is None


def test_ratios_are_possible_and_impossible_only_where_no_reading_gives_them(evidence: Evidence) -> None:
    assert {result(name, evidence).verdict for name in RATIO_ROWS} == {"possible"}
    note = result("T6-ADH-Llama", evidence).note
    bounds = "between 0.576 and 0.633 if a dialog's ratio is made of the raters' mean counts"
    assert f"{bounds}: the printed value is outside these bounds" in note
    assert "If each rater's ratio was averaged" in note
    assert "84% of its persuading" in note
    assert result("T6-CRR-GLM", evidence, changed("T6-CRR-GLM", "0.45")).verdict == "inconsistent"
    assert result("T6-ADH-Llama", evidence, changed("T6-ADH-Llama", "0.99")).verdict == "inconsistent"


def test_a_value_that_fits_either_kind_of_code_is_possible_and_nine_dialogs_are_the_cause_of_the_rest(evidence: Evidence) -> None:
    empathy = result("T6-EMP-Llama", evidence)
    assert (empathy.verdict, empathy.cause) == ("possible", "")
    assert "does not fit whole numbers" in empathy.note
    assert codes.unusual_units(claims()) == ["T6-EMP-Llama"]
    softening = result("T6-SST-Baichuan", evidence)
    assert (softening.verdict, softening.cause) == ("inconsistent", "nine_dialogs")
    assert "rounding is allowed for" in softening.note
    assert result("T6-EMP-Llama", evidence, changed("T6-EMP-Llama", "3.83")).verdict == "inconsistent"


def test_more_reflections_than_volleys_are_named(evidence: Evidence) -> None:
    assert "more than the 18.30 counselor volleys" in result("T6-TR-Baichuan", evidence).note
    assert "more than the 17.40 counselor volleys" in result("T6-TR-GLM", evidence).note
    assert "more than" not in result("T6-TR-Llama", evidence).note + result("T6-TR-Real", evidence).note


# Statements in words


def test_pooled_moments_are_those_of_all_dialogs_together() -> None:
    chance = random.Random(1)
    values = {column: [chance.randint(0, 9) for _ in range(10)] for column in statements.MODELS}
    paper = {
        f"T6-Q-{column}": Claim("", "", "", f"{statistics.fmean(numbers):.4f}", f"{statistics.stdev(numbers):.6f}", "10", "")
        for column, numbers in values.items()
    }
    together = [number for numbers in values.values() for number in numbers]
    expected = (statistics.fmean(together), statistics.stdev(together))
    assert statements.pooled(paper, "Q") == pytest.approx(expected, abs=1e-3)


def test_statements_on_the_models_together_are_read_on_pooled_numbers(evidence: Evidence) -> None:
    assert [result(name, evidence).verdict for name in ("S6", "S8", "S12")] == ["reproduced"] * 3
    assert "SEEK 1.59 to 1.53, EA 0.92 to 0.60" in result("S8", evidence).note
    assert result("S8", evidence, changed("T6-SEEK-Real", "1.60")).verdict == "differs"
    assert result("S6", evidence, changed("T6-PAR-Baichuan", "2.00")).verdict == "differs"


def test_words_of_degree_get_intervals_and_ratios_but_no_verdict(evidence: Evidence) -> None:
    approached, infrequent = result("S1", evidence), result("S10", evidence)
    assert approached.verdict == infrequent.verdict == "not recomputable"
    assert approached.note.count("[") == 9
    assert "REL Baichuan -0.34 [-0.90, +0.22]" in approached.note
    assert "Baichuan 2.4, GLM 1.5, Llama 2.2; pooled 3.18 to 1.57" in infrequent.note


def test_comparisons_in_notes_have_intervals(evidence: Evidence) -> None:
    for name in ("S2", "S3", "S4", "S7", "S9", "S10"):
        assert result(name, evidence).note.count("[") >= 3, name
    assert "GLM -1.88 [-5.30, +1.54], P 0.272" in result("S2", evidence).note


def test_the_order_of_the_ratios_has_both_readings(evidence: Evidence) -> None:
    order = result("S11", evidence)
    assert order.verdict == "possible"
    assert "Real 0.76 > GLM 0.74 > Baichuan 0.65 > Llama 0.60" in order.note
    assert "They can if each rater's ratio was averaged" in order.note
    assert result("S11", evidence, changed("T6-ADH-Llama", "0.76")).verdict == "differs"


# Counts, settings, cited texts


def test_what_cannot_be_counted_is_no_reproduction(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: result(name, evidence).verdict for name in ("X-5sets", "X-2000", "X-raters")} == dict.fromkeys(
        ("X-5sets", "X-2000", "X-raters"), "possible"
    )
    assert result("X-2000", evidence).basis == "paper"  # no file of training dialogs to count
    assert result("X-2000", evidence, changed("X-2000", "1999")).verdict == "inconsistent"
    assert result("X-5sets", evidence, changed("X-5sets", "6")).verdict == "differs"
    monkeypatch.setattr(evidence, "appendix", {"五": "learning_rate: 1.0e-4"}, raising=False)
    assert result("X-lora", evidence).verdict == "not recomputable"


def test_the_papers_own_ratio_is_compared_with_what_its_text_makes_it_of(evidence: Evidence) -> None:
    name = "T2-Total_MI-adherent_ratio"
    assert result(name, evidence).verdict == "reproduced"
    assert "a ratio of its own" in result(name, evidence).note
    assert result(name, evidence, changed(name, "(SC+AF+EA)/(SC+AF+EA+Confront)")).verdict == "differs"


def test_preference_data_are_pairs_in_a_dated_source(evidence: Evidence) -> None:
    outcome = result("X-100k", evidence)
    assert (outcome.verdict, outcome.cause) == ("differs", "pairs")
    assert "update of 2024-04-29" in outcome.note
    assert "Meta-Llama-3-8B-Instruct" in outcome.note


def test_cited_and_seen_sources_of_table_1_are_named_apart(evidence: Evidence) -> None:
    for name in claims():
        if name.startswith("T1-"):
            cited, seen = result(name, evidence).note.split("Looked at: ")
            assert cited.startswith("Cited: [3")
            assert seen


# Tables 3 to 5


def test_a_number_under_the_other_head_is_inconsistent() -> None:
    features = {"rounds": (9.0, 1.0), "counselor": (56.4152, 15.9301), "client": (29.2124, 18.6156)}

    def judged(feature: str, mean: str, sd: str) -> tuple[str, str, str]:
        outcome = dialogs.under_heads(Claim("", "", "", mean, sd, "", ""), feature, features)
        return outcome.verdict, outcome.cause, outcome.recomputed

    assert judged("counselor", "56.42", "15.93") == ("reproduced", "", "56.42")
    assert judged("counselor", "29.21", "18.62") == ("inconsistent", "swapped", "56.42")
    assert judged("client", "56.42", "15.90") == ("inconsistent", "swapped", "29.21")  # the mean alone
    assert judged("client", "57.76", "15.93") == ("inconsistent", "swapped", "29.21")  # the SD alone
    assert judged("client", "40.00", "10.00") == ("differs", "", "29.21")
    assert judged("rounds", "29.21", "18.62") == ("differs", "", "9.00")


def talk(name: str, lengths: list[int]) -> Dialog:
    """A dialog with volleys of these numbers of characters; the client begins."""
    turns = [Turn(role="counselor" if index % 2 else "client", text="说" * length) for index, length in enumerate(lengths)]
    return Dialog(id=name, source="release", turns=tuple(turns), meta={"model": "baichuan2-7b", "arm": "tuned", "number": 1})


def test_the_sizes_of_a_missing_dialog_are_found() -> None:
    chance = random.Random(7)
    made = [talk(f"d{index}", [chance.randint(3, 60) for _ in range(2 * chance.randint(8, 27))]) for index in range(10)]
    lost = made.pop(4)
    everything = [*made, lost]
    rounds = [len(dialog.turns) // 2 for dialog in everything]
    printed = Claim("", "", "", f"{statistics.fmean(rounds):.2f}", f"{statistics.stdev(rounds):.2f}", "10", "")
    number = dialogs.missing_rounds(made, printed)
    assert number == len(lost.turns) // 2
    texts = [[len(turn.text) for turn in dialog.turns if turn.role == "client"] for dialog in everything]
    pooled = statistics.fmean(length for of_dialog in texts for length in of_dialog)
    claim = Claim("", "", "", f"{pooled:.2f}", f"{statistics.stdev(map(statistics.fmean, texts)):.2f}", "10", "")
    sizes = dialogs.missing_characters(made, claim, "client", number)
    assert sum(texts[-1]) in sizes
    assert len(sizes) < 5


def test_a_stretch_with_exchanged_speakers_is_found(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, odd = [5, 40] * 6, [5, 40, 30, 3, 5, 40, 48, 3, 48, 7, 34, 3, 3]
    monkeypatch.setattr(evidence, "simulated", [talk("usual", usual), talk("odd", odd)], raising=False)
    assert dialogs.exchanged(evidence).to_dict("records") == [{"dialog": "odd", "first": 7, "last": 12}]


def test_a_topic_is_quoted_by_its_word_alone(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"Increasing exercise": ["运动量"], "Weight loss or diet management": ["减肥"]}
    assert topic_and_word("我想减肥，运动量也少", words) == ("Weight loss or diet management", "减肥")
    assert topic_and_word("我不开心", words) == ("Other", "")
    turns = (Turn(role="client", text="医生说我的运动量太少，我很烦。"),)
    dialog = Dialog(id="a", source="release", meta={"model": "glm-4-9b", "arm": "tuned"}, turns=turns)
    monkeypatch.setattr(evidence, "simulated", [dialog], raising=False)
    table = dialogs.simulated_topics(evidence)
    assert table.to_dict("records") == [{"dialog": "a", "model": "glm-4-9b", "topic": "Increasing exercise", "word": "运动量"}]


def test_dialogs_with_other_labels_count_as_no_rounds(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [("client", "甲"), ("counselor", "乙")] * 8
    other = [("user", "甲"), ("assistant", "乙")] * 6
    monkeypatch.setattr(evidence, "published", [plain, plain, plain, other], raising=False)
    counts = dialogs.unlabeled(evidence)
    assert (counts["others"], counts["their_samples"], counts["rounds"], counts["all_mean"], counts["labeled_mean"]) == (
        1,
        6,
        24,
        6,
        8,
    )
    paper = changed("X-367b", "6.00")
    assert "the 1 dialogs with other labels" in result("X-367b", evidence, paper).note
    assert result("X-367b", evidence, paper).cause == "rounds"


def test_the_interval_of_kappa_leaves_out_transcripts() -> None:
    chance = random.Random(3)
    transcripts = [[["a" if chance.random() < 0.6 else "b"] * 2 + [chance.choice("ab")] for _ in range(8)] for _ in range(7)]
    low, high = annomi.kappa_interval(transcripts)
    assert low < fleiss([codes_ for items in transcripts for codes_ in items]) < high
    assert pd.isna(annomi.kappa_interval(transcripts[:4])[0])  # too few for an interval


# Tallies, findings, letter


def test_verdicts_are_counted_by_basis_and_negative_ones_by_cause(evidence: Evidence) -> None:
    paper = claims()
    results = check(paper, evidence)
    table = rows(paper, results)
    counted = tally(table).set_index("basis")
    assert counted["all"].sum() == len(paper) == 212
    assert counted.loc["data", "reproduced"] == 0  # nothing is here to count
    assert sum(claim.statement for claim in paper.values()) == 16
    negative = table[table["verdict"].isin(NEGATIVE)]
    assert set(negative["cause"]) <= set(every_sentence())
    assert (negative["cause"] != "").all()
    named = causes(table).set_index("cause")["claims"]
    assert named.sum() == len(negative)
    assert named["nine_dialogs"] == 11  # eleven verdicts, one fact
    assert len(named) < len(negative)


def test_every_verdict_has_a_chinese_name_and_meaning_wherever_it_is_shown() -> None:
    assert set(VERDICTS) == set(CHINESE)
    assert {verdict: chinese(verdict) for verdict in VERDICTS} == CHINESE
    words = (ROOT / "src/mi_llm/audit/templates/page.zh.jinja").read_text(encoding="utf-8")
    assert all(words.count(f'"{verdict}": "') == 1 for verdict in VERDICTS)  # its meaning


def test_a_negative_verdict_without_a_cause_is_a_cause_of_its_own() -> None:
    table = pd.DataFrame(
        {"id": ["a", "b", "c", "d"], "verdict": ["differs", "inconsistent", "differs", "reproduced"], "cause": ["x", "x", "", ""]}
    )
    assert causes(table).to_dict("records") == [
        {"cause": "x", "claims": 2, "ids": "a b"},
        {"cause": "c", "claims": 1, "ids": "c"},
    ]


def test_every_finding_has_all_its_parts_in_both_languages() -> None:
    for kind, sentences in every_sentence().items():
        assert tuple(sentences) == LANGUAGES, kind
        for words in sentences.values():
            assert tuple(words) == PARTS, kind
            assert all(text.strip() for text in words.values()), kind


def test_the_papers_arithmetic_alone_gives_findings_and_a_letter_with_all_of_them(evidence: Evidence) -> None:
    paper = claims()
    results = check(paper, evidence)
    all_findings = findings(paper, results, evidence, {"grim": codes.grid(paper)})
    kinds = [finding.kind for finding in all_findings]
    assert kinds[:5] == ["reflections", "nine_dialogs", "adherence", "persuading", "untuned"]
    assert all_findings[0].claims == ("T6-TR-Baichuan", "T4-bai-rounds", "T6-TR-GLM", "T4-glm-rounds")
    assert "1.5 to 2.4 times" in all_findings[3].words("en")["title"]
    text = letter(all_findings, rows(paper, results))
    for finding in all_findings:
        words = finding.words("en")
        assert words["title"] in text
        flat = " ".join(text.split())
        assert all(" ".join(words[part].split()) in flat for part in ("found", "implies", "otherwise", "check"))
    assert max(map(len, text.splitlines())) <= 120
    assert {finding.kind for finding in all_findings} <= set(every_sentence())


def test_numbers_at_the_beginning_of_a_sentence_are_words() -> None:
    facts = {"over": 4, "scores": {}, "base_low": "", "base_high": "", "tuned_low": "", "tuned_high": ""}
    assert Finding("trivial", facts).words("en")["title"].startswith("Four of four simple rules")
    assert "not replies without a model" in Finding("trivial", facts).words("en")["found"]


def test_printed_numbers_allow_for_rounding() -> None:
    assert not codes.totals(Printed.of("3.22"), 10, 2)  # a mean of ten half points has two decimals: nothing is rounded
    assert list(codes.totals(Printed.of("3.22"), 9, 2)) == [58]


def test_every_result_has_a_basis(evidence: Evidence) -> None:
    assert {outcome.basis for outcome in check(claims(), evidence).values()} == {"data", "paper", "cited"}
