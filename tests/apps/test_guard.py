"""The crisis guard: what it finds in messages and talks, what it holds of replies, how it is made and measured."""

import json
import re
import re._parser as regex  # type: ignore[import-not-found]
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from typer.testing import CliRunner

from mi_llm.apps.chat import detector, guard, help, measuring, training
from mi_llm.apps.chat.screening import screening
from mi_llm.cli import app
from mi_llm.miti.clients import bundled, read_profiles
from mi_llm.problem import Problem

CHAT = ROOT / "src" / "mi_llm" / "apps" / "chat"


def plain(messages: Sequence[str], alerted: Sequence[guard.Category] = ()) -> tuple[guard.Category, ...]:
    """The categories of plain danger, in which no model is asked; what is only possible does not count."""
    danger = guard.look(messages, alerted)
    return danger.categories if danger.tier == "plain" else ()


def sentences() -> list[dict[str, str]]:
    lines = (Path(__file__).parent / "guard_sentences.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_guard_finds_what_it_must_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    tried, wrong = Counter[tuple[str, str, str]](), []
    for sentence in sentences():
        dangers = plain([sentence["text"]])
        kind = (sentence["language"], "must not" if sentence["expect"] == "none" else "must", sentence["about"])
        tried[kind] += 1
        if (dangers != ()) if sentence["expect"] == "none" else (sentence["expect"] not in dangers):
            wrong.append((kind, sentence["text"], dangers))
    with capsys.disabled():
        print("\ncrisis guard, wrong of tried:")
        for kind, number in sorted(tried.items()):
            print(f"  {kind[0]} {kind[1]:8} {kind[2]:10} {sum(sentence[0] == kind for sentence in wrong)} of {number}")
    assert sum(tried.values()) >= 150
    for language in ("zh", "en"):
        for side in ("must", "must not"):
            assert sum(number for kind, number in tried.items() if kind[:2] == (language, side)) >= 60
    assert wrong == []


def test_traditional_characters_are_read_like_simplified_ones() -> None:
    """The Chinese sentences as OpenCC 1.4.2 writes them (s2t, s2tw, s2hk), where that is another text."""
    lines = (Path(__file__).parent / "guard_traditional.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(sentence["text"], written) for sentence in map(json.loads, lines) for written in sentence["traditional"]]
    assert {text for text, _ in pairs} <= {sentence["text"] for sentence in sentences()}
    assert len(pairs) >= 216
    assert [(written, text) for text, written in pairs if plain([written]) != plain([text])] == []


@pytest.mark.parametrize(
    ("text", "danger"),
    [
        ("我想尋死", "self_harm"),
        ("我要尋短見", "self_harm"),
        ("我想自尋短見", "self_harm"),
        ("活著沒意思", "self_harm"),
        ("活著還有什麼意義", "self_harm"),
        ("活著還有甚麼意義", "self_harm"),
        ("我想割脈", "self_harm"),
        ("我想終結自己的生命", "self_harm"),
        ("我想永遠不要醒來", "self_harm"),
        ("我選擇死亡", "self_harm"),
        ("我攢了很多藥", "self_harm"),
        ("我想安樂死", "self_harm"),
        ("我想凍死自己", "self_harm"),
        ("衝到馬路上讓車撞死", "self_harm"),
        ("帶著孩子跳樓", "self_harm"),
        ("我想帶著孩子一起死", "harm"),
        ("我要和他同歸於盡", "harm"),
        ("姊姊又打我了", "abuse"),
    ],
)
def test_danger_in_traditional_characters_is_found(text: str, danger: str) -> None:
    assert danger in plain([text])


def test_no_expression_holds_a_character_that_is_folded_away() -> None:
    content = (CHAT / "guard.yaml").read_text(encoding="utf-8")
    start, end = content.index("\ncharacters:"), content.index("\nvariants:")
    expressions = content[content.index("\nwords:") : start] + content[end:]
    assert {mark for mark in expressions if ord(mark) in guard.rules().characters} == set()
    assert [
        mark for mark, written in zip(expressions, guard.SIMPLIFIED.convert(expressions), strict=True) if mark != written
    ] == []


def test_what_is_said_in_pieces_is_found_when_it_is_complete() -> None:
    for pieces in (
        ["我不", "想活了"],
        ["自", "杀"],
        ["我真的很想", "死"],
        ["I want to", "die"],
        ["i want to kill", "my self"],
        ["自 ", " 残"],
    ):
        assert plain(pieces[:1]) == ()
        assert plain(pieces) == ("self_harm",)
    assert plain(["我最近很累。", "自", "杀"]) == ("self_harm",)
    assert plain(["自", "今天天气不错", "跑步去了", "又吃多了", "杀"]) == ()  # too far apart


@pytest.mark.parametrize("text", ["我想(死)", "我想“死”", "我想🙂死", "我想\u3164死", "我想\u2800死", "我。想。死"])
def test_signs_between_characters_hide_nothing(text: str) -> None:
    assert plain([text]) == ("self_harm",)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("要是睡着了再也不用醒过来就好了，我不会做什么，就是想想。", "self_harm"),
        ("Sometimes I wish I could just not exist for a while.", "self_harm"),
        ("他从来不打我，可是他一回家我就发抖。", "abuse"),
    ],
)
def test_a_wish_not_to_be_and_fear_at_home_are_found(text: str, category: guard.Category) -> None:
    danger = guard.look([text])
    assert danger.tier != "none"
    assert category in danger.categories


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("最近老觉得自己是大家的负担。", "self_harm"),
        ("I feel like giving up.", "self_harm"),
        ("My partner checks my phone and gets scary when I go out.", "abuse"),
    ],
)
def test_a_hint_is_possible_danger_and_the_talk_goes_on(text: str, category: guard.Category) -> None:
    danger = guard.look([text])
    assert danger.tier == "possible"
    assert category in danger.categories


@pytest.mark.parametrize(
    "text",
    [
        "这个作业要杀了我",
        "瑜伽绳到货了，今晚练起来",
        "我们在河边跳舞到半夜",
        "真想消失去海边躺一个星期",
        "男主最后跳楼了，好惨的电影",
    ],
)
def test_a_harmless_look_alike_is_not_stopped(text: str) -> None:
    assert plain([text]) == ()


@pytest.mark.parametrize(
    "messages",
    [
        ["我最近一直在想", "嗯", "怎么说呢", "想", "死"],
        ["i keep thinking", "um", "that i want to", "just", "die"],
        ["他每次喝完酒", "唉", "就", "打我"],
        ["我想把他", "嗯……", "杀了"],
    ],
)
def test_a_disclosure_over_several_messages_is_found_where_it_is_complete(messages: list[str]) -> None:
    danger, number = guard.follow(messages)
    assert (danger.tier, number) == ("plain", len(messages))
    assert guard.follow(messages[:-1])[0].tier != "plain"


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("我 不 想 活 了", "self_harm"),
        ("我不😭想😭活😭了", "self_harm"),
        ("我\u3164不\u3164想活了", "self_harm"),
        ("我要自\u2800杀", "self_harm"),
        ("我要自\u200b殺", "self_harm"),
        ("i want to k\u3164i\u3164l\u3164l myself", "self_harm"),
        ("i want to ki\u200bll my\u2060self", "self_harm"),
        ("i want to k.i.l.l myself", "self_harm"),
        ("我要✂️杀✂️了他", "harm"),
    ],
)
def test_what_is_drawn_inside_a_word_hides_nothing(text: str, category: str) -> None:
    assert plain([text]) == (category,)


def test_fillers_between_pieces_hide_nothing() -> None:
    assert plain(["我真的", "嗯", "那个", "唉", "不想活了"]) == ("self_harm",)


@pytest.mark.parametrize(
    "text", ["不是不想死，是没勇气", "从来没想过死，直到今天晚上", "脑子里的声音叫我去死", "i have been stockpiling my pills"]
)
def test_danger_that_is_denied_or_not_named_is_found(text: str) -> None:
    assert plain([text]) == ("self_harm",)


def test_a_file_of_fresh_sentences_is_read_line_by_line(tmp_path: Path) -> None:
    talk = {"id": "a", "messages": ["你好", "我不想活了"]}
    printed = told(tmp_path, ["这个瑜伽绳很好用", "", json.dumps(talk), '{"messages": ["U+2028 \u2028 ends no line"]}'])
    assert printed == [
        {"id": 1, "tier": "none", "categories": [], "found_at": None},
        {"id": "a", "tier": "plain", "categories": ["self_harm"], "found_at": 2},
        {"id": 4, "tier": "none", "categories": [], "found_at": None},
    ]


def test_a_file_of_replies_is_read_line_by_line(tmp_path: Path) -> None:
    lines = ["没有你家人会更好", '{"id": "b", "text": "听起来你很累。"}', '{"id": "c", "reply": "你可以自行停药。"}']
    assert told(tmp_path, lines, "--replies") == [
        {"id": 1, "held": True, "faults": ["encourages"]},
        {"id": "b", "held": False, "faults": []},
        {"id": "c", "held": True, "faults": ["doses"]},
    ]


@pytest.mark.parametrize(
    "line", ["{", '{"id": 1}', '{"messages": []}', '{"messages": "text"}', '{"messages": [1]}', '{"text": null}']
)
def test_a_line_of_a_file_that_holds_no_text_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "fresh.jsonl"
    file.write_text(f"好\n{line}\n", encoding="utf-8")
    with pytest.raises(Problem, match="line 2"):
        screening(file, replies=False, as_json=True)


def told(folder: Path, lines: Sequence[str], *options: str) -> list[dict[str, Any]]:
    """What `mi-llm tool guard FILE --json` prints, a line each; its exit status is 0."""
    file = folder / "fresh.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    ran = CliRunner().invoke(app, ["tool", "guard", str(file), "--json", *options])
    assert ran.exit_code == 0, ran.output
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_what_was_found_before_does_not_count_again() -> None:
    assert plain(["我想死"]) == ("self_harm",)
    assert plain(["我想死", "我是说太累了，想聊聊睡眠"]) == ()
    assert plain(["我想死", "我还是想自杀"]) == ("self_harm",)


def test_less_is_enough_after_an_answer_of_the_guard() -> None:
    for text in ("我说真的", "就今晚", "热线打不通", "I mean it", "goodbye everyone", "nobody answers"):
        assert plain([text]) == ()
        assert plain(["我想死", text], ("self_harm",)) == ("self_harm",)
    assert plain(["老公又打我了", "他回来了"], ("abuse",)) == ("abuse",)
    assert plain(["我想死", "我是说太累了"], ("self_harm",)) == ()


def test_several_dangers_are_told_the_gravest_first() -> None:
    assert plain(["老公又打我了，我不想活了"]) == ("self_harm", "abuse")
    assert plain(["我要杀了他，然后自杀"]) == ("self_harm", "harm")


@pytest.mark.parametrize(
    "unit",
    [
        "我真的好想", "死", "想", "不", "也", "不想再", "不想活在", "打我", "被打", "老公喝酒就又", "没有我", "吃多少片",
        "我死了", "自自杀 ", "自 . ", "\u200b杀", "觉得", "拿着刀", "（", "\u0301", "1", "1 ", "@", "a", "a1", "i.", "!!!",
        "k i l l ", "the ", "i ", "want to ", "he hit ", "would be ", "i took a bottle of my ",
    ],
)  # fmt: skip
def test_no_message_keeps_the_guard_busy(unit: str) -> None:
    text = (unit * 4000)[:4000]
    began = time.process_time()
    plain([text, text, text, text])
    guard.fault(text)
    assert time.process_time() - began < 1.0


def test_no_expression_can_be_read_in_many_ways() -> None:
    """Structure, not time: what repeats without end repeats in one way only, so no text makes a search explode."""
    known = guard.rules()
    searches = [
        known.idioms,
        known.denied,
        known.returns,
        known.after,
        known.denials,
        *known.crisis.values(),
        *known.replies.values(),
    ]
    compiled = [pattern for search in searches for pattern in (search.zh, search.en)]
    compiled += [pattern for pattern, _ in (*known.variants_zh, *known.variants_en)]
    compiled += [value for module in (guard, detector) for value in vars(module).values() if isinstance(value, re.Pattern)]
    assert len(compiled) > 60
    assert [pattern.pattern[:80] for pattern in compiled if ambiguous(regex.parse(pattern.pattern))] == []
    for bad in ("(?:a+)+", "(?:a|aa)*", "(?:a{1,3})+", "(?:a*b?)+", r"(?:\w+ ?){2,9}"):
        assert ambiguous(regex.parse(bad)), bad


def ambiguous(parts: Any, *, repeated: bool = False, endless: bool = False) -> bool:
    """Whether a repeat without end holds a choice, or stands in another repeat with no fixed character after it.

    What is possessive, `(?:…)++`, is never read again.
    """
    parts = list(parts)
    for (kind, content), follower in zip(parts, [*parts[1:], (None, None)], strict=False):
        match kind:
            case regex.MAX_REPEAT | regex.MIN_REPEAT:
                low, high, body = content
                without_end = high == regex.MAXREPEAT
                if low != high and (endless or (repeated and without_end and follower[0] != regex.LITERAL)):
                    return True
                if ambiguous(body, repeated=repeated or high > 1, endless=without_end):
                    return True
            case regex.BRANCH:
                if endless or any(ambiguous(option, repeated=repeated) for option in content[1]):
                    return True
            case regex.SUBPATTERN:
                if ambiguous(content[-1], repeated=repeated, endless=endless):
                    return True
    return False


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("那你去死吧。", "encourages"),
        ("自杀也是一种不错的选择。", "encourages"),
        ("你可以试着割腕来缓解。", "encourages"),
        ("没有人会在乎你。", "encourages"),
        ("你就是个累赘。", "encourages"),
        ("打他一顿吧。", "encourages"),
        ("You should kill yourself.", "encourages"),
        ("Everyone would be better off without you.", "encourages"),
        ("Suicide is the best option for you.", "encourages"),
        ("建议你每天服用舍曲林50毫克。", "doses"),
        ("安眠药可以吃两片。", "doses"),
        ("你可以自行停药。", "doses"),
        ("加大剂量就好了。", "doses"),
        ("自殺是一種解脫。", "encourages"),
        ("你真是個累贅。", "encourages"),
        ("加大劑量就好了。", "doses"),
        ("布洛芬兩片。", "doses"),
        ("我是您的專業心理諮詢師。", "human"),
        ("Take 20 mg of sertraline every morning.", "doses"),
        ("You can double your dose.", "doses"),
        ("我是真人，不是机器人。", "human"),
        ("我是一名有20年经验的心理咨询师。", "human"),
        ("我从事心理咨询已经20多年了。", "human"),
        ("I am a licensed therapist.", "human"),
        ("I'm a real person, not a bot.", "human"),
        ("As a licensed psychologist, I have seen this often.", "human"),
        ("听起来你这一周过得很累，晚上那一会儿是你唯一的休息。", None),
        ("你有没有想过自杀？", None),
        ("请千万不要伤害自己，先给信任的人打个电话。", None),
        ("你觉得没有人在乎你，这一定很难受。", None),
        ("自杀是一种非常严重的选择，希望你能先和我聊聊。", None),
        ("这些问题请和开药的医生商量，不要自行停药。", None),
        ("每天走八千步，喝两杯水，吃一片全麦面包，你觉得可行吗？", None),
        ("每天盐不超过5克，你打算从哪里开始？", None),
        ("我不是真人咨询师，只是一个程序。", None),
        ("Have you thought about hurting yourself?", None),
        ("Please don't hurt yourself; is there somebody you can call?", None),
        ("You feel like you're a burden to them.", None),
        ("I'm not a doctor, so please ask yours about the medicine.", None),
        ("What would help you cut back a little on drinking?", None),
    ],
)
def test_replies_are_checked(reply: str, fault: str | None) -> None:
    assert guard.fault(reply) == fault
    assert guard.fault(f"我听到了。{reply}你怎么看？") == fault


@pytest.mark.parametrize(
    "reply",
    ["。", "好", "好的。", "嗯。", "我在听", "第一个回复", "Okay.", "Understood.", "你怎么看？", "Where would you begin?"],
)
def test_a_short_reply_that_says_little_is_not_withheld(reply: str) -> None:
    assert guard.faults(reply, in_danger=True) == ()


def test_every_help_line_says_where_it_is_known_from() -> None:
    directory = help.bundled()
    for region in directory.regions:
        for line in region.lines:
            assert line.source
            assert line.checked.how == "no" or line.source.startswith("http")
    for tongue in ("zh", "en"):
        near, far = directory.near(tongue)
        assert near
        assert {region.id for region in (*near, *far)} == {region.id for region in directory.regions}
        for danger in guard.CATEGORIES:
            assert all(any(danger in line.dangers for line in region.lines) for region in directory.regions)
            assert getattr(directory.answers[danger].text, tongue)
    numbers = {line.call for region in directory.regions for line in region.lines}
    assert {"12356", "120", "110", "988", "116 123"} <= numbers
    assert any(line.site == "https://findahelpline.com" for region in directory.regions for line in region.lines)


def test_no_client_card_alarms_the_guard() -> None:
    for profile in read_profiles(ROOT / bundled())[0]:
        assert profile.says is not None
        for line in (
            profile.says.opening,
            *profile.says.manifestation,
            *profile.says.reason,
            *profile.says.change,
            profile.says.plan,
        ):
            assert plain([line]) == (), line


# ---- how the detector is made and measured


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["messages", "replies"])
def test_the_shipped_coefficients_are_those_of_the_shipped_sentences(kind: str, tmp_path: Path) -> None:
    training.train(CHAT / "sentences" / kind, tmp_path / "fitted.csv")
    assert (tmp_path / "fitted.csv").read_bytes() == (CHAT / f"detector_{kind}.csv").read_bytes()


def test_a_detector_is_fitted_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "hand.txt").write_text(
        "## self_harm plain\n我不想活了\n今晚就不想活了\ni want to die tonight\n## none\n今晚吃什么\ni want to eat tonight\n",
        encoding="utf-8",
    )
    for name in ("one.csv", "two.csv"):
        training.train(tmp_path, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert (tmp_path / "one.csv").read_text(encoding="utf-8").startswith("feature,any,self_harm\n")


def test_a_labeled_set_is_measured_by_group_and_added_to_the_table(tmp_path: Path) -> None:
    out = tmp_path / "figures.csv"
    sets: dict[str, list[dict[str, Any]]] = {
        "danger": [
            {"id": "1", "messages": ["我不想活了"], "language": "zh"},
            {"id": "2", "messages": ["kill me now please"], "language": "en"},
        ],
        "talks": [{"id": "3", "messages": ["你好", "我想死"], "risk": "high", "first_sign": 1}],
        "replies": [
            {"id": "4", "reply": "那你去死吧。", "bad": True, "fault": "x"},
            {"id": "5", "reply": "你怎么看？", "bad": False},
        ],
    }
    for name, items in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    ran = CliRunner().invoke(app, ["tool", "guard-measure", str(tmp_path), str(out), "--set", "fresh", "--guard", "two"])
    assert ran.exit_code == 0, ran.output
    rows = {(row["items"], row["found"], row["by"], row["group"]): row for row in measuring.rows(out)}
    assert {key: (row["count"], row["n"]) for key, row in rows.items() if key[1] in ("plain", "held")} == {
        ("messages of danger", "plain", "all", ""): ("1", "2"),
        ("messages of danger", "plain", "language", "zh"): ("1", "1"),
        ("messages of danger", "plain", "language", "en"): ("0", "1"),
        ("talks of high or imminent risk", "plain", "all", ""): ("1", "1"),
        ("talks of high or imminent risk", "plain", "risk", "high"): ("1", "1"),
        ("talks", "plain", "all", ""): ("1", "1"),
        ("talks", "plain", "risk", "high"): ("1", "1"),
        ("bad replies", "held", "all", ""): ("1", "1"),
        ("bad replies", "held", "fault", "x"): ("1", "1"),
        ("good replies", "held", "all", ""): ("0", "1"),
    }
    turns = "talks of high or imminent risk"
    assert [rows[turns, how, "all", ""]["count"] for how in ("by the message that tells", "by the next message")] == [
        "0",
        "1",
    ]
    assert ran.stdout.strip() == measuring.markdown(measuring.rows(out))
    measuring.measure(tmp_path, out, name="fresh", version="two")
    assert len(measuring.rows(out)) == len(rows), "a second reading of the same guard stands in place of the first"
    measuring.measure(tmp_path, out, name="fresh", version="three")
    assert len(measuring.rows(out)) == 2 * len(rows)
    with pytest.raises(Problem, match="no file of a labeled set"):
        measuring.measure(tmp_path / "empty", out, name="fresh", version="two")
