"""What a newcomer brings: short talks of their own, in the formats that people have, and a repository to make a study in."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import openpyxl
from repository import ROOT

ONE_MODEL = {  # edits of a new study's parameters
    "  tiny-baichuan2: {chat_format: baichuan2, license: cc0-1.0}\n": "",
    "  tiny-llama3: {chat_format: llama3, license: cc0-1.0}\n": "",
}
Talk = tuple[tuple[str, str], ...]  # what the client says, and what the counselor answers

TALKS: tuple[Talk, ...] = (
    (
        ("我抽了二十年烟，夜里咳得睡不好。", "烟陪了您二十年，现在咳嗽让您犹豫。您最担心什么？"),
        ("怕孩子学我的样子。", "您想给孩子一个不一样的榜样。"),
    ),
    (
        ("医生要我每天走一万步，膝盖疼得厉害。", "走路对您来说并不轻松。哪种活动膝盖还受得了？"),
        ("游泳倒是可以，就是泳池太远。", "您已经想到了游泳，也看到了路上的困难。"),
    ),
    (
        ("手机一拿起来就放不下，作业总写到半夜。", "放下手机比您想的难。什么时候您放下过？"),
        ("考试前一周我把它交给了室友。", "那一周您自己想出了办法。"),
    ),
    (
        ("奶茶店开在公司楼下，下午三点准去。", "下午那一杯像是对自己的犒劳。"),
        ("血糖报告出来以后开始害怕了。", "报告让您认真起来。您想先改哪一点？"),
    ),
    (
        ("凌晨还在想项目上的事。", "脑子停不下来，身体却累了。"),
        ("上周写了张清单，倒是睡着了。", "清单让您把事情放下了一会儿。"),
    ),
    (
        ("网购的快递堆在门口，都不敢拆。", "东西到了，心里反而更沉。"),
        ("其实想攒钱带妈妈去看海。", "带妈妈看海对您很重要。"),
    ),
)


def lines(talk: Talk, form: str = "{}：{}\n") -> str:
    """A talk as labeled text."""
    return "".join(form.format("来访者", asked) + form.format("咨询师", answered) for asked, answered in talk)


def rows(talks: tuple[Talk, ...]) -> Iterator[tuple[str, str, str]]:
    """Talks as rows of a table."""
    for number, talk in enumerate(talks, 1):
        for asked, answered in talk:
            yield from ((f"t{number}", "来访者", asked), (f"t{number}", "咨询师", answered))


def text(folder: Path, talks: tuple[Talk, ...]) -> None:
    """One file for each: plain, GB18030 with Windows' line ends, with times and a header, with a byte order mark."""
    for number, talk in enumerate(talks):
        plain = lines(talk)
        written = {
            0: plain.encode(),
            1: plain.replace("\n", "\r\n").encode("gb18030"),
            2: ("日期：2024-05-01\n\n" + lines(talk, "[00:01] {}: {}\n")).encode(),
            3: plain.encode("utf-8-sig"),
        }[number % 4]
        (folder / f"s{number}.txt").write_bytes(written)


def csv(folder: Path, talks: tuple[Talk, ...]) -> None:
    table = "\r\n".join(",".join(row) for row in (("对话编号", "说话人", "内容"), *rows(talks)))
    (folder / "talks.csv").write_text(table, encoding="utf-8-sig")


def excel(folder: Path, talks: tuple[Talk, ...]) -> None:
    book, content = openpyxl.Workbook(), io.BytesIO()
    for row in (("dialog_id", "speaker", "text"), *rows(talks)):
        book.active.append(row)
    book.save(content)
    (folder / "talks.xlsx").write_bytes(content.getvalue())


def turns(talk: Talk, who: str, what: str, names: tuple[str, str]) -> list[dict[str, str]]:
    """A talk as a list of turns."""
    return [{who: name, what: words} for pair in talk for name, words in zip(names, pair, strict=True)]


def openai(folder: Path, talks: tuple[Talk, ...]) -> None:
    records = [{"messages": turns(talk, "role", "content", ("user", "assistant"))} for talk in talks]
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "train.jsonl").write_text(content, encoding="utf-8")


def sharegpt(folder: Path, talks: tuple[Talk, ...]) -> None:
    records = [{"conversations": turns(talk, "from", "value", ("human", "gpt"))} for talk in talks]
    (folder / "data.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


FORMATS: dict[str, Callable[[Path, tuple[Talk, ...]], None]] = {
    "text": text, "csv": csv, "excel": excel, "openai": openai, "sharegpt": sharegpt,
}  # fmt: skip


def bring(folder: Path) -> dict[str, Path]:
    """Folders of the newcomer's talks, one for each format, by its name; together they have each talk once."""
    places = {}
    for number, (name, write) in enumerate(FORMATS.items()):
        places[name] = folder / name
        places[name].mkdir(parents=True)
        write(places[name], TALKS[:2] if number == 0 else TALKS[number + 1 : number + 2])
    return places


def repository(folder: Path) -> Path:
    """A folder with what a new study is made from, and what its stages need."""
    for name in ("mini", "mini-en", "people"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("params.yaml", "publish.yaml", "pins.yaml", "licenses.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("data", "src", "docs", "CITATION.cff"):
        (folder / name).symlink_to(ROOT / name)
    return folder
