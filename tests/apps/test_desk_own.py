"""The desk for one's own sessions: packets of transcripts, hidden gold codes, settling differences, drift, training first."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from test_desk import CODED, EXERCISE, GOLD, RATED, SHARED, Running, change, code_all, lay, lay_training, rows, running, send

from mi_llm import storage
from mi_llm.apps.desk import drift, settling
from mi_llm.apps.desk.prepare import prepare
from mi_llm.apps.desk.store import SETTLED, Desk, Held
from mi_llm.codebook import consensus, packets
from mi_llm.codebook.coding import Behavior, Global
from mi_llm.codebook.tables import Coding
from mi_llm.problem import Problem

TALK = "来访者：医生，我叫李小明，我想戒烟，可是一到晚上就想抽。\n咨询师：听起来你想戒烟。\n来访者：嗯。\n咨询师：晚上怎么了？\n"
GOLD_ROWS = ["rater,packet,volley,code", "me,s3,2,SR", "me,s3,4,Q"]


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    folder = tmp_path / "sessions"
    folder.mkdir()
    for number in range(1, 11):
        (folder / f"s{number}.txt").write_text(TALK.replace("晚上", f"晚上{number}点"), encoding="utf-8")
    (tmp_path / "gold.csv").write_text("\n".join(GOLD_ROWS) + "\n", encoding="utf-8")
    return folder


def key_of(data: Path) -> dict[str, str]:
    """The packet of each transcript."""
    return {row["transcript"]: row["packet"] for row in rows((data / "key.csv").read_text(encoding="utf-8"))}


# ---- packets of one's own transcripts


def test_transcripts_become_packets_some_for_all_raters_and_gold_ones_for_everybody(sessions: Path, tmp_path: Path) -> None:
    data = tmp_path / "desk"
    folder = prepare(sessions, data, ["A", "B"], 0.3, tmp_path / "gold.csv")
    key = key_of(data)
    assert set(key) == {f"s{number}" for number in range(1, 11)}
    desk = packets.read(folder, None, data / "gold.csv")
    assert set(desk.study) == set(key.values())
    assert desk.hidden == {key["s3"]: {2: {Behavior.SIMPLE}, 4: {Behavior.QUESTION}}}
    shared = [name for name in desk.study if len(desk.sharing(name)) == 2]
    assert len(shared) == 1 + round(0.3 * 9)
    assert key["s3"] in shared
    assert all(len(desk.sharing(name)) >= 1 for name in desk.study)
    assert "李小明" not in "".join(path.read_text(encoding="utf-8") for path in folder.iterdir()), "names are taken out"
    assert not re.search("gold|s3", "".join(path.read_text(encoding="utf-8") for path in folder.iterdir()))
    assert not any(packet.guess for packet in desk.study.values()), "they come from no arm"


def test_the_same_transcripts_find_their_packets_and_others_are_refused(sessions: Path, tmp_path: Path) -> None:
    data = tmp_path / "desk"
    prepare(sessions, data, ["A", "B"], 0.3)
    before = {path.name: path.read_bytes() for path in sorted((data / "packets").iterdir())}
    prepare(sessions, data, ["A", "B"], 0.3)
    assert {path.name: path.read_bytes() for path in sorted((data / "packets").iterdir())} == before
    (sessions / "s4.txt").write_text(TALK + "来访者：还有。\n", encoding="utf-8")
    with pytest.raises(Problem, match="s4 is new, gone, or changed"):
        prepare(sessions, data, ["A", "B"], 0.3)
    for names in ([], ["A", "A"], ["coordinator"]):
        with pytest.raises(Problem, match="--raters"):
            prepare(sessions, tmp_path / "other", names, 0.3)
    (tmp_path / "gold.csv").write_text("rater,packet,volley,code\nme,s99,2,SR\n", encoding="utf-8")
    with pytest.raises(Problem, match="the packet 's99'"):
        prepare(sessions, tmp_path / "other", ["A", "B"], 0.3, tmp_path / "gold.csv")


def test_one_command_opens_a_desk_for_a_folder_of_transcripts(sessions: Path, tmp_path: Path) -> None:
    words = [
        "desk", "--transcripts", str(sessions), "--raters", "A,B", "--overlap", "0.3", "--gold", str(tmp_path / "gold.csv"),
        "--data", str(tmp_path / "desk"), "--port", "0",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mi_llm", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    said = []
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if line.startswith("The desk is open"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    text = "".join(said)
    assert re.findall(r"^(\S+) +http://127\.0\.0\.1:\d+/in/", text, re.M) == ["A", "B", "coordinator"], text
    assert "10 packets of" in text
    assert (tmp_path / "desk" / "gold.csv").is_file()


# ---- settling, and opening again


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Running]:
    folder = lay(tmp_path / "blind" / "packets", {"rater-1": [SHARED], "rater-2": [SHARED]})
    gold = tmp_path / "gold.csv"
    lines = [f"gold,{SHARED},{number},{code}" for number, codes in GOLD.items() for code in codes or [""]]
    gold.write_text("\n".join(["rater,packet,volley,code", *lines]) + "\n", encoding="utf-8")
    with running(folder, tmp_path / "data", gold=gold, threshold=0.99) as open_desk:
        yield open_desk


def post(client: Any, path: str, **body: Any) -> int:
    return int(client.post(path, json=body).status_code)


def test_the_coordinator_settles_differences_with_a_reason_and_opens_again_with_a_log(desk: Running) -> None:
    one, other, coordinator = (desk.client(person) for person in ("rater-1", "rater-2", "coordinator"))
    page, settle = f"/packets/{SHARED}", f"/settle/{SHARED}"
    code_all(one, "rater-1", page)
    assert coordinator.get(settle).status_code == 404, "nobody sees codes before both have finished"
    code_all(other, "rater-2", page, {**CODED, 2: ["SR", "Q"]})
    assert [one.get(settle).status_code, post(one, settle, item="volley-2", value=["CR"], reason="x")] == [404, 404]

    html = coordinator.get(settle).text
    assert re.findall(r'data-item="(.*?)"', html) == ["volley-2"], "volley 8 of both counts the same by the rule"
    assert "0 of 1 settled" in html
    refused = [
        post(coordinator, settle, item="volley-2", value=["CR", "Q"], reason=" "),
        post(coordinator, settle, item="volley-2", value=["XX"], reason="x"),
        post(coordinator, settle, item="volley-4", value=["CR"], reason="x"),
        post(coordinator, settle, item="volley-2", value=3, reason="x"),
        coordinator.post(settle, json={}, headers={"Origin": "http://elsewhere.example"}).status_code,
    ]
    assert refused == [422, 422, 409, 409, 403]
    assert rows(coordinator.get("/export/consensus.csv").text) == []
    assert post(coordinator, settle, item="volley-2", value=["CR", "Q"], reason="adds a feeling") == 200
    expected = [{"packet": SHARED, "volley": "2", "code": code, "rating": "", "reason": "adds a feeling"} for code in ("CR", "Q")]
    assert rows(coordinator.get("/export/consensus.csv").text) == expected
    assert "1 of 1 settled" in coordinator.get("/").text

    assert post(coordinator, f"/reopen/{SHARED}", rater="rater-9", reason="x") == 422
    assert post(coordinator, f"/reopen/{SHARED}", rater="rater-2", reason="missed a question") == 200
    assert coordinator.get(settle).status_code == 404
    assert rows(coordinator.get("/export/codes.csv").text) == []
    assert "rater-2: missed a question" in coordinator.get("/").text
    state = other.get(f"{page}/state").json()["items"]
    assert state["done"]["value"] is None
    again = change("volley-2", ["SR"], base=state["volley-2"]["version"])
    send(other, "rater-2", page, again, change("done", True, base=state["done"]["version"]))
    assert "0 of 1 settled" in coordinator.get(settle).text, "what was settled is not what they differ on now"
    assert rows(coordinator.get("/export/consensus.csv").text) == []


def test_the_coordinators_page_shows_icc_scores_drift_and_a_warning(desk: Running) -> None:
    for rater in ("rater-1", "rater-2"):
        code_all(desk.client(rater), rater, f"/packets/{SHARED}", {**CODED, 2: ["SR", "Q"]} if rater == "rater-2" else CODED)
    page = re.sub(r"\s+", " ", desk.client("coordinator").get("/", headers={"Accept-Language": "en"}).text)
    assert "Agreement is below κ = 0.99" in page
    warned = page.partition('id="warnings"')[2].partition("</section>")[0]
    assert re.findall(r"<li>(.*?), ([\d–]+(?:-W\d\d)?): κ", warned)[0][0] == "rater-1 – rater-2"
    assert "Gold – rater-1" in warned
    assert "Transcripts: 1, volleys: 5" in warned, "what a warning rests on"
    for path in ("/", f"/packets/{SHARED}"):
        seen = desk.client("rater-1").get(path, headers={"Accept-Language": "en"}).text.rpartition("</script>")[2]
        assert not re.search("gold", seen, re.IGNORECASE), "raters do not know which packets have gold codes"
    for title in ("By week", "In the order of finishing", "With hidden gold codes", "Summary scores"):
        assert title in page
    relational = (RATED["EMP"] + RATED["PAR"]) / 2
    assert f"{relational:.2f} below fair" in page
    assert "ICC(2,1)" not in page, "a single transcript has none"
    assert "This desk has no training exercises" in page


def test_settling_in_a_browser(desk: Running, browser: Any) -> None:
    for rater in ("rater-1", "rater-2"):
        code_all(desk.client(rater), rater, f"/packets/{SHARED}", {**CODED, 2: ["SR", "Q"]} if rater == "rater-2" else CODED)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = browser.new_context(locale="en").new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(desk.links["coordinator"])
    page.click(f"text=Settle next >> xpath=.. >> a[href='/settle/{SHARED}']")
    form = "form[data-item=volley-2]"
    page.fill(f"{form} input[name=reason]", "adds a feeling")
    page.click(f"{form} button")
    page.wait_for_selector(f"{form} [role=status]:has-text('or “Nothing to code”')")
    page.check(f"{form} input[name=nothing]")
    page.check(f"{form} input[value=CR]")
    assert not page.is_checked(f"{form} input[name=nothing]")
    page.click(f"{form} button")
    page.wait_for_selector("text=1 of 1 settled")
    assert axe.run(page).violations_count == 0
    assert page.is_checked(f"{form} input[value=CR]")
    page.fill("form[data-after] input[name=reason]", "missed a question")
    page.click("form[data-after] button")
    page.wait_for_selector("text=rater-1: missed a question")
    assert axe.run(page).violations_count == 0
    assert complaints == []


# ---- what is computed


def coded(rater: str, packet: str, *codes: str) -> Coding:
    behaviors = {2 * number: frozenset([Behavior(code)] if code else []) for number, code in enumerate(codes, 1)}
    return Coding(rater, packet, behaviors, dict.fromkeys(Global, 3))


def state_of(coding: Coding) -> dict[str, Held]:
    items = {f"volley-{number}": Held(sorted(codes), "x") for number, codes in coding.behaviors.items()}
    return items | {f"global-{code}": Held(rating, "x") for code, rating in coding.ratings.items()} | {"done": Held(True, "x")}


def test_drift_is_told_by_week_in_order_and_with_gold(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(7)]
    folder = tmp_path / "packets"
    folder.mkdir()
    turns = [{"role": role, "text": "好"} for role in ("client", "counselor")] * 2
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps({"packet": name, "turns": turns}), encoding="utf-8")
    (folder / "raters.json").write_text(json.dumps({"A": names, "B": names}), encoding="utf-8")
    (tmp_path / "gold.csv").write_text("rater,packet,volley,code\ngold,p6,2,Q\ngold,p6,4,SR\n", encoding="utf-8")
    desk = packets.read(folder, None, tmp_path / "gold.csv")
    states, times = {}, {}
    for number, name in enumerate(names):
        for rater in ("A", "B"):
            agrees = rater == "A" or number < 4
            states[Desk(rater, "packets", name)] = state_of(coded(rater, name, *(("Q", "SR") if agrees else ("SR", "Q"))))
            times[rater, name] = f"2026-{'05' if number < 5 else '06'}-0{number + 1}T10:00:00.000Z"
    found = drift.drift(desk, states, times)
    weeks = [(span.when, span.packets, span.volleys) for span in found.weeks]
    assert weeks == [("2026-W18", 3, 6), ("2026-W19", 2, 4), ("2026-W23", 2, 4)]
    assert [(span.when, span.packets) for span in found.order] == [("1–5", 5), ("6–7", 2)]
    assert found.weeks[0].kappa == 1
    # B exchanges the codes of both volleys: of 20 decisions a packet 4 differ, and chance agrees on 0.9² + 0.1²
    assert found.weeks[2].kappa == pytest.approx((0.8 - 0.82) / (1 - 0.82))
    gold = [(span.raters, span.when, span.share) for span in found.gold]
    assert gold == [(("gold", "A"), "2026-W23", 1), (("gold", "B"), "2026-W23", 0.8)]
    low = [(span.raters[0], span.when) for span in found.below(0.6)]
    assert low == [("A", "2026-W19"), ("A", "2026-W23"), ("A", "6–7"), ("gold", "2026-W23")]


def test_what_was_settled_holds_for_what_it_was_about() -> None:
    first, second = coded("A", "p", "Q", "SR"), coded("B", "p", "Q", "CR")
    together = {"p": [first, second]}
    value = {"value": ["CR"], "reason": "why", "of": {"A": ["SR"], "B": ["CR"]}}
    states = {Desk("coordinator", SETTLED, "p"): {"volley-4": Held(value, "x")}}
    settled = settling.decisions(together, states)
    assert settled == {("p", 4): consensus.Settled(frozenset({Behavior.COMPLEX}), "why")}
    assert consensus.agreed([first, second], settled)[0].behaviors == {2: {Behavior.QUESTION}, 4: {Behavior.COMPLEX}}
    assert settling.to_settle(together, states) == [settling.ToSettle("p", 1, 1)]
    changed = {"p": [first, coded("B", "p", "Q", "AF")]}
    assert settling.decisions(changed, states) == {}
    assert consensus.agreed(changed["p"], {}) == []


def test_consensus_is_written_and_read_again(tmp_path: Path) -> None:
    decisions: dict[tuple[str, consensus.Item], consensus.Settled] = {
        ("p", 4): consensus.Settled(frozenset({Behavior.COMPLEX, Behavior.AFFIRM}), "a, b"),
        ("p", 12): consensus.Settled(frozenset(), "nothing"),
        ("p", Global.EMPATHY): consensus.Settled(4, "listens"),
    }
    path = tmp_path / "consensus.csv"
    storage.write_text(path, storage.csv_text(consensus.COLUMNS, consensus.written(decisions)))
    assert consensus.read(path) == decisions
    assert [row["volley"] for row in rows(path.read_text(encoding="utf-8"))] == ["4", "4", "12", ""]
    path.write_text("packet,volley,code,rating,reason\np,,EMP,9,x\n", encoding="utf-8")
    with pytest.raises(Problem, match=r"row 2: the rating '9'"):
        consensus.read(path)


# ---- training first


def test_packets_open_after_the_training_where_it_is_required(tmp_path: Path) -> None:
    folder = lay(tmp_path / "blind" / "packets", {"rater-1": [SHARED], "rater-2": [SHARED]})
    with running(folder, tmp_path / "data", lay_training(tmp_path / "training"), training_first=True) as desk:
        client, path = desk.client("rater-1"), f"/training/{EXERCISE}"
        page = client.get("/", headers={"Accept-Language": "en"}).text
        assert "Finish the training first" in page
        assert f'href="/packets/{SHARED}"' not in page
        assert client.get(f"/packets/{SHARED}").status_code == 404
        assert client.post(f"/packets/{SHARED}/changes", json={"rater": "rater-1", "changes": []}).status_code == 404
        steps = [[change(f"volley-{number}", codes), change(f"shown-{number}", True)] for number, codes in GOLD.items()]
        ratings = [change(f"global-{code}", rating) for code, rating in RATED.items()]
        send(client, "rater-1", path, *(one for step in steps for one in step), *ratings, change("done", True))
        assert client.get(f"/packets/{SHARED}").status_code == 200
        assert f'href="/packets/{SHARED}"' in client.get("/").text
        assert desk.client("rater-2").get(f"/packets/{SHARED}").status_code == 404, "each trains for themselves"
