"""`mi-llm new FOLDER`: a study of your own, whose outputs all stay on this machine.

It has the models and the scale of the miniature or of the paper's study, with a comment on what a newcomer changes, the same
pipeline, prompts, clients and an instruction of its own, and places for people's decisions, dialogs and codes, which git ignores.
It has no dialogs: `mi-llm import` names yours in it.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mi_llm import registry, storage
from mi_llm.doctor import doctor
from mi_llm.language import language
from mi_llm.language.language import DEFAULT
from mi_llm.problem import Problem
from mi_llm.study import KEPT, PINS, Prompts, load, parse

LIKE = {"mini": Path("mini"), "paper": Path()}
RESERVED = ("auto", "audit", "paper")  # what ./reproduce.sh means by these
INSTRUCTION = "counselor"  # the prompt that section `finetune` names
CLIENTS, IN_DANGER, CUES, CLIENT_CUES = "clients.yaml", "personas.yaml", "cues.yaml", "client_cues.yaml"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
HEAD = """# A study of your own: `mi-llm import` names your dialogs here, `./reproduce.sh {name}` runs it.
# A comment stands on every line that a newcomer changes; src/mi_llm/study.py says what each section means.
"""
COMMENTS = {  # what a newcomer changes, by its key
    "title": "what the pages are called",
    "language": "what is spoken: a folder of src/mi_llm/language/",
    "reproduction": "true: the paper is audited, and its numbers stand beside yours",
    "seed": "another number draws other samples",
    "corpora": "yours come here: mi-llm import FOLDER --name NAME --study {name}; or one that has a reader, as annomi: {{}}",
    "models": "which models are tuned and answer; one is enough to begin with (mi-llm pin, or docs/adding-a-model.md)",
    "expect.minutes": "printed before a run",
    "llm.mode": "replay: recorded answers only; record: ask the model below (docs/recording.md)",
    "llm.model": "the language model that rates, rewrites, and translates",
    "llm.base_url": "its address; the key is in OPENAI_API_KEY",
    "llm.budget": "recording stops before it would exceed one of these",
    "prompts": "your own files: change them, or name the bundle's, in src/mi_llm/language/",
    "rate.corpora": "which corpora the language model rates, if any",
    "transcribe.source": "recorded: rewritten by the model above; corpus: MI dialogs as they are (import … --train)",
    "transcribe.sample": "how many dialogs of which corpora",
    "screen.policy": "automatic, or person: the run waits until every dialog is decided",
    "screen.rounds": "dialogs with fewer or more rounds get a remark",
    "split.test_dialogs": "how many dialogs are the test",
    "finetune.instruction": "your own file: say in it who the counselor is",
    "finetune.learning_rate": "smaller for larger models",
    "finetune.epochs": "how often each dialog is seen",
    "finetune.cutoff": "tokens of a record; longer ones are cut",
    "respond.max_new_tokens": "the longest reply",
    "seeds.models": "models that are trained again with other seeds (docs/statistics.md)",
    "benchmark.models": "models that answer multiple-choice questions (docs/benchmark.md)",
    "simulate.client": "who talks with the models: scripted, llm, or person",
    "simulate.profiles": "your own file: who these clients are",
    "simulate.dialogs": "how many clients talk with each arm",
    "safety.personas": "your own file: clients in danger",
    "blind.raters": "how many people code",
    "blind.overlap": "share of transcripts that all raters code",
    "code.cues": "your own files: the words of the lexical coder",
    "code.coder": "lexical: by words alone; llm; or human: people, at the desk (docs/human-evaluation.md)",
    "report.notice": "stands at the top of the pages",
    "report.title_zh": "the title in Chinese",
    "report.notice_zh": "the notice in Chinese",
}
PUBLISH = """# Which of the study's outputs may go to a remote that you share: `here` means that they stay on this machine
# (docs/remotes.md). Your own dialogs are private while all of them say `here`; anything else is refused, unless the
# corpus says private: false.
publish:
  corpora: here  # your dialogs as acquired and read
  texts: here    # what quotes them
  models: here   # base models
  results: here  # adapters, which can repeat what they were trained on; replies; scores
"""
IGNORED = """# What people decide, say, and code stays on this machine.
/decisions/
/people/
"""
NOTICE = {
    "notice": "This study uses the bundle's tiny models: its numbers say nothing about larger ones.",
    "notice_zh": "本研究使用本研究包的微型模型：这里的数字不能说明更大的模型如何。",
}
TABLES = {
    "decisions/decisions.csv": "dialog,decision,reason,who,when\n",
    "people/codes/codes.csv": "rater,packet,volley,code\n",
    "people/codes/globals.csv": "rater,packet,code,rating\n",
}


def new(folder: str, like: str, title: str, code: str = DEFAULT) -> int:
    """Write the study and check it; returns 0. Raises Problem for a name that clashes, before anything is written."""
    for option, word, known in (("--like", like, tuple(LIKE)), ("--language", code, registry.languages())):
        if word not in known:
            raise Problem(f"{option} {word}", "unknown", " or ".join(known), "correct it")
    check_name(folder)
    source = Path(f"{like}-{code}") if Path(f"{like}-{code}").is_dir() else LIKE[like]
    content = storage.editable_yaml(storage.read_text(source / "params.yaml"))
    before = load(source / "params.yaml")
    own = f"{folder}/prompts"
    content.update({"name": folder, "title": title or folder, "root": "..", "params": f"{folder}/params.yaml"})
    content.update({"out": f"runs/{folder}", "language": code, "reproduction": False, "corpora": {}})
    content["acquire"]["upstream"] = []
    content["prompts"].update({name: f"{own}/{name}.jinja" for name in Prompts.model_fields})
    content["rate"]["corpora"] = []
    content["transcribe"].update({"source": "corpus", "sample": {}})
    content["screen"]["decisions"] = f"{folder}/decisions"
    content["split"]["test"] = "transcribed"
    content["finetune"]["instruction"] = f"{own}/{INSTRUCTION}.jinja"
    if before.finetune.records == "release":
        content["finetune"]["records"] = "dialog"
    content["simulate"].update({"profiles": f"{own}/{CLIENTS}", "folder": f"{folder}/people/dialogs"})
    content["safety"]["personas"] = f"{own}/{IN_DANGER}"
    content["code"]["human"] = f"{folder}/people/codes"
    content["code"]["cues"].update({"counselor": f"{own}/{CUES}", "client": f"{own}/{CLIENT_CUES}"})
    content["miti"]["globals"] = f"{folder}/people/globals"
    content["report"].update({"title_zh": title or folder, "notice": "", "notice_zh": "", **(NOTICE if before.tiny else {})})
    text = commented(content, folder)
    parse(text, Path(folder) / "params.yaml")
    try:
        write(Path(folder), source, own_files(code), text)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    doctor([load(Path(folder) / "params.yaml")])
    print(
        f"\nwritten: {folder}/ (params.yaml says what to change); next:\n"
        f"  mi-llm import YOUR_FOLDER --name NAME --study {folder} --train     your own MI dialogs; without --train, others\n"
        f"  ./reproduce.sh {folder}"
    )
    return 0


def own_files(code: str) -> dict[str, str]:
    """What the bundle has in a language, for the study to change: prompts, clients, the lexical coder's words; by file name."""
    speech = language.load(code)
    places = {f"{name}.jinja": f"prompts/{name}.jinja" for name in (*Prompts.model_fields, INSTRUCTION)}
    places |= {name: name for name in (CLIENTS, IN_DANGER, CUES, CLIENT_CUES)}
    return {name: storage.read_text(speech.file(path)) for name, path in places.items()}


def check_name(name: str) -> None:
    """Raise Problem for a name that is no folder's in this repository, or that something here has already."""
    if not NAME.fullmatch(name) or name in (*RESERVED, *KEPT):
        expected = "a name of letters, digits, - and _ for a folder here, other than " + ", ".join(RESERVED)
        raise Problem(name, "cannot be a study's folder", expected, "choose another name")
    for taken, remedy in (
        (Path(name), "choose another name, or remove it"),
        (Path("runs") / name, f"choose another name, or move runs/{name} away: it holds outputs of another study"),
    ):
        if taken.exists():
            raise Problem(str(taken), "exists", "a new study's folder", remedy)
    for file in sorted(Path().glob("*/params.yaml")):
        known = storage.read_yaml(file)
        if known.get("name") == name or known.get("out") == f"runs/{name}":
            raise Problem(str(file), f"a study that is called {name}, or writes runs/{name}", "a new name", "choose another name")


def commented(content: Any, name: str) -> str:
    """The parameters as text: the comments of the study it began with give way to those of `COMMENTS`."""
    lines = [re.sub(r"\s+# .*$", "", line) for line in storage.dump_yaml(content).splitlines() if not line.startswith("#")]
    return HEAD.format(name=name) + "".join(f"{line}\n" for line in with_comments(lines, name))


def with_comments(lines: Sequence[str], name: str) -> list[str]:
    """The lines of a parameters file with the comments of their keys; raises AssertionError if one has no line."""
    path: list[str] = []
    commented_keys = set[str]()
    made = []
    for line in lines:
        if match := re.match(r"( *)([\w-]+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
        key = ".".join(path) if match else ""
        if key in COMMENTS:
            commented_keys.add(key)
        made.append(f"{line:<30} # {COMMENTS[key].format(name=name)}" if key in COMMENTS else line)
    assert commented_keys == set(COMMENTS), set(COMMENTS) - commented_keys
    return made


def write(folder: Path, source: Path, own: dict[str, str], params: str) -> None:
    """Write the study's files, those of `own` into its folder of prompts; the parameters last."""
    for name, head in TABLES.items():
        storage.write_text(folder / name, head)
    for name in ("dialogs", "codes", "globals"):
        readme = f"people/{name}/README.md"
        storage.write_text(folder / readme, storage.read_text(source / readme))
    for name, text in own.items():
        storage.write_text(folder / "prompts" / name, text)
    storage.write_text(folder / "dvc.yaml", storage.read_text(source / "dvc.yaml"))
    storage.write_text(folder / "publish.yaml", PUBLISH)
    storage.write_text(folder / ".gitignore", IGNORED)
    if (source / PINS).exists():
        storage.write_text(folder / PINS, storage.read_text(source / PINS))
    storage.write_text(folder / "params.yaml", params)
