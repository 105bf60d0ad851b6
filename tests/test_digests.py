"""What DVC knows of the code: an edit that can change a stage's output runs that stage, any other runs nothing."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from pipeline import ran as stages_run
from repository import PROGRAMS, ROOT
from ruamel.yaml import YAML
from tiny import set_models

from mi_llm import digests, registry, storage
from mi_llm.study import Study, load

STAGES = [name for name in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"] if name != "digests"]

PACKAGES = {  # whose modules these stages take by their names
    "read": (registry.CORPORA,),
    "report": (registry.CORPORA, registry.CODERS),
    **dict.fromkeys(("code", "miti"), (registry.CODERS,)),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, of which the digests are made."""
    copy = tmp_path / "src" / "mi_llm"
    shutil.copytree(ROOT / "src" / "mi_llm", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digests, "PACKAGE", copy)
    forget()
    yield copy
    forget()


def forget() -> None:
    """Drop what was read of another copy of the package."""
    for kept in (digests.data_files, digests.by_folder, digests.by_name, digests.reached):
        kept.cache_clear()


def all_digests() -> dict[str, str]:
    return {stage: digests.digest(stage) for stage in STAGES}


def imported_by(stage: str) -> set[str]:
    """The modules of this package that a stage's command reaches, by Python's own finder, which reads bytecode."""
    lines = ["from mi_llm.problem import Problem", "from mi_llm.study import load"]
    lines += [
        ast.unparse(node)
        for function in digests.command(stage)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
    ]
    lines += [f"from {package} import {name}" for package in PACKAGES.get(stage, ()) for name in registry.names(package)]
    script = digests.PACKAGE.parent / "command.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    finder = ModuleFinder([str(digests.PACKAGE.parent)])
    finder.run_script(str(script))
    return {
        str(Path(getattr(module, "__file__", ""))) for name, module in finder.modules.items() if name.split(".")[0] == "mi_llm"
    }


@pytest.mark.slow
def test_an_edit_in_any_module_changes_the_digests_of_the_stages_that_reach_it_and_no_other(package: Path) -> None:
    reaching = {stage: imported_by(stage) for stage in STAGES}
    before = all_digests()
    for module in sorted(package.rglob("*.py")):
        if module == package / "cli.py":
            continue
        source = module.read_text(encoding="utf-8")
        module.write_text(source + "\nchanged = 1\n", encoding="utf-8")
        changed = {stage for stage, digest in all_digests().items() if digest != before[stage]}
        module.write_text(source, encoding="utf-8")
        assert changed == {stage for stage in STAGES if str(module) in reaching[stage]}, module
    assert all_digests() == before


def test_an_edit_of_a_command_changes_its_own_stage(package: Path) -> None:
    before = all_digests()
    cli = package / "cli.py"
    source = cli.read_text(encoding="utf-8")
    edited = source.replace("from mi_llm.construct.split import split as run\n\n    run(load(study))", "pass")
    assert edited != source
    cli.write_text(edited, encoding="utf-8")
    assert [stage for stage, digest in all_digests().items() if digest != before[stage]] == ["split"]


def test_data_files_of_the_package_count_where_a_module_names_them(package: Path) -> None:
    before = all_digests()
    changed = {}
    for path in digests.data_files():
        content = path.read_bytes()
        kept, more = content, b"changed"
        if path.suffix == ".yaml":
            loaded = YAML(typ="safe").load(content)
            kept = content if loaded else b""  # `[]` takes no further entry
            more = b"- changed" if isinstance(loaded, list) else b"changed: 1"
        path.write_bytes(kept + b"\n" + more)
        name = path.relative_to(package).as_posix()
        changed[name] = {stage for stage, digest in all_digests().items() if digest != before[stage]}
        path.write_bytes(content)
    assert changed["language/zh/unsafe.txt"] == changed["language/en/unsafe.txt"] == {"screen"}
    assert changed["audit/findings.yaml"] == {"audit"}
    assert changed["frame/page.css"] == {"audit", "report", "screen"}
    assert changed["report/templates/pages.zh.jinja"] == {"report"}, "named by a template only"
    assert changed["models/hub_card.md.jinja"] == set(), "only an export reads it"
    assert changed["apps/chat/guard.yaml"] == changed["language/zh/expressions.yaml"] - {"report"} == {"safety"}
    assert changed["certificate/templates/certificate.html.jinja"] == set()
    for name, stages in changed.items():
        tracked = "/prompts/" in name or name.endswith("personas.yaml")  # a study's own are dependencies in dvc.yaml
        if not (tracked or name.startswith(("apps/", "archive/", "certificate/", "models/"))):
            assert stages, f"{name}: no stage reads it, or the digests do not see which"


def test_stages_without_an_item_have_a_folder_that_is_not_empty(study: Study) -> None:
    """DVC refuses a dependency that is not there, and warns of an empty one; the report depends on these."""
    digests.digests(study)
    for stage in digests.OPTIONAL:
        (about,) = study.path(stage).iterdir()
        assert f"`{stage}.models`" in about.read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_a_stage_opens_is_in_its_digest(scored: object) -> None:
    """The package's data files that the report opens, as the interpreter tells it, are all among those that count for it."""
    opened = subprocess.run(
        [sys.executable, "-c", WATCHED, "report"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    counted = {path.relative_to(digests.PACKAGE).as_posix() for path in digests.closure("report")}
    assert opened
    assert set(opened) <= counted


WATCHED = """
import sys
from pathlib import Path
import mi_llm
from mi_llm.cli import app
package = Path(mi_llm.__file__).parent
opened = set()
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(package)) and not str(arguments[0]).endswith((".py", ".pyc")):
        opened.add(Path(arguments[0]).relative_to(package).as_posix())
sys.addaudithook(watch)
app([sys.argv[1]], standalone_mode=False)
print("\\n".join(sorted(opened)))
"""


def without_docstrings(source: str, other: str) -> str:
    """A module with every comment gone, every docstring replaced, and formatted anew."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if digests.is_docstring(statement):
                statement.value.value = other
    return ast.unparse(tree)


def test_comments_docstrings_and_formatting_change_nothing(package: Path) -> None:
    before = all_digests()
    for module in package.rglob("*.py"):
        module.write_text(without_docstrings(module.read_text(encoding="utf-8"), "other") + "\n# end\n", encoding="utf-8")
    for path in package.rglob("*.yaml"):
        path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert all_digests() == before


def test_an_annotation_counts(package: Path) -> None:
    before = all_digests()
    study = package / "study.py"
    source = study.read_text(encoding="utf-8")
    edited = source.replace("accumulation: PositiveInt", "accumulation: int")
    assert edited != source
    study.write_text(edited, encoding="utf-8")
    assert all(digest != before[stage] for stage, digest in all_digests().items())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with its own copy of the code, in which the miniature ran as far as `split`."""
    folder = tmp_path_factory.mktemp("bundle")
    for name in ("src", "mini", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "dvc.lock"))
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"], ["dvc", "repro", "--quiet", "mini/dvc.yaml:split"]):
        subprocess.run(command, cwd=folder, env=environment(folder), check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src")}


def ran(bundle: Path, target: str = "split") -> list[str]:
    """The stages that DVC runs now."""
    done = subprocess.run(
        ["dvc", "repro", f"mini/dvc.yaml:{target}"],
        cwd=bundle,
        env=environment(bundle),
        check=True,
        capture_output=True,
        text=True,
    )
    return [stage.removeprefix("mini/dvc.yaml:") for stage in stages_run(done.stdout)]


def edit(path: Path, change: Callable[[str], str]) -> None:
    source = path.read_text(encoding="utf-8")
    assert change(source) != source
    path.write_text(change(source), encoding="utf-8")


FAULT = """

def form_faults(*_: object) -> Iterator[str]:
    yield "a fault"
"""


@pytest.mark.slow
def test_dvc_runs_the_stages_whose_code_changed(bundle: Path) -> None:
    assert ran(bundle) == []
    code = bundle / "src" / "mi_llm"
    edit(code / "construct" / "screen.py", lambda source: without_docstrings(source, "said otherwise"))
    assert ran(bundle) == []

    edit(code / "corpora" / "annomi.py", lambda source: source + "\nchanged = 1\n")
    assert {name.split("@")[0] for name in ran(bundle)} == {"read"}, "what read writes did not change, so nothing after it runs"

    table = bundle / "runs" / "mini" / "screen" / "dialogs.jsonl"
    assert len(table.read_text(encoding="utf-8").splitlines()) == 72
    edit(code / "construct" / "transcribe.py", lambda source: source + FAULT)
    assert set(ran(bundle, "screen")) == {"transcribe", "screen"}
    assert table.read_text(encoding="utf-8") == ""


def test_a_models_digest_is_that_of_its_folder_or_pins_whatever_its_license(workspace: Path) -> None:
    commit = f"a/b@{'0' * 40}"

    def written(**changes: str) -> dict[str, str]:
        of_folder = {"path": "mine/own", "chat_format": "checkpoint", **changes}
        of_hub = {"hub": "a/b", "revision": "0" * 40, "chat_format": "checkpoint", **changes}
        set_models({"own": of_folder, "hub": of_hub})
        digests.digests(load(Path("mini/params.yaml")))
        of_models: dict[str, str] = storage.read_yaml(Path("runs/mini/digests.yaml"))["models"]
        return of_models

    assert written()["own"] == "missing"
    storage.write_text(workspace / "mine/own/config.json", "{}")
    before = written()
    assert written(license="mit") == before
    storage.write_text(workspace / "mine/own/config.json", "{ }")
    after = written()
    assert {name for name in before if after[name] != before[name]} == {"own"}
    storage.write_text(Path("mini/pins.yaml"), f"{commit}: {{parameters: 1}}\nc/d@1: {{parameters: 1}}\n")
    pinned = written()
    assert {name for name in before if after[name] != pinned[name]} == {"hub"}
    storage.write_text(Path("mini/pins.yaml"), f"# a comment\nc/d@1: {{parameters: 2}}\n{commit}: {{parameters: 1}}\n")
    assert written() == pinned
