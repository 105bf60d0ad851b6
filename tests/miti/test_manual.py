"""The manual evaluation without people: standardized clients, blinded packets, tables by arm."""

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from repository import ROOT
from scipy import stats
from scored import Always
from tiny import give_adapter, model_server, set_models, study_with

from mi_llm import storage
from mi_llm.codebook import client
from mi_llm.codebook.packets import transcripts_of
from mi_llm.dialog import Dialog, Turn, read_dialogs, write_dialogs
from mi_llm.miti import blind as blinding
from mi_llm.miti import code as coders
from mi_llm.miti.blind import (
    assigned,
    aucs,
    blind,
    classified,
    deidentified,
    formatted,
    groups_of,
    leaks,
    relabeled,
    suspected_names,
)
from mi_llm.miti.clients import Scripted, bundled, read_profiles
from mi_llm.miti.simulate import converse, profiles, simulate
from mi_llm.miti.summary import at_chance, guessing, summary, table_4
from mi_llm.problem import Problem
from mi_llm.report import manual
from mi_llm.study import Study

PROFILES, LINES = read_profiles(ROOT / bundled())
assert LINES is not None
COMMON = LINES
REFLECTS = "听起来你很为难，一方面想改变，另一方面又舍不得。"
PUSHES = "你应该马上改掉这个坏习惯，必须坚持下去。"


def talk(profile: int, reply: Callable[[int], str], rounds: int = 30) -> list[Turn]:
    """A scripted client's talk with a counselor that answers by the number of the round."""
    client, turns = Scripted(PROFILES[profile], COMMON), list[Turn]()
    for number in range(rounds):
        text = client.say(turns)
        if text is None:
            break
        turns += [Turn(role="client", text=text), Turn(role="counselor", text=reply(number))]
    return turns


def client_texts(turns: list[Turn]) -> list[str]:
    return [turn.text for turn in turns if turn.role == "client"]


@pytest.mark.parametrize("profile", range(len(PROFILES)), ids=[profile.id for profile in PROFILES])
def test_a_client_who_is_heard_tells_the_reason_and_makes_a_plan(profile: int) -> None:
    lines = PROFILES[profile].says
    assert lines is not None
    words = client_texts(talk(profile, lambda _: REFLECTS))
    assert words[0] == lines.opening
    assert words[-2:] == [lines.plan, COMMON.goodbye]
    places = [words.index(line) for line in (*lines.manifestation[:2], *lines.reason, lines.change[0])]
    assert places == sorted(places)
    assert len(words) <= 12


def test_a_client_who_is_pushed_defends_themselves_and_breaks_off() -> None:
    words = client_texts(talk(0, lambda _: PUSHES))
    assert words[1:4] == list(COMMON.sustain[:3])
    assert words[-1] == COMMON.break_off
    assert not set(words) & set(PROFILES[0].says.reason if PROFILES[0].says else ())


def test_readiness_is_noted_at_both_ends(study: Study) -> None:
    ends = {}
    for arm, reply in (("base", PUSHES), ("tuned", REFLECTS)):
        talks = converse(study, "tiny-glm4", Always(arm, reply))
        ends[arm] = [talk.meta["readiness"] for talk in talks]
    first = [profile.readiness for profile in PROFILES]
    assert [before for before, _ in ends["base"]] == [before for before, _ in ends["tuned"]] == first
    assert all(after < before for before, after in ends["base"]), "who is pushed is less ready"
    assert all(after > before for before, after in ends["tuned"]), "who is heard is readier"


def test_without_its_reason_addressed_motivation_does_not_rise() -> None:
    lines = PROFILES[0].says
    assert lines is not None
    words = client_texts(talk(0, lambda _: "后来怎么样呢？"))
    assert not set(words) & {*lines.change, lines.plan}


def test_the_topics_are_those_of_table_5_in_the_papers_numbers() -> None:
    counts = pd.Series([profile.topic for profile in PROFILES]).value_counts()
    assert dict(counts) == {
        "Weight loss or diet management": 4,
        "Reducing mobile phone use": 2,
        "Improving insomnia": 2,
        "Increasing exercise": 1,
        "Reducing excessive consumption": 1,
    }


@pytest.fixture
def ready(workspace: Path) -> Study:
    """A study with one tiny model, its adapter, and five clients who stay for three rounds at most."""
    (workspace / "pretrain").symlink_to(ROOT / "pretrain")
    set_models({"tiny-glm4": {"chat_format": "glm4"}})
    study = study_with(threads="1", max_new_tokens="12", simulate_dialogs="5", simulate_rounds="3")
    give_adapter(study, "tiny-glm4")
    return study


def test_both_arms_meet_the_same_clients(ready: Study) -> None:
    simulate(ready, "tiny-glm4")
    arms = {arm: read_dialogs(ready.folder / "simulate/tiny-glm4" / f"{arm}.jsonl") for arm in ("base", "tuned")}
    met = [[dialog.meta["profile"] for dialog in dialogs] for dialogs in arms.values()]
    assert met[0] == met[1]
    assert len(set(met[0])) == 5
    assert [dialog.turns[0] for dialog in arms["base"]] == [dialog.turns[0] for dialog in arms["tuned"]]
    assert [dialog.turns[1] for dialog in arms["base"]] != [dialog.turns[1] for dialog in arms["tuned"]]
    for dialog in arms["base"]:
        assert [turn.role for turn in dialog.turns] == ["client", "counselor"] * (len(dialog.turns) // 2)
    before = {path: path.read_bytes() for path in (ready.folder / "simulate").rglob("*.jsonl")}
    simulate(ready, "tiny-glm4")
    assert before == {path: path.read_bytes() for path in before}


OWN_CLIENT = """profiles:
  - id: own
    behavior: 早点睡
    manifestation: 每晚两点才睡
    reason: 只有夜里属于自己
"""


def test_the_clients_are_those_of_the_file_that_the_study_names(ready: Study) -> None:
    file = Path("mini/own.yaml")
    study = study_with(profiles=str(file), simulate_dialogs="1")
    file.write_text(OWN_CLIENT, encoding="utf-8")
    with pytest.raises(Problem, match="no lines of own, which a scripted client says"):
        profiles(study)
    by_model = study.model_copy(update={"simulate": study.simulate.model_copy(update={"client": "llm"})})
    assert [profile.behavior for profile in profiles(by_model)] == ["早点睡"]
    for wrong, told in (
        (OWN_CLIENT + OWN_CLIENT.partition("\n")[2], "two clients own"),
        (OWN_CLIENT.replace("reason", "cause"), r"own.yaml: profiles.0.reason: Field required"),
        ("[]", "own.yaml: its content"),
    ):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(Problem, match=told):
            profiles(study)


def test_a_server_is_asked_for_each_reply_once_until_the_talks_are_there(ready: Study, tmp_path: Path) -> None:
    log, out = tmp_path / "server.log", ready.folder / "simulate/tiny-glm4"
    with model_server(log) as address:
        study = study_with(engine="server", server=address)
        (out / "base.jsonl").mkdir(parents=True)
        with pytest.raises(Problem, match="could not be written"):
            simulate(study, "tiny-glm4")
        asked = log.read_text().splitlines()
        assert len(asked) == 2 * 5 * 3  # arms, clients, rounds
        (out / "base.jsonl").rmdir()
        simulate(study, "tiny-glm4")
        assert log.read_text().splitlines() == asked
        assert list((ready.folder / "simulate").iterdir()) == [out]
        simulate(study, "tiny-glm4")
    assert len(log.read_text().splitlines()) == 2 * len(asked)


def test_talks_of_people_are_read(ready: Study) -> None:
    study = study_with(simulate_client="person")
    folder = Path(study.simulate.folder) / "tiny-glm4"
    turns = (Turn(role="client", text="我想戒烟"), Turn(role="counselor", text="你想戒烟。"))
    write_dialogs(folder / "tuned.jsonl", [Dialog(id="1", source="chat", turns=turns, meta={"profile": "night-snacks"})])
    simulate(study, "tiny-glm4")
    (dialog,) = read_dialogs(study.folder / "simulate/tiny-glm4/tuned.jsonl")
    assert (dialog.id, dialog.turns, dialog.meta["client"]) == ("tiny-glm4-tuned-1", turns, "person")
    assert read_dialogs(study.folder / "simulate/tiny-glm4/base.jsonl") == []
    write_dialogs(folder / "base.jsonl", [Dialog(id="2", source="chat", turns=turns[:1])])
    with pytest.raises(Problem, match=r"base\.jsonl, line 1"):
        simulate(study, "tiny-glm4")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我叫李小明，今年三十岁。", "我叫某某，今年三十岁。"),
        ("我叫他别抽了。", "我叫他别抽了。"),
        ("上周王医生说我血压高。", "上周某医生说我血压高。"),
        ("高血压医生都说要少盐。", "高血压医生都说要少盐。"),
        ("任何医生都这么说。", "任何医生都这么说。"),
        ("欧阳说，张伟民老师好。", "欧阳说，某老师好。"),
        ("小张同学陪我去的。", "某同学陪我去的。"),
        ("我在北京市上班，老家是四川省的。", "我在某地上班，老家是某地的。"),
        ("我的电话是13812345678，微信号是abc_12345。", "我的电话是某处，微信号是某号。"),
        ("写信到 someone@example.org 或看 https://example.org/a?b=1。", "写信到 某处 或看 某处。"),
        ("作为一个人工智能语言模型，我不能诊断。", "作为一名咨询师，我不能诊断。"),
        ("我是ChatGLM，由智谱训练。", "我是某某，由某某训练。"),
        ("My name is Dana Miller and I smoke.", "My name is 某某 and I smoke."),
        ("每天两包烟，抽了10年。", "每天两包烟，抽了10年。"),
    ],
)
def test_what_names_people_places_and_models_is_taken_out(text: str, expected: str) -> None:
    assert deidentified(text)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Dana Miller, and I smoke.", "My name is someone, and I smoke."),
        ("Hi Dana, come in.", "Hi someone, come in."),
        ("Dr. Okafor told my sister Ruth.", "Dr someone told my sister someone."),
        ("I moved from Ohio to New York.", "I moved from somewhere to somewhere."),
        ("Write to a@b.org or call 555-123-4567.", "Write to somewhere or call somewhere."),
        ("As an AI language model, I can't say.", "As a counselor, I can't say."),
        ("I'm ChatGPT, made by OpenAI.", "I'm someone, made by someone."),
        ("I am so tired. May is hard. I will call on Monday.", "I am so tired. May is hard. I will call on Monday."),
    ],
)
def test_english_names_places_and_models_are_taken_out(text: str, expected: str) -> None:
    assert deidentified(text, code="en")[0] == expected
    assert deidentified("Zuzanna came.", ["Zuzanna"], "en")[0] == "someone came."


def test_english_words_that_may_be_names_are_listed_for_a_person() -> None:
    turns = [
        Turn(role="client", text="Well, I met Zuzanna again. Yesterday was hard."),
        Turn(role="counselor", text="You met, again."),
    ]
    assert list(suspected_names(turns, "en")) == [(1, "Zuzanna")]
    assert [turn.text for turn in formatted([turns[1], turns[1]], "en")] == ["You met, again. You met, again."]


def test_words_that_a_person_found_are_taken_out_too() -> None:
    text, removed = deidentified("达娜，谢谢你。", ["达娜"])
    assert (text, removed) == ("某某，谢谢你。", [("name", "某某")])


def test_all_transcripts_have_one_format() -> None:
    turns = [
        Turn(role="client", text="我  想\n戒烟"),
        Turn(role="counselor", text="**好**的：\n- 一\n- 二"),
        Turn(role="counselor", text="三"),
    ]
    assert formatted(turns) == [Turn(role="client", text="我想戒烟"), Turn(role="counselor", text="好的：一二三")]


def test_raters_share_what_they_should_share() -> None:
    packets = [f"p{number}" for number in range(10)]
    by_rater = assigned(packets, 3, 0.4, random.Random(1))
    mine = [set(share) for share in by_rater.values()]
    assert set.union(*mine) == set(packets)
    assert len(set.intersection(*mine)) == 4
    assert [len(share) for share in mine] == [6, 6, 6]
    assert all(share & other == set.intersection(*mine) for share in mine for other in mine if share is not other)
    assert assigned(packets, 2, 1.0, random.Random(1))["rater-1"] != packets


def blinded(study: Study) -> Path:
    """Simulate, add two real sessions, blind."""
    simulate(study, "tiny-glm4")
    turns = (
        Turn(role="counselor", text="你好，王医生让你来的？"),
        Turn(role="client", text="对。"),
        Turn(role="counselor", text="嗯。"),
    )
    real = [Dialog(id=name, source="annomi-zh", turns=turns, meta={"topic": "smoking cessation"}) for name in ("0", "1")]
    write_dialogs(study.folder / "translate/dialogs.jsonl", real)
    blind(study)
    return study.folder / "blind"


def test_packets_do_not_tell_where_they_come_from(ready: Study) -> None:
    folder = blinded(ready)
    key = pd.read_csv(folder / "key.csv", keep_default_na=False)
    assert len(key) == 5 + 5 + 2
    files = sorted((folder / "packets").glob("*.json"))
    assert {path.stem for path in files} == {*key["packet"], "raters"}
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    for word in ("tiny", "glm4", "annomi", "base", "tuned", "real", "王医生", "night-snacks"):
        assert word not in text
    raters = storage.read_json(folder / "packets/raters.json")
    assert set(raters["rater-1"]) == set(raters["rater-2"]) == set(key["packet"])
    order = [str(arm) for arm in key["arm"]]
    assert order != sorted(order)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    blind(ready)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_a_phrase_that_tells_the_arm_is_found() -> None:
    chance = random.Random(1)
    arms = ["base"] * 12 + ["tuned"] * 12
    key = pd.DataFrame({"packet": [str(index) for index in range(24)], "arm": arms})
    packets = {
        str(index): [
            Turn(role="client", text="我想戒烟" * chance.randint(1, 5)),
            Turn(role="counselor", text="抱歉，我无法" if arm == "base" else "慢慢来，我们" + "一起" * chance.randint(1, 5)),
        ]
        for index, arm in enumerate(arms)
    }
    measures = leaks(packets, key.assign(source="m", profile=[str(index % 12) for index in range(24)]), 1).set_index("what")
    assert measures.loc["抱歉", "auc"] == 0
    assert measures.loc["抱歉", "p"] == pytest.approx(2 / 2**12, abs=6e-4)
    assert measures.loc["characters per client volley", "p"] > 0.05
    assert measures.loc["慢慢来", "auc"] == 1
    assert 0.2 < measures.loc["characters per client volley", "auc"] < 0.8
    assert measures.loc["all measures together", "auc"] > 0.9


def test_the_auc_is_that_of_mann_and_whitney() -> None:
    values, second = np.random.default_rng(1).integers(0, 5, size=30).astype(float), np.arange(30) % 3 == 0
    expected = stats.mannwhitneyu(values[second], values[~second]).statistic / (10 * 20)
    assert aucs(values, second[None])[0] == pytest.approx(expected)
    assert aucs(np.ones(30), second[None])[0] == 0.5


def test_a_packet_is_not_judged_by_itself_nor_by_the_talks_of_its_client() -> None:
    values, second, groups = np.random.default_rng(2).normal(size=(20, 4)), np.arange(20) < 9, np.arange(20) // 2
    scores = classified(values, second[None], groups)[0]
    spread = (values - values.mean(axis=0)) / values.std(axis=0)
    design = np.column_stack([spread, np.ones(20)])
    target = np.where(second, 1 / 9, -1 / 11)
    for index in range(20):
        rest = groups != groups[index]
        ridge = np.diag([1.0, 1.0, 1.0, 1.0, 1e-9])
        weights = np.linalg.solve(design[rest].T @ design[rest] + ridge, design[rest].T @ target[rest])
        assert scores[index] == pytest.approx(design[index] @ weights)


def keyed(arms: list[str], profiles: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"packet": [str(index) for index in range(len(arms))], "source": "m", "arm": arms, "profile": profiles})


def test_labels_move_within_a_client_and_clients_keep_together() -> None:
    chance = np.random.default_rng(1)
    met_both = keyed(["base", "tuned"] * 6, [str(index // 2) for index in range(12)])
    labels = relabeled((met_both["arm"] == "tuned").to_numpy(), met_both, 200, chance)
    assert (labels.reshape(200, 6, 2).sum(axis=2) == 1).all()
    assert 0.4 < labels[:, 0].mean() < 0.6
    apart = keyed(["tuned"] * 6 + ["real"] * 3, [*"aabbcc", "", "", ""])
    labels = relabeled((apart["arm"] == "tuned").to_numpy(), apart, 200, chance)
    assert (labels[:, :6:2] == labels[:, 1:6:2]).all()
    assert len(set(map(tuple, labels.tolist()))) == 20  # three of six


@pytest.mark.parametrize("paired", [True, False])
def test_where_nothing_tells_one_leak_in_twenty_passes_five_percent(paired: bool) -> None:
    """Mann and Whitney's P of the same left-out scores passed in 18 to 20 % of cases."""
    chance = np.random.default_rng(3)
    profiles = [str(index // 2) for index in range(20)] if paired else [""] * 20
    key = keyed(["base", "tuned"] * 10, profiles)
    second, passed = (key["arm"] == "tuned").to_numpy(), []
    for _ in range(400):
        values = chance.normal(size=(20, 5)) + chance.normal(size=(10, 5)).repeat(2, axis=0) * paired
        labels = np.vstack([second, relabeled(second, key, 199, chance)])
        areas = aucs(classified(values, labels, groups_of(key)), labels)
        passed.append((areas >= areas[0] - 1e-9).mean() <= 0.05)
    assert np.mean(passed) == pytest.approx(0.05, abs=0.03)


def test_the_best_of_many_phrases_is_judged_as_such() -> None:
    chance = np.random.default_rng(4)
    second = np.arange(20) % 2 == 0
    best = []
    for _ in range(200):
        labels = np.vstack([second, relabeled(second, keyed(["tuned", "base"] * 10, [""] * 20), 199, chance)])
        presence = (chance.random((60, 20)) < 0.4).astype(float)
        areas = np.stack([aucs(column, labels) for column in presence], axis=1)
        best.append(min(row["p"] for row in blinding.family("phrase", list(map(str, range(60))), areas)))
    assert np.mean(np.array(best) <= 0.05) < 0.09


def code(
    study: Study,
    seen: Callable[[str, int], list[str]],
    globals_: Callable[[str], int] | None = None,
    raters: tuple[str, str] = ("rater-1", "rater-2"),
) -> None:
    """Codes of two raters: `seen` tells what is in a volley of an arm; the globals by arm, of the second rater 1 more."""
    folder = study.folder / "code"
    folder.mkdir(parents=True, exist_ok=True)
    key = pd.read_csv(study.folder / "blind/key.csv", keep_default_na=False)
    with (folder / "codes.csv").open("w", newline="") as codes, (folder / "globals.csv").open("w", newline="") as ratings:
        rows, rating_rows = csv.writer(codes), csv.writer(ratings)
        rows.writerow(["rater", "packet", "volley", "code"])
        rating_rows.writerow(["rater", "packet", "code", "rating"])
        (folder / "guesses.csv").write_text("rater,packet,guess\n")
        transcripts = transcripts_of(study.folder / "blind/packets")
        heard = [client.ClientCoding("lexical", packet, client.by_words(turns)) for packet, turns in transcripts.items()]
        storage.write_table(folder / "client.csv", client.table(heard))
        for rater in raters:
            for packet, arm in zip(key["packet"], key["arm"], strict=True):
                turns = json.loads((study.folder / f"blind/packets/{packet}.json").read_text(encoding="utf-8"))["turns"]
                for number, turn in enumerate(turns, 1):
                    if turn["role"] == "counselor":
                        for behavior in seen(arm, number) or [""]:
                            rows.writerow([rater, packet, number, behavior])
                if globals_:
                    for name in ("CCT", "SST", "EMP", "PAR"):
                        rating_rows.writerow([rater, packet, name, globals_(arm) + (rater == raters[1])])


def test_the_tables_of_hand_made_codes(ready: Study) -> None:
    blinded(ready)
    code(
        ready,
        lambda arm, number: {"base": ["Q"], "tuned": ["SR", "Q", "AF"], "real": []}[arm],
        lambda arm: 4 if arm == "tuned" else 2,
    )
    summary(ready)
    folder = ready.folder / "summary"
    table = pd.read_csv(folder / "table_6.csv").set_index(["indicator", "source", "arm"])
    rounds = pd.read_csv(folder / "table_4.csv").set_index(["source", "arm"])["rounds_mean"]
    assert rounds.loc[("tiny-glm4", "tuned")] == 3
    assert table.loc[("SR", "tiny-glm4", "tuned"), "mean"] == 3
    assert table.loc[("SR", "tiny-glm4", "tuned"), "per_round"] == 1
    assert table.loc[("RQ", "tiny-glm4", "tuned"), "mean"] == 1
    assert table.loc[("RQ", "tiny-glm4", "base"), "mean"] == 0
    assert ("RQ", "annomi", "real") not in table.index  # no question: there is no ratio
    assert table.loc[("CCT", "tiny-glm4", "tuned"), "mean"] == 4.5
    assert table.loc[("TECH", "annomi", "real"), "mean"] == 2.5
    tested = pd.read_csv(folder / "tests.csv").set_index(["contrast", "indicator"])
    assert tested.loc[("tuned against base", "SR"), "p"] == 2 / 2**5  # five clients: only two of the 32 sign patterns are as far
    assert tested.loc[("tuned against base", "Q"), "p"] == 1
    assert tested.loc[("tuned against base", "SR"), "p_holm"] == 1
    numbers = storage.read_json(folder / "metrics.json")
    assert (numbers["packets"], numbers["coded"]) == (12, 12)
    heard = pd.read_csv(folder / "client_language.csv").set_index(["source", "arm", "rater", "measure"])
    assert heard.loc[("tiny-glm4", "tuned", "rater-2", "CCT"), "mean"] == 5
    assert set(heard.index.get_level_values("rater")) == {"lexical", "rater-1", "rater-2"}
    assert heard.loc[("annomi", "real", "rater-1", "CCT"), "values"] == "2.00; 2.00"  # too few for an interval
    assert table.loc[("PERS", "tiny-glm4", "tuned"), ["lo", "hi"]].tolist() == [
        0,
        pytest.approx(0.7378, abs=1e-4),
    ]  # none in five
    assert table.loc[("SR", "annomi", "real"), "values"] == "0.00; 0.00"
    assert table.loc[("CCT", "annomi", "real"), ["lo", "hi"]].isna().all()
    against_real = tested.loc["tuned against real"]
    assert (against_real["p"].isna() & (against_real["note"] == "no test: fewer than 5 sessions")).all()
    (power,) = pd.read_csv(folder / "power.csv").to_dict("records")
    assert power["contrast"] == "tuned against base"
    assert power["smallest_p_holm"] == min(1, power["tests"] * 2 / 2**5)
    assert math.isnan(power["detectable"])  # five pairs cannot give a P below .05
    topics = pd.read_csv(folder / "table_5.csv")
    assert topics[topics["arm"] == "real"]["topic"].tolist() == ["Quitting smoking"]


def test_programs_are_not_tested_where_their_validity_is_chance() -> None:
    assert set(at_chance({"lexical"})) == {"TR", "CRR", "RQ", "MINA"}
    assert at_chance({"lexical"})["RQ"] == "no test: validity at chance, auc 0.48 [0.31, 0.66]"
    assert at_chance({"r1", "r2"}) == at_chance({"r1"}) == {}


def test_guesses_are_counted_against_chance() -> None:
    key = keyed(["base"] * 6 + ["tuned"] * 6 + ["real"], [""] * 13)
    guess = ["base"] * 5 + ["tuned"] + ["tuned"] * 3 + ["base"] * 3 + ["unsure"]
    guesses = guessing(pd.DataFrame({"rater": "r", "packet": key["packet"], "guess": guess}), key, 0.95).set_index("arm")
    assert guesses.loc["base", ["n", "right", "unsure", "share"]].tolist() == [6, 5, 0, 0.8333]
    assert guesses.loc["real", ["n", "unsure"]].tolist() == [0, 1]
    assert guesses.loc["all", ["n", "right"]].tolist() == [12, 8]
    assert guesses.loc["all", "by_chance"] == 0.5  # 8 of 12 guesses say base, 4 tuned: (6 * 8 / 12 + 6 * 4 / 12) / 12
    assert guesses.loc["all", ["lo", "hi"]].tolist() == pytest.approx([0.3489, 0.9008], abs=1e-4)


def test_two_of_two_raters_count_by_their_mean(ready: Study) -> None:
    blinded(ready)
    code(ready, lambda arm, number: ["CR"])
    path = ready.folder / "code/codes.csv"
    codes = pd.read_csv(path, keep_default_na=False)
    codes.loc[codes["rater"] == "rater-2", "code"] = ""
    codes.to_csv(path, index=False)
    summary(ready)
    table = pd.read_csv(ready.folder / "summary/transcripts.csv").set_index("packet")
    assert (table["CR"] == table["rounds"] / 2).all()
    assert table["CCT"].isna().all()


def test_a_rater_is_called_as_they_like(ready: Study) -> None:
    blinded(ready)
    for name in ("NA", "None", "null", "nan", "007"):
        code(ready, lambda arm, number: ["CR"], lambda arm: 3, (name, "rater-2"))
        alone = storage.read_text(ready.folder / "code/codes.csv").splitlines()[1].split(",")[1]  # the first packet
        for path in (ready.folder / "code").glob("*.csv"):
            lines = storage.read_text(path).splitlines(keepends=True)
            path.write_text("".join(line for line in lines if not line.startswith(f"rater-2,{alone},")), encoding="utf-8")
        summary(ready)
        table = pd.read_csv(ready.folder / "summary/transcripts.csv").set_index("packet")
        assert len(table) == 12
        assert table.loc[alone, "CCT"] == 3
        assert (table["CCT"].drop(alone) == 3.5).all()
        assert set(pd.read_csv(ready.folder / "summary/reliability.csv")["raters"]) == {f"{name}, rater-2"}
        assert manual.coders(ready, "en") == "2 people"


def had(study: Study, arm: str, talks: list[tuple[str, str]]) -> None:
    """Talks of people with one arm, as the chat exports them: a profile, or none, and what the counselor says."""
    dialogs = [
        Dialog(
            id=str(number),
            source="chat",
            turns=(Turn(role="client", text="我想戒烟"), Turn(role="counselor", text=text)),
            meta={"profile": profile, "topic": ""},
        )
        for number, (profile, text) in enumerate(talks)
    ]
    write_dialogs(Path(study.simulate.folder) / "tiny-glm4" / f"{arm}.jsonl", dialogs)


def coded_by_words(study: Study) -> pd.DataFrame:
    """Simulate, blind, code, sum up; gives the tests of tuned against base by indicator."""
    blinded(study)
    coders.code(study)
    summary(study)
    tests = pd.read_csv(study.folder / "summary/tests.csv").set_index(["contrast", "indicator"])
    assert "tuned against real" in tests.index.get_level_values("contrast")
    return tests[tests.index.get_level_values("contrast") == "tuned against base"].droplevel("contrast")


@pytest.mark.parametrize("base", [5, 4])
def test_talks_without_a_profile_are_in_no_pair(ready: Study, base: int) -> None:
    study = study_with(simulate_client="person")
    had(study, "base", [("", "你抽了多久？")] * base)
    had(study, "tuned", [("", REFLECTS)] * 5)
    assert coded_by_words(study).empty


def test_a_pair_is_a_profile_however_many_talks_it_had(ready: Study) -> None:
    study = study_with(simulate_client="person")
    had(study, "base", [("a", REFLECTS), ("a", "嗯。"), ("b", "嗯。"), ("", REFLECTS), ("c", REFLECTS)])
    had(study, "tuned", [("b", "你抽了多久？"), ("a", "你抽了多久？"), ("", "嗯。"), ("d", REFLECTS)])
    tests = coded_by_words(study)
    assert set(tests["n"]) == {2}
    assert tests["p"].isna().all()
    assert tests.loc["Q", "difference"] == 1
    assert (
        tests.loc["SR", "difference"] + tests.loc["CR", "difference"] == -0.25
    )  # a: one reflection in two talks, none in the other arm; b: none


def test_table_4_counts_as_the_paper_does() -> None:
    turns = (Turn(role="client", text="好。"), Turn(role="counselor", text="嗯，我在听"), Turn(role="client", text="谢谢"))
    key = pd.DataFrame({"packet": ["a", "b"], "source": "m", "arm": "tuned"})
    row = table_4(key, {"a": turns, "b": (turns[0], Turn(role="counselor", text="嗯"))}).iloc[0]
    assert (row["n"], row["rounds_mean"], row["rounds_sd"]) == (2, 1, 0)
    assert (row["counselor_mean"], row["counselor_sd"]) == (3, pytest.approx(2.8284, abs=1e-4))
    assert row["client_mean"] == 2
