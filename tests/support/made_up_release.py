"""A whole release in the authors' formats, made of the bundle's own dialogs; and a mirror folder that has it and every corpus.

The texts are the bundle's (`data/authored/`), the structure is the authors': a release is a workbook, an appendix, test dialogs,
positional test rounds, and a training file in either of the two shapes that the reader knows.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import docx
import openpyxl
from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.corpora import release
from mi_llm.corpora.acquire import tree_id
from mi_llm.corpora.fetch import Source
from mi_llm.corpora.files import File, from_folder, write_archive
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog

Shape = Literal["dialog", "round"]
Messages = list[tuple[str, str]]  # (role, text)
INSTRUCTION = "你是一位心理咨询师，请用动机式访谈的方式回应来访者。"
SHEETS = ("微调后对话GLM-4", "原始模型GLM-4", "微调后对话Baichuan2", "原始模型Bacihuan2", "微调llama8b", "原始llama8b")
APPENDIX = {
    "一、动机式访谈评价指标——整体评分": "整体评分的细则。",
    "二、动机式访谈评价指标——行为次数": "行为次数的细则。",
    "三、GPT-4自动评价所用指示": "Rate the dialog below. Give points for each criterion and their totals as JSON.",
    "四、GPT-4自动转写所用指示": "请把下面的对话改写成动机式访谈，只输出 JSON 列表。",
    "五、模型微调使用的超参数": "learning_rate: 1.0e-4\nper_device_train_batch_size: 1",
    "六、以沉迷手机为例": "示例。",
}


def authored(data: Path) -> list[Dialog]:
    """The bundle's MI-style dialogs, in the order of their files' names."""
    folder = data / "authored" / "cpsycound"
    files = (File(path.name, path.read_bytes()) for path in sorted(folder.glob("*.txt")))
    return [dialog for file in files for dialog in READERS["cpsycound"]([file], Repairs())]


def messages_of(dialog: Dialog) -> Messages:
    """A dialog's turns as the authors' messages."""
    return [(turn.role, turn.text) for turn in dialog.turns]


def conversations(dialogs: Sequence[Messages]) -> bytes:
    """A file of whole dialogs."""
    entries = [{"conversations": [{"role": role, "content": text} for role, text in dialog]} for dialog in dialogs]
    return json.dumps(entries, ensure_ascii=False).encode()


def rounds(dialogs: Sequence[Messages]) -> bytes:
    """A file of rounds with their history, positional: message 2i is asked, message 2i + 1 answers, whoever speaks."""
    entries = []
    for dialog in dialogs:
        texts = [text for _, text in dialog]
        pairs = [[texts[index], texts[index + 1]] for index in range(0, len(texts) - 1, 2)]
        entries += [
            {"instruction": INSTRUCTION, "input": asked, "output": reply, "history": pairs[:number]}
            for number, (asked, reply) in enumerate(pairs)
        ]
    return json.dumps(entries, ensure_ascii=False).encode()


def workbook(dialogs: Sequence[Dialog], outlines: int) -> bytes:
    """The simulated dialogs, a sheet for each model and arm and a column for each dialog, and the clients' outlines."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = release.OUTLINES
    sheet.append([None, *release.OUTLINE_COLUMNS])
    for number in range(1, outlines + 1):
        sheet.append([None, "缺乏运动" if number % 2 else None, f"每天久坐{number}小时", "觉得没有时间", "改变"])
    for title in SHEETS:
        sheet = book.create_sheet(title)
        sheet.append([None, *range(1, len(dialogs) + 1)])
        for index in range(min(len(dialog.turns) for dialog in dialogs)):
            sheet.append([("来访者", "咨询师")[index % 2], *(dialog.turns[index].text for dialog in dialogs)])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def appendix() -> bytes:
    """The appendix with its six sections."""
    document = docx.Document()
    for heading, text in APPENDIX.items():
        document.add_paragraph(heading)
        for line in text.splitlines():
            document.add_paragraph(line)
    content = io.BytesIO()
    document.save(content)
    return content.getvalue()


def files(data: Path, shape: Shape = "dialog", *, train: int = 12, test: int = 4) -> dict[str, bytes]:
    """The release's files by name. In the last two test dialogs roles are shifted: a role speaks twice, the counselor opens."""
    dialogs = authored(data)
    tested = [messages_of(dialog) for dialog in dialogs[:test]]
    tested[-1] = [("counselor", "你好，今天想聊些什么？"), *tested[-1]]
    tested[-2] = [tested[-2][0], ("client", "嗯，就是这样。"), *tested[-2][1:]]
    training = [messages_of(dialog) for dialog in dialogs[test : test + train]]
    return {
        release.DIALOGS: conversations(tested),
        release.ROUNDS: rounds(tested),
        release.TRAINING: conversations(training) if shape == "dialog" else rounds(training),
        release.SIMULATED: workbook(dialogs[-2:], outlines=4),
        release.APPENDIX: appendix(),
    }


def make_mirror(folder: Path, data: Path, sources: Path, released: dict[str, bytes]) -> None:
    """Write a mirror folder with every corpus that `sources` (a copy of sources.yaml) names, and pin it there.

    The corpora are the bundle's samples; the release is what is given. Its training file, which is optional, lies there loose,
    like what has no archive.
    """
    folder.mkdir()
    content = YAML(typ="safe").load(sources)
    for corpus, entry in content.items():
        source = Source.model_validate(entry)
        known = released if corpus == "release" else {file.name: file.content for file in from_folder(data / "corpora" / corpus)}
        for name in source.files:
            (folder / name).write_bytes(known[name])
        if not source.commit:
            continue
        for commit in [source.commit, *([source.earlier.commit] if source.earlier else [])]:
            pack(folder / source.archive(commit), {name: part for name, part in known.items() if name not in source.optional})
        for name in source.optional:
            (folder / Path(name).name).write_bytes(known[name])
        for pins in ("paths", "optional"):
            for path in entry.get(pins, {}):
                entry[pins][path] = git_id(known, path)
    YAML(typ="safe").dump(content, sources)


def pack(archive: Path, files: dict[str, bytes]) -> None:
    """Write a repository's archive, as a mirror folder holds it."""
    write_archive(archive, [File(f"top/{name}", content) for name, content in files.items()])


def git_id(known: dict[str, bytes], path: str) -> str:
    """The git id of a file, or of a folder of files."""
    below = {name: storage.blob_id(content) for name, content in known.items() if name.startswith(f"{path}/")}
    if not below:
        return storage.blob_id(known[path])
    return tree_id({name.removeprefix(f"{path}/"): blob for name, blob in below.items()})
