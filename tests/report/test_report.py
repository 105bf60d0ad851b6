"""Report, doctor: from small results to a page."""

import ast
import csv
import math
import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from repository import PROGRAMS, ROOT
from ruamel.yaml import YAML
from scipy import stats
from scored import Page, site

from mi_llm import digests, storage
from mi_llm.audit.verdict import VERDICTS
from mi_llm.certificate.certify import certify
from mi_llm.codebook.coding import Global
from mi_llm.codebook.tables import RATINGS
from mi_llm.construct import rate, translate
from mi_llm.dialog import read_rounds, write_rounds
from mi_llm.doctor import fitting, machine
from mi_llm.frame.pages import SUFFIXES
from mi_llm.miti.blind import blind
from mi_llm.miti.code import code
from mi_llm.miti.summary import summary
from mi_llm.needs import needs
from mi_llm.paper.claims import claims
from mi_llm.problem import Problem
from mi_llm.report import manual, published, tables
from mi_llm.report.chinese import chinese
from mi_llm.report.figures import stages
from mi_llm.report.page import PAGES, report
from mi_llm.report.tables import settings
from mi_llm.score.score import score
from mi_llm.study import Study, load


def test_scores_of_references_and_of_echoes(scored: Study) -> None:
    metrics = storage.read_json(scored.folder / "score" / "metrics.json")
    table = pd.read_csv(scored.folder / "score" / "samples.csv")
    rounds = len(read_rounds(scored.folder / "split" / "test_rounds.jsonl"))
    assert len(table) == rounds * len(scored.models) * 2
    for model in scored.models:
        assert metrics[model]["tuned"]["bleu_4"] > 90 > 20 > metrics[model]["base"]["bleu_4"] > 0
        rows = table[(table["model"] == model) & (table["arm"] == "base")]
        assert metrics[model]["base"]["rouge_l"] == pytest.approx(rows["rouge_l"].mean(), abs=1e-4)
    assert set(table["set"]) == {"test"}
    scores = pd.read_csv(scored.folder / "score" / "scores.csv")
    assert scores[["lo", "hi", "signature"]].notna().all().all()
    assert len(scores) == len(scored.models) * 2 * 9


def test_the_settings_say_how_many_parameters_lora_trains_on_either_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = settings(load(Path("params.yaml"))).filter(like="Trained parameters", axis=0)
    joined = "on the published layout (q, k, v: one matrix)"
    assert rows["This study"].to_dict() == {
        "Trained parameters of baichuan2-7b": f"19,988,480 (q, k, v: three matrices); 17,891,328 {joined}",
        "Trained parameters of glm-4-9b": f"23,797,760 (q, k, v: three matrices); 21,176,320 {joined}",
    }
    assert set(rows["Paper"]) == {"not stated"}
    assert chinese(rows.index[0]) == "baichuan2-7b 训练的参数"
    ours = "19,988,480（q、k、v 为三个矩阵）；按发布时的结构（q、k、v 为一个矩阵）为 17,891,328"
    assert chinese(rows["This study"].iloc[0]) == ours
    assert settings(load(Path("mini/params.yaml"))).filter(like="Trained parameters", axis=0).empty


def test_each_setting_says_its_own_and_sampling_is_no_sample_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stated = claims() | {"X-lora": replace(claims()["X-lora"], reported="8, 16, 0")}
    monkeypatch.setattr(tables, "claims", lambda: stated)
    study = load(Path("params.yaml"))
    drawn = study.model_copy(update={"respond": study.respond.model_copy(update={"decoding": "sample"})})
    rows = settings(drawn)
    assert rows.loc["LoRA rank, alpha, dropout", "Paper"] == "8, 16, 0"
    others = ["Decoding", "Seed", *(name for name in rows.index if name.startswith("Trained parameters"))]
    assert set(rows.loc[others, "Paper"]) == {"not stated"}
    assert rows.loc["Decoding", "This study"] == "sampling"
    assert (chinese("sampling"), chinese("sample")) == ("采样", "样例")


def test_tuned_is_compared_with_base_and_with_other_tuned_models(scored: Study) -> None:
    paired = pd.read_csv(scored.folder / "score" / "paired.csv").set_index(["first", "second"])
    assert len(paired) == 4 * (3 + 3)
    gains = paired.loc[[(f"{model} tuned", f"{model} base") for model in scored.models]]
    assert (gains["lo"] > 0).all()
    assert gains["p"].tolist() == pytest.approx([2 / 2**12] * 12, abs=1e-6)  # 12 dialogs, all of one sign
    assert gains["p_holm"].tolist() == pytest.approx([24 * 2 / 2**12] * 12, abs=1e-6)
    assert (gains["superiority"] > 0.9).all()
    alike = paired.loc[[("tiny-baichuan2 tuned", "tiny-glm4 tuned")]]
    assert (alike["mean"] == 0).all()
    assert alike[["lo", "hi"]].isna().all().all()  # equal replies have no interval
    assert (alike[["p", "p_holm"]] == 1).all().all()
    assert alike["d_z"].isna().all()
    assert (alike["superiority"] == 0.5).all()


def test_baselines_and_diagnostics_stand_beside_the_scores(scored: Study) -> None:
    lines = pd.read_csv(scored.folder / "score" / "baselines.csv").set_index("predictor")
    metrics = storage.read_json(scored.folder / "score" / "metrics.json")
    assert lines.loc["reference", "rouge_l"] == 100
    assert lines.loc["echo_client", "bleu_4"] == pytest.approx(metrics["tiny-glm4"]["base"]["bleu_4"], abs=1e-4)
    found = pd.read_csv(scored.folder / "score" / "diagnostics.csv").set_index(["model", "arm"])
    assert len(found) == 2 * len(scored.models) + 1
    longer = found.loc[("tiny-glm4", "tuned"), "characters_mean"] - found.loc[("reference", "reference"), "characters_mean"]
    assert longer == pytest.approx(len("<b>"), abs=1e-3)
    assert (found["empty"] == 0).all()


@pytest.fixture
def repaired(scored: Study) -> Study:
    """The same with a repaired test set beside: without the first round, and with another reference to the second."""
    _, second, *rest = read_rounds(scored.folder / "split" / "test_rounds.jsonl")
    changed = second.model_copy(update={"id": f"{second.id} aligned", "counselor": "完全不同的一句话。"})
    write_rounds(scored.folder / "split" / "aligned_rounds.jsonl", [changed, *rest])
    for model in scored.models:
        for arm in ("base", "tuned"):
            path = scored.folder / "respond" / model / f"{arm}.jsonl"
            answer = {"round": changed.id, "dialog": changed.dialog, "text": "完全不同的一句话。"}
            storage.write_lines(path, [*storage.read_lines(path), answer])
    score(scored)
    return scored


def test_both_test_sets_are_scored_and_shown(repaired: Study) -> None:
    samples = pd.read_csv(repaired.folder / "score" / "samples.csv")
    assert samples.groupby("set").size().to_dict() == {"published": 121 * 6, "aligned": 120 * 6}
    changed = samples[samples["round"].str.endswith(" aligned")]
    assert changed["bleu_4"].tolist() == [100.0] * 6
    metrics = storage.read_json(repaired.folder / "score" / "metrics.json")
    assert set(metrics) == {*repaired.models, "aligned"}
    rows = samples[(samples["set"] == "aligned") & (samples["model"] == "tiny-glm4") & (samples["arm"] == "base")]
    assert metrics["aligned"]["tiny-glm4"]["base"]["rouge_1"] == pytest.approx(rows["rouge_1"].mean(), abs=1e-4)
    for name in ("scores", "paired", "baselines", "diagnostics"):
        assert set(pd.read_csv(repaired.folder / "score" / f"{name}.csv")["set"]) == {"published", "aligned"}
    report(repaired)
    page = (repaired.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("<svg") - page.count('class="phone"') == 12
    assert '<th scope="col">Test set</th>' in page
    rounds = (repaired.folder / "report" / "rounds.html").read_text(encoding="utf-8")
    assert rounds.count("<article") == 241
    assert '<option value="aligned">repaired</option>' in rounds


@pytest.mark.parametrize("tuned", [pytest.param((), marks=pytest.mark.slow), ("tiny-glm4",)])
def test_models_that_are_not_tuned_are_scored_and_shown_by_their_base_alone(scored: Study, tuned: tuple[str, ...]) -> None:
    untuned = tuple(model for model in scored.models if model not in tuned)
    study = scored.model_copy(update={"finetune": scored.finetune.model_copy(update={"untuned": untuned})})
    for model in untuned:
        (study.folder / "respond" / model / "tuned.jsonl").unlink()
        (study.folder / "simulate" / model / "tuned.jsonl").unlink()
        numbers = storage.read_json(study.folder / "respond" / model / "metrics.json")
        base = {name: value for name, value in numbers.items() if name.startswith("base")}
        storage.write_json(study.folder / "respond" / model / "metrics.json", base)
        shutil.rmtree(study.folder / "finetune" / model / "adapter")
    for stage in (score, blind, code, summary, report):
        stage(study)
    folder = study.folder / "report" / "tables"
    assert set(pd.read_csv(folder / "training.csv")["Model"]) == set(tuned)
    shown = pd.read_csv(folder / "scores.csv", keep_default_na=False).set_index("Model")
    assert set(shown.index) == set(study.models)
    assert all((shown.loc[model, "Tuned"] != "").all() == (model in tuned) for model in study.models)
    rounds = storage.read_text(study.folder / "report" / "rounds.html")
    gains = [text.split('"')[0].split(" ") for text in rounds.split('data-gains="')[1:]]
    assert {len(numbers) for numbers in gains} == {3 * 4}  # of each model in each metric
    assert len(pd.read_csv(study.folder / "score" / "scores.csv")["model"].unique()) == 3
    assert set(pd.read_csv(folder / "replies.csv")["Replies of"]) == {
        f"{model} {arm}" for model in study.models for arm in study.arms(model)
    }
    page = storage.read_text(study.folder / "report" / "index.html")
    assert ("no model was tuned" in page) == (not tuned)


def test_a_missing_answer_is_named(scored: Study) -> None:
    path = scored.folder / "respond" / "tiny-glm4" / "tuned.jsonl"
    first, *rest = storage.read_lines(path)
    storage.write_lines(path, rest)
    with pytest.raises(Problem, match=f"no answer to round {first['round']}"):
        score(scored)


def test_pages_load_nothing_and_every_link_leads_somewhere(scored: Study) -> None:
    certify(scored)  # as a run ends; nothing is committed here
    out = (scored.folder / "report").resolve()
    seen = site(out / "index.html")
    wanted = {f"{page}{end}.html" for page in PAGES for end in SUFFIXES.values()}
    assert {path.name for path in seen if path.parent == out} == wanted
    for folder, page_name in (("audit", "index"), ("screen", "dialogs"), ("certificate", "index")):
        assert {path.name for path in seen if path.parent.name == folder} == {f"{page_name}.html", f"{page_name}.zh.html"}


def test_the_first_page_says_what_the_numbers_are_not(scored: Study) -> None:
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "not how the paper&#39;s models do" in page.split("<h2", 1)[0]
    assert page.count("<figure>") == page.count("<svg") - page.count('class="phone"') == 11
    drawings = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert all("<text" in drawing for drawing in drawings)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "不能说明论文的模型如何" in (scored.folder / "report" / "index.zh.html").read_text(encoding="utf-8").split("<h2", 1)[0]


def numbers(text: str) -> list[str]:
    return re.findall(r"[0-9]+(?:[.,][0-9]+)*", text)


@pytest.mark.parametrize("page", [*(f"report/{name}" for name in PAGES), "audit/index"])
def test_both_languages_show_the_same(scored: Study, page: str) -> None:
    english, chinese_page = (Page(scored.folder / f"{page}{end}.html") for end in ("", ".zh"))
    assert (english.language, chinese_page.language) == ("en", "zh-Hans")
    assert english.ids == chinese_page.ids
    assert english.figures == chinese_page.figures
    plain = [[re.sub(r"\.zh\.(html|svg)", r".\1", target) for target in one.targets] for one in (english, chinese_page)]
    assert plain[0] == plain[1]
    assert len(english.tables) == len(chinese_page.tables)
    for ours, theirs in zip(english.tables, chinese_page.tables, strict=True):
        assert [len(row) for row in ours] == [len(row) for row in theirs]
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert [sorted(numbers(cell)) for cell in one] == [sorted(numbers(cell)) for cell in other]


@pytest.mark.parametrize("end", ["", ".zh"])
def test_the_first_screen_says_what_was_found(scored: Study, end: str) -> None:
    page = (scored.folder / f"report/index{end}.html").read_text(encoding="utf-8")
    first = page[page.index('<section id="abstract"') : page.index("</section>", page.index('<section id="abstract"'))]
    numbers = storage.read_json(scored.path("score", "metrics.json"))
    for model in scored.tuned:
        said = [f"{numbers[model][arm]['bleu_4']:.2f}" for arm in ("base", "tuned")]
        assert all(number in first for number in said)
    assert "<svg" in first
    audited = storage.read_json(scored.path("audit", "metrics.json"))
    counts = [int(count) for count in re.findall(r"<strong>(\d+)</strong>", first)]
    assert counts == [audited[verdict] for verdict in VERDICTS]
    assert page.index('<section id="abstract"') < page.index("<h2")


def test_every_heading_has_a_chinese_name(scored: Study) -> None:
    own = re.compile(r"tiny-\S+|BLEU-4|ROUGE-.|sacreBLEU \(zh\)|chrF|rouge-score .|Distinct-.|C?MMLU|C-Eval|AUC|P|n|d_z")
    for path in sorted((scored.folder / "report/tables").glob("*.csv")):
        if path.stem in ("stages", "checklist", "loss"):  # shown as a figure or a list
            continue
        for name in pd.read_csv(path, nrows=1).columns:
            assert re.search("[\u4e00-\u9fff]", chinese(name)) or own.fullmatch(name), f"{path.name}: {name}"


@pytest.mark.slow
def test_figures_lack_no_letter(scored: Study) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        report(scored)


def test_figure_1_is_dvc_yaml() -> None:
    pipeline = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    rows = {}
    for name, entry in pipeline.items():
        if name == "digests":  # of the code, and read by all
            continue
        stage = entry.get("do", entry)
        command = digests.command(name)[0]
        imported = [node.module or "" for node in ast.walk(command) if isinstance(node, ast.ImportFrom)]
        phase = next(module.split(".")[1] for module in imported if not module.startswith("mi_llm.apps"))  # whose guard one uses
        reads = dict.fromkeys(found[1] for dep in stage.get("deps", []) if (found := re.match(r"\$\{out\}/(\w+)", dep)))
        rows[name] = {"phase": phase, "reads": " ".join(reads), "what": stage["desc"]}
    assert stages().to_dict("index") == rows


def test_a_verdict_needs_the_papers_own_material() -> None:
    bleu = claims()["X-bleu-ft-Baichuan2"]

    def verdict(value: float, lo: float = math.nan, hi: float = math.nan, *, same: bool = True, audited: str = "") -> str:
        return published.verdict(bleu, published.Own("x", value, lo, hi, same, audited=audited), 0.95)

    assert bleu.reported == "5.84"
    assert verdict(5.8, 5.5, 6.1) == "agrees"
    assert verdict(5.8, 5.845, 6.1) == "agrees"  # 5.84 may have been 5.845
    assert verdict(5.8, 5.85, 6.1) == "differs"
    assert verdict(5.8431) == "agrees"
    assert verdict(5.85) == "differs"
    assert verdict(5.84, 5.5, 6.1, same=False) == "other scale"
    assert verdict(5.84, audited="inconsistent") == "inconsistent"
    assert verdict(5.84, audited="close") == "differs"


def test_a_mean_agrees_by_the_interval_of_the_difference() -> None:
    """Both means have an error: an interval of our own alone would call 5 % and more of equal means different."""
    printed = claims()["T4-bai-rounds"]
    assert (printed.reported, printed.reported_sd, printed.n) == ("18.30", "7.27", "10")
    own = published.Own("x", 12.9, 10.0, 15.8, same=True, sd=4.0, n=10)  # our own interval does not hold 18.30
    assert stats.ttest_ind_from_stats(12.9, 4.0, 10, 18.3, 7.27, 10, equal_var=False).pvalue > 0.05
    assert published.verdict(printed, own, 0.95) == "agrees"
    assert published.verdict(printed, replace(own, value=11.0), 0.95) == "differs"
    assert published.verdict(printed, replace(own, n=4), 0.95) == "other scale"  # too few to judge


def recounted(study: Study, verdicts: dict[str, str]) -> None:
    """Give the audit of a study a recount of Table 3: each printed number, with the verdicts by claim, else `reproduced`."""
    path = study.folder / "audit" / "claims.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = table["id"].str.startswith("T3-")
    assert rows.sum() == 12
    table.loc[rows, "recomputed"], table.loc[rows, "recomputed_sd"] = table["reported"], table["reported_sd"]
    table.loc[rows, "verdict"] = [verdicts.get(name, "reproduced") for name in table.loc[rows, "id"]]
    table.to_csv(path, index=False)


def test_table_3_has_the_audits_numbers_and_verdicts(scored: Study) -> None:
    recounted(scored, {"T3-test-counselor": "inconsistent", "T3-test-client": "close"})
    theirs = scored.model_copy(update={"split": scored.split.model_copy(update={"test": "release"})})
    found = published.published(theirs)
    judged = found.set_index("claim")["Verdict"]
    assert judged[["T3-test-rounds", "T3-test-counselor", "T3-test-client"]].tolist() == ["agrees", "inconsistent", "differs"]
    assert judged["T3-CPsy-rounds"] == "other scale"  # the bundle's sample
    row = published.dialog_features(theirs, found).loc["Test dialogs (MI style)"]
    assert row["Verdict"] == "agrees 1 of 3, inconsistent 1"
    assert chinese(row["Verdict"]) == "1 / 3 相符，1 矛盾"
    assert row["Dialog rounds, mean (SD)"] == "7.53 (4.12)"  # the audit's, not what the study's own rule counts


def test_the_miniature_is_never_judged_and_the_authors_dialogs_are(scored: Study) -> None:
    found = published.published(scored)
    assert set(found["Verdict"]) == {"other scale"}
    assert set(found["claim"]) <= set(claims())
    assert {name.split("-")[0] for name in found["claim"]} == {"T3", "T4", "T5", "T6", "X"}
    line = found.set_index("claim").loc["X-bleu-ft-ChatGLM4"]
    assert line["Published"] == "6.47"
    assert float(line["This study"]) > 90
    theirs = scored.model_copy(update={"split": scored.split.model_copy(update={"test": "release"})})
    judged = published.published(theirs).set_index("claim")["Verdict"]
    assert judged["X-40"] == "differs"  # the miniature has 12
    assert judged["X-2000"] == "other scale"
    table = published.dialog_features(theirs, published.published(theirs))
    assert table.loc["Test dialogs (MI style)", "Verdict"] == "other scale"  # the audit has no recount of the bundle's samples
    assert table.loc["AnnoMI", "Verdict"] == "—"


@pytest.mark.parametrize(
    ("test", "source", "judged"),
    [
        ("release", "release", {"X-367", "X-bleu-base", "X-bleu-ft", "T4"}),
        ("release", "recorded", {"X-367", "X-bleu-base"}),  # tuned on other dialogs
        ("aligned", "release", {"T4"}),  # the paper's rounds are the positional ones
        ("transcribed", "release", {"T4"}),
    ],
)
def test_scores_are_judged_on_the_papers_rounds_and_tuned_models_only_if_trained_on_its_dialogs(
    scored: Study, test: str, source: str, judged: set[str]
) -> None:
    changes = {"transcribe": {"source": source}, "split": {"test": test}, "simulate": {"client": "person"}}
    sections: dict[str, Any] = {name: getattr(scored, name).model_copy(update=change) for name, change in changes.items()}
    hub = {"hub": "someone/a-model", "revision": "0" * 40}
    sections["models"] = {name: model.model_copy(update=hub) for name, model in scored.models.items()}
    found = published.published(scored.model_copy(update=sections))
    for prefix in ("X-367", "X-bleu-base", "X-bleu-ft", "T4"):
        mine = found[found["claim"].str.startswith(prefix) & ~found["claim"].str.startswith("T4-real")]
        assert len(mine)
        assert ("other scale" not in set(mine["Verdict"])) == (prefix in judged), prefix


def test_a_run_at_the_papers_scale_gets_verdicts_and_no_reserve(scored: Study) -> None:
    changes = {
        "acquire": {"upstream": tuple(scored.corpora)}, "transcribe": {"source": "release"}, "split": {"test": "release"},
        "simulate": {"client": "person"}, "code": {"coder": "human"}, "report": {"notice": ""},
    }  # fmt: skip
    sections = {name: getattr(scored, name).model_copy(update=change) for name, change in changes.items()}
    of_hub = dict(zip(scored.models, load(ROOT / "params.yaml").models.values(), strict=True))
    shutil.copy(ROOT / "pins.yaml", "mini")
    recounted(scored, {})
    report(scored.model_copy(update={**sections, "models": of_hub}))
    found = pd.read_csv(scored.folder / "report/tables/published.csv")
    real = found["claim"].str.contains("-real-|-Real$")
    assert set(found.loc[real, "claim"].str[:2]) == {"T4", "T5", "T6"}
    assert set(found.loc[real, "Verdict"]) == {"other scale"}  # another draw of 30, another translation
    assert set(found.loc[~real, "Verdict"]) == {"agrees", "differs"}
    page = (scored.folder / "report/index.html").read_text(encoding="utf-8")
    assert "not at the paper" not in page
    assert 'class="notice"' not in page
    assert f"{(found['Verdict'] == 'agrees').sum()} agree, " in page


def test_the_checklist_is_whole_and_says_what_is_not_answered(scored: Study) -> None:
    table = pd.read_csv(scored.folder / "report/tables/checklist.csv", dtype=str, keep_default_na=False).set_index("Item")
    letters = {1: 2, 2: 2, 3: 2, 4: 3, 5: 2, 6: 4, 7: 2, 9: 1, 10: 3, 11: 3, 12: 5}
    assert set(table.index) == {f"{part}{letter}" for part, count in letters.items() for letter in "abcde"[:count]} | {"8"}
    assert ((table["Place"] != "") == (table["Answered"] == "yes")).all()
    assert (table["Answer or reason"] != "").all()
    assert "tiny-glm4" in table.loc["3a", "Answer or reason"]
    page = (scored.folder / "report/checklist.html").read_text(encoding="utf-8")
    assert page.count("Not answered, because") == (table["Answered"] == "no").sum() > 0


def test_links_of_the_checklist_name_the_page_and_the_section_in_the_pages_language(scored: Study) -> None:
    for end, named in (("", "Results: Training"), (".zh", "结果：训练")):
        page = (scored.folder / f"report/checklist{end}.html").read_text(encoding="utf-8")
        links = dict(re.findall(r'<a href="([^"]+)">([^<]+)</a>', page.split("</nav>")[1]))
        assert links[f"index{end}.html#training"] == named
        assert not any(".html" in text for text in links.values())


def test_cards_and_data_sheet_are_shown_without_raw_html(scored: Study) -> None:
    path = scored.folder / "finetune/tiny-glm4/adapter/README.md"
    storage.write_text(path, storage.read_text(path) + "\n<script>alert(1)</script>\n")
    report(scored)
    page = (scored.folder / "report/models.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "tuned for motivational interviewing" in page
    assert "license: cc0" not in page  # the metadata at the card's head
    assert "A test checks that no sentence" in (scored.folder / "report/data.html").read_text(encoding="utf-8")


def test_the_page_of_rounds_shows_everything_and_loads_nothing(scored: Study) -> None:
    page = (scored.folder / "report" / "rounds.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    rounds = read_rounds(scored.folder / "split" / "test_rounds.jsonl")
    assert page.count("<article") == len(rounds)
    for sample in rounds:
        assert page.count(f">{sample.counselor}&lt;b&gt;<p") == len(scored.models)  # the tuned replies, escaped
        assert f">{sample.client}<p" in page
    samples = pd.read_csv(scored.folder / "score" / "samples.csv").set_index(["round", "model", "arm"])
    first = rounds[0].id
    gains = [float(number) for number in re.findall(r'data-gains="([^"]*)"', page)[0].split()]
    assert len(gains) == 4 * len(scored.models)
    base, tuned = (samples.loc[(first, "tiny-baichuan2", arm), "bleu_4"] for arm in ("base", "tuned"))
    assert gains[0] == pytest.approx(tuned - base)


@pytest.mark.slow
def test_the_page_says_how_rounds_were_answered(scored: Study) -> None:
    assert scored.respond.decoding == "greedy"
    assert "answered greedily" in (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    report(scored.model_copy(update={"respond": scored.respond.model_copy(update={"decoding": "sample"})}))
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "answered by sampling (temperature 0.95, top-k 50, top-p 0.7, each round with its own seed)" in page


def test_the_manual_evaluation_names_its_coder_and_the_papers_numbers(scored: Study) -> None:
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "Coder: the lexical coder (automatic: it recognizes words, not meaning)." in page
    indicators = pd.read_csv(scored.folder / "report/tables/indicators.csv").set_index("Indicator")
    assert indicators.loc["Asking questions", "tiny-glm4 tuned, paper"] == "14.20 (5.15)"
    assert indicators.loc["Asking questions", "real (AnnoMI), paper"] == "13.43 (11.68)"
    assert indicators.loc["Empathy", "tiny-glm4 tuned"] == "—"  # words give no globals
    assert "tiny-glm4 base, paper" not in indicators
    assert indicators.loc["Persuading", "tiny-glm4 base"] != indicators.loc["Persuading", "tiny-glm4 tuned"]
    lengths = pd.read_csv(scored.folder / "report/tables/lengths.csv").set_index("Arm")
    assert lengths.loc["tiny-llama3 tuned", "Rounds, paper"] == "18.90 (5.80)"


def test_automatic_codes_stand_beside_what_they_are_worth(scored: Study) -> None:
    validation = pd.read_csv(scored.folder / "miti/coder_validation.csv").set_index(["coder", "language", "code"])
    page = (scored.folder / "report/index.html").read_text(encoding="utf-8")
    (told,) = re.findall(r'<p id="worth">(.*?)</p>', page)
    assert page.count("sessions in Chinese, translated: ") == 1, "it is told once, and captions lead to it"
    captions = [found for found in re.findall(r"<figcaption>(.*?)</figcaption>", page) if "Coder: " in found]
    main = f"{validation.loc[('lexical', 'zh', 'main behavior'), 'kappa']:.2f}"
    assert [main in caption and 'href="#worth"' in caption for caption in captions] == [True] * 3
    in_chinese, in_english = told.split("sessions in Chinese, translated: ")[1].split("; English: ")
    for language, said in (("zh", in_chinese), ("en", in_english)):
        row = validation.loc[("lexical", language, "reflection")]
        assert f"reflection {row['kappa']:.2f}".replace("-", "−") in said
        assert f"n = {row['n']:g}" in said
    table = pd.read_csv(scored.folder / "report/tables/client-language.csv")
    shares = table[table["Measure"] == "share of change talk"].set_index("Coder")
    assert {"lexical", "experts"} <= set(shares.index)
    assert {"tiny-glm4 tuned", "tiny-glm4 base", "real (AnnoMI)"} <= set(table["Arm"])
    worth = shares.loc[["lexical"], "κ with AnnoMI's experts, client talk"]
    assert worth.str.fullmatch(r"(English|Chinese, translated): .*n = \d+").all()
    (absent,) = table[table["Coder"] == "llm:bundle-author"].to_dict("records")
    assert absent["Mean [interval], or all values"] == "not recorded"
    by_code = pd.read_csv(scored.folder / "report/tables/client-language-worth.csv").set_index("Code")
    assert list(by_code.index) == ["client talk", "change talk", "sustain talk", "neutral talk"]
    assert by_code["experts among themselves: English"].str.contains("n = ").all()
    assert by_code["lexical: Chinese, translated"].str.contains("n = ").all()
    assert set(by_code["llm:bundle-author: English"]) == {"not recorded"}
    readiness = pd.read_csv(scored.folder / "report/tables/readiness.csv").set_index("Arm")
    assert readiness.loc["tiny-glm4 base", "Change"].startswith("−"), "who is pushed is less ready"


def test_globals_by_a_model_are_named_in_captions_with_their_own_worth(scored: Study) -> None:
    table = pd.read_csv(scored.folder / "code/codes.csv", dtype=str, keep_default_na=False)
    rows = [("llm:some-model", packet, code, 3) for packet in sorted(set(table["packet"])) for code in sorted(Global)]
    storage.write_table(scored.folder / "code/globals.csv", pd.DataFrame(rows, columns=RATINGS))
    said = manual.worth(scored, "en", str)
    of_words, of_model = said.split(" | ")
    assert "globals" not in of_words
    assert of_model == "llm:some-model: globals, Krippendorff's α with experts: not known"
    alpha = {"measure": "alpha", "code": "EMP", "raters": "expert, llm:some-model", "n": 9, "value": 0.5, "lo": 0.2, "hi": 0.7}
    storage.write_table(scored.folder / "miti/globals_validation.csv", pd.DataFrame([alpha]))
    assert manual.worth(scored, "en", str).endswith("with experts: Empathy 0.50 [0.20, 0.70], n = 9")
    assert said.count(manual.SAMPLE["en"]) == 1, "kappa is of the sample's sessions; alpha is not"
    assert manual.coders(scored, "en").endswith("; globals by llm:some-model")


@pytest.mark.slow
def test_without_recorded_ratings_the_page_says_so(scored: Study) -> None:
    for name in ("rate", "translate"):
        (scored.folder / name / "cassette.jsonl").unlink()
    (Path("data")).unlink()
    rate.rate(scored)
    translate.translate(scored)
    report(scored)
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("<svg") - page.count('class="phone"') == 10
    assert "No ratings are recorded for this study" in page
    assert "mi-llm rate --study mini/params.yaml --mode record" in page


def test_every_table_of_the_page_is_a_csv_file(scored: Study) -> None:
    out = scored.folder / "report"
    written_tables = {path.name for path in (out / "tables").glob("*.csv")}
    targets = {target for page in PAGES for target in Page(out / f"{page}.html").targets}
    assert {f"tables/{name}" for name in written_tables} == {target for target in targets if target.startswith("tables/")}
    for page in PAGES:
        shown = Page(out / f"{page}.html")
        linked = [target for target in shown.targets if target.startswith("tables/")]
        others = 4 if page in ("models", "data") else 0  # tables of the cards and the data sheet
        assert len(linked) >= len(shown.tables) - others
    with (out / "tables" / "dialog-features.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Dataset"] for row in rows][:2] == ["CPsyCounD", "PsyDTCorpus"]
    assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d\)", rows[0]["Dialog rounds, mean (SD)"])


def written(study: Study) -> list[bytes]:
    """Write the report, and read its files."""
    report(study)
    return [path.read_bytes() for path in sorted((study.folder / "report").rglob("*")) if path.is_file()]


@pytest.mark.slow
def test_the_report_has_the_same_bytes_twice_whatever_a_stage_after_it_wrote(scored: Study) -> None:
    before = written(scored)
    later = scored.folder / "prefer" / "tiny-glm4" / "provenance.json"
    storage.write_json(later, {"stage": "prefer", "versions": {"pandas": "0"}})
    assert written(scored) == before


@pytest.mark.slow
def test_doctor_says_what_is_missing_for_which_study() -> None:
    command = [str(PROGRAMS / "mi-llm"), "doctor"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
    assert "study mini: can run here" in shown.stdout
    assert "✗ study paper: cannot run here" in shown.stdout
    assert "✓ Python" in shown.stdout
    if machine().gpu is None:  # estimates for common cards only if asked for
        assert "fine-tuning with a card of" not in shown.stdout
        asked = subprocess.run([*command, "--gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "fine-tuning with a card of 24 GB" in asked.stdout
    released = load(ROOT / "released/params.yaml")
    poor = machine().__class__(**{**vars(machine()), "mirror": None})
    assert any("MI_LLM_MIRROR" in line for line in fitting(released, poor, needs(released, poor)))


def test_doctor_says_what_to_do_where_a_models_files_are_not_known_yet(tmp_path: Path) -> None:
    for name in ("params.yaml", "mini", "data", "src", "pins.yaml", "licenses.yaml", "docs", "CITATION.cff", "questions"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "small", tmp_path / "small", ignore=shutil.ignore_patterns("pins.yaml"))
    command = [str(PROGRAMS / "mi-llm"), "doctor", "--study", "small"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "✗ study small: cannot say yet" in shown.stdout, shown.stdout + shown.stderr
    assert "mi-llm pin Qwen/Qwen2.5-0.5B-Instruct" in shown.stdout
    assert shown.returncode == 1


def test_unknown_studies_and_options_are_refused_in_words() -> None:
    for words, said in (
        (["nonsense"], "no such study\n  expected: auto, audit, paper, mini, mini-en, released, small\n"),
        (["--fast"], "unknown option --fast"),
        (["--mirror"], "needs a folder"),
    ):
        shown = subprocess.run(["./reproduce.sh", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert shown.returncode == 2
        assert said in shown.stderr
        assert "Traceback" not in shown.stderr
