"""The pages people read: every command in them is run, or checked as far as a machine without its needs allows.

A fence of shell commands says in its info string how it is proven. `sh` alone: run here, page by page, in a fresh clone;
`after=mini`: run here in a clone with the miniature's outputs; `test=FILE::NAME`: that test runs it; `needs=…`: nothing here can
run it, so its syntax, programs and options are checked. `python file=…` and `diff file=…` are what the page has one write;
Python and texts with `test=…` belong to that test.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from dvc.cli.parser import get_main_parser
from edits import edited
from markdown_it import MarkdownIt
from markdown_it.token import Token
from repository import PAGES, PROGRAMS, ROOT
from ruamel.yaml import YAML
from torch.distributed.run import get_args_parser

from mi_llm.cli import app
from mi_llm.study import Section, Study, load

OURS = ("mi-llm", "make", "dvc", "./reproduce.sh", "docker")
NEEDS = {"gpu", "slurm", "docker", "network", "key"}
PLAIN = {  # programs whose own options nobody here knows better than bash does
    ".", "accelerate", "apptainer", "cat", "cd", "cp", "echo", "export", "git", "head", "hf", "mkdir", "openssl", "printf",
    "python", "scontrol", "sed", "set", "./setup.sh", "unzip",
}  # fmt: skip
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "output"}
ADDED_MODEL = ROOT / "docs/adding-a-model.md"
WRITTEN = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PIPELINE = {name: stage.get("do", stage) for name, stage in WRITTEN.items()}


@dataclass(frozen=True)
class Block:
    """A fence of a page: language, the marks of its info string, and its text."""

    page: Path
    line: int
    language: str
    marks: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    listed = []
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            language, *marks = token.info.split() or [""]
            assert token.map is not None
            listed.append(Block(page, token.map[0] + 1, language, dict(mark.split("=", 1) for mark in marks), token.content))
    return listed


def inline(page: Path, kind: str) -> Iterator[Token]:
    """The inline tokens of a kind: code, links, images."""
    for token in tokens(page):
        yield from (child for child in token.children or [] if child.type == kind)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_how_it_is_proven(block: Block) -> None:
    allowed = {
        "sh": {"test", "needs", "after", "file"},
        "yaml": {"into"},
        "python": {"file", "test"},
        "diff": {"file"},
        "text": {"file", "test"},
    }
    assert block.language in allowed, f"a block of {block.language or 'no language'}: sh, yaml, python, diff or text"
    assert set(block.marks) <= allowed[block.language]
    assert len(set(block.marks) & {"test", "needs", "after"}) <= 1
    assert block.marks.get("needs", "gpu") in NEEDS
    assert block.marks.get("after", "mini") == "mini"
    if "test" in block.marks:
        name, _, function = block.marks["test"].partition("::")
        assert (ROOT / name).is_file()
        assert not function or f"def {function}(" in (ROOT / name).read_text(encoding="utf-8")


# ---- commands that run here


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone of what is committed, with the bundle's data."""
    folder = tmp_path_factory.mktemp("docs") / "bundle"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to(sys.prefix)
    bash("dvc pull --quiet data.dvc pretrain/dvc.yaml", folder)
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run shell commands as a reader would, in a clone whose own code is what runs."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    places = {"PATH": path, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "MI_LLM_MIRROR"} | places
    return subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def bash(script: str, folder: Path) -> str:
    """Run shell commands that must succeed; returns what they printed."""
    done = run(script, folder)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return done.stdout


def do(block: Block, folder: Path) -> None:
    """Do what a block says: run it, write its file, or change the lines that it changes."""
    if block.language == "sh":
        bash(block.text, folder)
        return
    path = folder / block.marks["file"]
    if block.language == "python":
        path.write_text(block.text, encoding="utf-8")
        return
    old, new = ("\n".join(line[1:] for line in block.text.splitlines() if line.startswith(sign)) for sign in "-+")
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{block}: {block.marks['file']} has {text.count(old)} times\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def runs_here(block: Block) -> bool:
    return not block.marks if block.language == "sh" else "file" in block.marks and "test" not in block.marks


LONG = {  # they run studies, as tests/language and tests/test_newcomer.py do, or half a minute of commands
    ROOT / "docs/adding-a-language.md",
    ROOT / "docs/adding-a-corpus.md",
    ROOT / "docs/ten-minutes.md",
}


def marked(pages: Iterable[Path]) -> list[Any]:
    """Pages as parameters of a test, the long ones slow."""
    return [pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in pages]


RUN_HERE = marked(page for page in PAGES if page != ADDED_MODEL and any(map(runs_here, blocks(page))))
AFTER = marked(sorted({block.page for block in SHELL if "after" in block.marks}))


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_the_commands_of_a_page_run_in_its_order(page: Path, clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(clone, folder, symlinks=True)
    for block in filter(runs_here, blocks(page)):
        do(block, folder)


@pytest.mark.parametrize("page", AFTER, ids=name_of)
def test_commands_for_a_finished_study_run(page: Path, miniature: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(miniature, folder, symlinks=True)
    (folder / ".venv").symlink_to(sys.prefix)
    for block in blocks(page):
        if "after" in block.marks:
            do(block, folder)


def test_the_jobs_for_a_cluster_have_no_more_processes_than_a_step_has_records() -> None:
    options = load(ROOT / "params.yaml").finetune
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    (slurm,) = re.findall(r"^#SBATCH --nodes=(\d+)$", text, re.M)
    processes = [
        int(nodes or slurm) * int(each) for nodes, each in re.findall(r"--nnodes (?:(\d+)|\S+) --nproc_per_node (\d+)", text)
    ]
    assert len(processes) == 2
    assert max(processes) <= options.batch * options.accumulation


@pytest.mark.slow
def test_two_nodes_tune_an_added_model(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(clone, folder, symlinks=True)
    for block in filter(runs_here, blocks(ADDED_MODEL)):
        do(block, folder)
    params = folder / "mine/params.yaml"
    others = "  smilechat: {}\n  psy_insight: {}\n  efaqa: {}\n"
    rated = "corpora: [cpsycound, efaqa, psy_insight, psydtcorpus, smilechat]"
    fewer = {"max_samples: 2000": "max_samples: 8", others: "", rated: "corpora: [cpsycound, psydtcorpus]"}
    params.write_text(edited(params.read_text(encoding="utf-8"), fewer), encoding="utf-8")
    bash("dvc repro --quiet mine/dvc.yaml:base mine/dvc.yaml:split", folder)
    scripts = [block.text.strip() for block in blocks(ROOT / "docs/cluster.md") if "two_nodes" in block.marks.get("test", "")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{free.getsockname()[1]}"
    for theirs, ours in {"glm-4-9b": "my-llama", "HEAD:29500": head, "_node 4": "_node 1"}.items():
        assert any(theirs in text for text in scripts), theirs
        scripts = [text.replace(theirs, ours) for text in scripts]
    node, commit = (re.sub(r" (params|dvc)\.yaml", r" mine/\1.yaml", text) for text in scripts)
    bash(f"{node} & {node}; wait $!", folder)
    assert "finetune@my-llama" in bash("dvc status mine/dvc.yaml:finetune", folder)
    bash(commit, folder)
    assert "finetune@my-llama" not in bash("dvc status mine/dvc.yaml:finetune", folder)


# ---- commands that run elsewhere: programs, options, names


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a script without here-documents, as words, without assignments before them."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\(([^()]*)\)", r"; \1 ;", line), posix=True, punctuation_chars=";&|><")
        lexer.whitespace_split = True
        lexer.commenters = "" if re.search(r"\S#", line) else "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("for", "do", "done")):
                    words = words[1:]
                if words:
                    yield words
                words = []
            elif set(word) <= set("><&"):
                words.append(">")
            else:
                words.append(word)


def check(words: list[str], *, whole: bool) -> None:
    """Refuse a command whose program, verb, option, target or service does not exist; if `whole`, also one that lacks a word."""
    program, rest = words[0], words[1 : words.index(">") if ">" in words else None]
    if program == "mi-llm":
        check_verb(rest, whole=whole)
    elif program == "make":
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in rest:
            name, assigned, _ = word.partition("=")
            assert re.search(rf"^{name} \?=" if assigned else rf"^{name}:", text, re.M), f"make knows no {name}"
    elif program == "./reproduce.sh":
        studies = {"mine", "readers", *(path.parent.name for path in ROOT.glob("*/dvc.yaml"))}
        unknown = [word for word in rest if word not in {*usage(), *studies, "--help"} and "/" not in word]
        assert unknown == [], "./reproduce.sh --help does not know them"
    elif program == "dvc" and len(rest) == 1 and not whole:
        with pytest.raises(SystemExit, match="0"):
            get_main_parser().parse_args([*rest, "--help"])
    elif program == "dvc":
        get_main_parser().parse_args(rest)
    elif program in ("torchrun", "srun"):
        asked = rest[1:] if program == "srun" else rest
        parsed = get_args_parser().parse_args(asked)
        assert (parsed.module, parsed.training_script) == (True, "mi_llm")
        check_verb(parsed.training_script_args, whole=whole)
    elif program == "docker":
        check_docker(rest, whole=whole)
    elif program == "vllm":
        used = (ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8")
        assert [word for word in rest if word.startswith("--") and word.split("=")[0] not in used] == []
    elif program == "sbatch":
        assert rest[0] in {block.marks.get("file") for block in SHELL}
    else:
        assert program in PLAIN, f"{program} is not a program that a page may use"


@cache
def usage() -> list[str]:
    shown = subprocess.run([ROOT / "reproduce.sh", "--help"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"[\w-]+", shown)


def check_verb(rest: list[str], *, whole: bool) -> None:
    """Check words behind `mi-llm` against its own command line."""
    command: Any = typer.main.get_command(app)
    if rest == ["--help"]:
        return
    while verb := next((word for word in rest if word in getattr(command, "commands", {})), None):
        command, rest = command.commands[verb], rest[rest.index(verb) + 1 :]
    assert command.name is not None, f"mi-llm has no verb {rest}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert [word for word in rest if word.startswith("--") and word.split("=")[0] not in known] == [], f"mi-llm {command.name}"
    if whole:
        command.make_context(command.name, list(rest))


@cache
def services() -> set[str]:
    return set(YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"])


def check_docker(rest: list[str], *, whole: bool) -> None:
    """Check `docker compose …`: files, services, and what runs inside; and `docker build`'s target."""
    if rest[0] == "build":
        assert f" AS {rest[rest.index('--target') + 1]}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
        return
    assert rest[0] == "compose"
    for index, word in enumerate(rest):
        if word in ("-f", "--file"):
            assert (ROOT / rest[index + 1]).is_file()
    verb = next(word for word in rest if word in ("up", "run", "exec", "logs", "down"))
    behind = rest[rest.index(verb) + 1 :]
    named = next((index for index, word in enumerate(behind) if word in services()), None)
    if named is None:
        assert all(word.startswith("-") for word in behind), f"no service in {behind}"
    elif verb in ("run", "exec") and behind[named + 1 :]:
        inside = [word for word in behind[named + 1 :] if word != "--"]
        if verb == "exec" or inside[0] in ("torchrun", "mi-llm"):
            check(inside, whole=whole)
        else:
            check_verb(inside, whole=whole)


@pytest.mark.parametrize("block", [block for block in SHELL if {"test", "needs"} & set(block.marks)], ids=str)
def test_commands_that_run_elsewhere_exist(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    if block.text.startswith("#!"):
        options = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", block.text, re.M)
        assert len(options) == block.text.count("#SBATCH")
        assert {name for name, _ in options} <= SBATCH
        assert f"--nproc_per_node {dict(options)['gpus-per-node']} " in block.text
    for words in commands(block.text):
        check(words, whole=True)


def spoken(page: Path) -> list[list[str]]:
    """The commands in running text: code that begins with one of our programs."""
    snippets = [token.content.split() for token in inline(page, "code_inline")]
    return [words for words in snippets if words and words[0] in OURS and re.fullmatch(r"[\w./=-]*", "".join(words[1:2]))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    for words in spoken(page):
        if len(words) > 1 and words[-1] != "…":
            check(words, whole=False)


def test_every_verb_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    texts = [" ".join(words) for page in PAGES for words in spoken(page)] + [block.text for block in SHELL]
    for verb, entry in command.commands.items():
        for name in [f"{verb} {below}" for below in getattr(entry, "commands", {})] or [verb]:
            stage = name in PIPELINE and f"`{name}`" in (ROOT / "docs/ten-minutes.md").read_text(encoding="utf-8")
            assert stage or any(re.search(rf"\b(mi-llm|mi_llm) {name}\b", text) for text in texts), f"mi-llm {name} is in no page"


# ---- what the pages point to


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    parsed = tokens(page)
    titles = [parsed[index + 1] for index, token in enumerate(parsed) if token.type == "heading_open"]
    texts = ["".join(child.content for child in title.children or []) for title in titles]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wanted = [(token, "href") for token in inline(page, "link_open")] + [(token, "src") for token in inline(page, "image")]
    for token, name in wanted:
        target, _, anchor = str(token.attrs[name]).partition("#")
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=name_of)
def test_paths_in_the_text_exist(page: Path) -> None:
    made = ("/", "coded/", "desk/", "mine/", "dist/", ".venv/", ".dvc/", ".speed/", "127.")  # by a run, a page or a person
    for code in (token.content.rstrip("/") for token in inline(page, "code_inline")):
        if not re.fullmatch(r"[\w.*\-/@]+", code) or "/" not in code or code.startswith(made):
            continue
        first, *rest = code.split("/")
        if first == "runs":
            assert rest[0] in ("mini", "paper", "mine", "readers"), code
            assert len(rest) < 2 or rest[1] in (*PIPELINE, "certificate"), code
        elif first not in PIPELINE or (ROOT / "src/mi_llm" / first).is_dir():
            places = (ROOT, ROOT / "src/mi_llm", ROOT / "docs")
            assert any(list(folder.glob(code)) for folder in places), f"{code} does not exist"


def test_the_messages_that_the_questions_quote_are_ours() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("src/**/*.py"), ROOT / "setup.sh"])
    theirs = ["Can't remove the following unsaved files", "Address already in use", "Permission denied"]  # DVC's, the system's
    bold = [token.content.split(".**")[0] for token in tokens(ROOT / "docs/faq.md") if token.content.startswith("**`")]
    quoted = [message for title in bold for message in re.findall("`([^`]+)`", title)]
    pieces = [piece.strip() for message in quoted for piece in re.split(r"…[):;]*|: ", message) if " " in piece.strip()]
    assert len(pieces) > 10
    assert [piece for piece in pieces if piece not in code and piece not in theirs] == []


def test_settings_in_the_text_are_taken() -> None:
    settings = [block for block in BLOCKS if block.language == "yaml"]
    for block in settings:
        content = YAML(typ="safe").load(block.text)
        if "into" in block.marks:
            study = load(ROOT / block.marks["into"]).model_dump(mode="json")
            for section, values in content.items():
                assert values.keys() <= study[section].keys()
                study[section] |= values
            Study.model_validate(study)
    assert any("into" in block.marks for block in settings)


def test_the_chinese_front_page_has_the_commands_and_links_of_the_english_one() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"

    def facts(page: Path) -> dict[str, list[str]]:
        return {
            "blocks": [str(list(commands(block.text))) if block.language == "sh" else block.text for block in blocks(page)],
            "code": sorted(token.content for token in inline(page, "code_inline")),
            "links": sorted(str(token.attrs["href"]) for token in [*inline(page, "link_open")][1:]),
            "headings": [token.tag for token in tokens(page) if token.type == "heading_open"],
        }

    assert facts(english) == facts(chinese)
    assert [next(inline(page, "link_open")).attrs["href"] for page in (english, chinese)] == [chinese.name, english.name]


def test_the_ten_minutes_name_every_stage_and_every_section() -> None:
    page = ROOT / "docs/ten-minutes.md"
    named = {token.content for token in inline(page, "code_inline")}
    assert set(PIPELINE) - named == set()
    kinds = {name: field.annotation for name, field in Study.model_fields.items()}
    sections = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
    assert sections - named == set()


def test_the_picture_shows_the_pipeline() -> None:
    pipeline = {stage: entry for stage, entry in PIPELINE.items() if stage != "digests"}  # of the code, and read by all
    reads = {
        (dependency.removeprefix("${out}/").split("/")[0], stage)
        for stage, entry in pipeline.items()
        for dependency in entry.get("deps", [])
        if dependency.startswith("${out}/")
    }

    def behind(stage: str, without: tuple[str, str]) -> set[str]:
        after = {second for first, second in reads if first == stage and (first, second) != without}
        return after.union(*(behind(next_stage, without) for next_stage in after))

    picture = ElementTree.parse(ROOT / "docs/pipeline.svg").getroot()
    shown = {element.get("data-stage"): element for element in picture.iter() if element.get("data-stage")}
    assert set(shown) == set(pipeline)
    assert all(name in "".join(element.itertext()) for name, element in shown.items() if name)
    stacked = {name for name, element in shown.items() if element.get("data-matrix")}
    assert stacked == {name for name, stage in pipeline.items() if {"matrix", "foreach"} & set(WRITTEN[name])}
    arrows = {(element.get("data-from"), element.get("data-to")) for element in picture.iter() if element.get("data-from")}
    assert arrows == {(first, second) for first, second in reads if second not in behind(first, (first, second))}


def test_the_front_page_is_short_and_begins_with_the_two_commands() -> None:
    for page in (ROOT / "README.md", ROOT / "README.zh.md"):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 100
        assert [words[:2] for words in commands(blocks(page)[0].text)] == [["./reproduce.sh"], ["make", "test"]]
