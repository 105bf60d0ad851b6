"""Stage `digests`: a digest of each stage's code, of your own dialogs, and of the models, so that DVC runs what changed alone.

Writes `<out>/digests.yaml`, a SHA-256 for each stage of `dvc.yaml`; the other stages track theirs as a parameter. `acquire`
tracks that of a corpus of yours, too, and `base` that of its model's folder or pins: DVC does not see these files, which stay
where they lie. A stage's digest covers the stage's command in `cli.py`, every module that the command imports, directly or
through others (its *closure*), and the package's data files that those modules name. Python counts as syntax tree without
docstrings, YAML as the values that it holds: comments and formatting change nothing. Annotations do count, since pydantic,
dataclasses and Typer read them.

It also makes the folders of `OPTIONAL` stages, with a line in each: the report depends on them, and DVC refuses a dependency that
is not there, and warns of an empty one.
"""

import ast
import gc
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grimp

from mi_llm import registry, storage
from mi_llm.study import Corpus, Study

PACKAGE = Path(__file__).parent
NAME = "digests.yaml"
OPTIONAL = ("seeds", "benchmark")  # stages that run for no model unless the study names some, and that the report reads


def digests(study: Study) -> None:
    """Write the digest of each stage of the study's `dvc.yaml`, of each corpus, and of each model; see the module."""
    stages = storage.read_yaml(study.beside("dvc.yaml"))["stages"]
    gc.disable()  # half of the time that syntax trees take is the collector's, which finds nothing in them
    try:
        lines = [f"{stage}: {digest(stage)}\n" for stage in sorted(stages) if stage != "digests"]
    finally:
        gc.freeze()  # nor later in what is kept of them
        gc.enable()
    lines += ["corpora:\n", *(f"  {name}: {files_of(corpus)}\n" for name, corpus in study.corpora.items())]
    for stage in OPTIONAL:
        about = f"Stage `{stage}` writes here, for the models that `{stage}.models` of the parameters names.\n"
        storage.write_text(study.path(stage) / "README.md", about)
    lines += ["models:\n", *(f"  {name}: {model_of(study, name)}\n" for name in study.models)]
    storage.write_text(study.folder / NAME, "".join(lines))


def digest(stage: str) -> str:
    """SHA-256 of all code and package data that can change a stage's output."""
    code_hash = hashlib.sha256("\n".join(code_of(function).text for function in command(stage)).encode())
    for path in closure(stage):
        code_hash.update(f"\n{path.relative_to(PACKAGE).as_posix()} {meaning(path.suffix, path.read_bytes())}".encode())
    return code_hash.hexdigest()


def files_of(corpus: Corpus) -> str:
    """SHA-256 of the files of your own dialogs; for another corpus, which DVC tracks itself or `acquire` pins, a word."""
    hashes = [storage.sha256(path) if path.exists() else "missing" for path in corpus.paths]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest() if hashes else "tracked"


def model_of(study: Study, name: str) -> str:
    """SHA-256 of a model's folder, or for one of the hub of its pins. Neither its license nor its chat format counts."""
    model, folder = study.models[name], study.source(name)
    if not model.hub:
        return storage.sha256(folder) if folder.exists() else "missing"
    return hashlib.sha256(storage.dump([model.commit, study.pins().get(model.commit)]).encode()).hexdigest()


def closure(stage: str) -> list[Path]:
    """The modules and data files of the package that a stage reaches, sorted."""
    modules = {path for name in imports(stage) for path in reached(name)}
    return sorted(modules | data_of(modules))


# The command of a stage


@cache
def parsed(source: bytes) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(source)


def commands() -> ast.Module:
    """The syntax tree of `cli.py`."""
    return parsed((PACKAGE / "cli.py").read_bytes())


def command(stage: str) -> list[ast.FunctionDef]:
    """The function of `cli.py` that is the stage's command, and those of `cli.py` that it calls."""
    functions = {node.name: node for node in commands().body if isinstance(node, ast.FunctionDef)}
    name = stage if stage in functions else "verb"  # what runs a stage that has no options of its own
    called, names = [functions[name]], {name}
    for function in called:  # grows
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in names:
                names.add(node.id)
                called.append(functions[node.id])
    return called


# Imports


@cache
def graph() -> grimp.ImportGraph:
    """Which module of the package imports which, at its top or inside a function."""
    return grimp.build_graph(PACKAGE.name, exclude_type_checking_imports=True, cache_dir=None)


def imports(stage: str) -> set[str]:
    """The modules of the package that a stage's command imports, in its functions or by a name from the top of `cli.py`."""
    functions = command(stage)
    used = {node.id for function in functions for node in ast.walk(function) if isinstance(node, ast.Name)}
    inside = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    top = [node for node in commands().body if isinstance(node, ast.ImportFrom) and used & {alias.name for alias in node.names}]
    named = {name for node in (*top, *inside) for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")}
    return {name for name in graph().modules if name in named or (functions[0].name == "verb" and name.endswith(f".{stage}"))}


@cache
def reached(module: str) -> frozenset[Path]:
    """The files of a module, of all that it imports or takes from the registry, and of the packages that these are in."""
    queue, modules = [module], set[str]()
    for name in queue:  # grows
        for upstream in {name, *graph().find_upstream_modules(name)} - modules:
            modules.add(upstream)
            for package in registered(file_of(upstream).read_bytes()):
                queue += [f"{package}.{module_name}" for module_name in registry.names(package)]
    packages = {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 1)}
    return frozenset(map(file_of, modules | packages))


@cache
def registered(source: bytes) -> frozenset[str]:
    """The packages whose modules a module takes from the registry, `modules(CORPORA)`: no import statement names those."""
    if b"modules(" not in source:
        return frozenset()
    calls = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.Call) and len(node.args) == 1]
    names = [(getattr(call.func, "attr", getattr(call.func, "id", "")), call.args[0]) for call in calls]
    kinds = [getattr(kind, "attr", getattr(kind, "id", "")) for function, kind in names if function == "modules"]
    return frozenset(getattr(registry, kind) for kind in kinds if hasattr(registry, kind))


def file_of(module: str) -> Path:
    """The source file of a module of this package."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# Data


@cache
def data_files() -> list[Path]:
    """The package's data files, sorted."""
    return [path for path in sorted(PACKAGE.rglob("*.*")) if path.suffix not in (".py", ".pyc")]


@cache
def by_folder() -> dict[Path, list[Path]]:
    """The data files of each folder."""
    folders: dict[Path, list[Path]] = {}
    for path in data_files():
        folders.setdefault(path.parent, []).append(path)
    return folders


@cache
def by_name() -> dict[str, list[Path]]:
    """The data files by each name under which a module may open them: `hub.yaml`, `templates/glm4.jinja`, …

    Each language has files of the same names, so that a name may mean several.
    """
    files: dict[str, list[Path]] = {}
    for path in data_files():
        parts = path.relative_to(PACKAGE).parts
        for depth in range(len(parts)):
            files.setdefault("/".join(parts[depth:]), []).append(path)
    return files


def data_of(modules: Iterable[Path]) -> set[Path]:
    """The data files that modules name, and those beside a template in a folder of templates, which may include each other."""
    named = {path for module in modules for path in named_in(module.read_bytes(), module.parent)}
    folders = {path.parent for path in named if path.parent.name == "templates"}
    return named | {path for folder in folders for path in folder.glob("*.jinja")}


@cache
def named_in(module: bytes, folder: Path) -> frozenset[Path]:
    """The data files that a module names: in a string, or by an f-string's pattern among the files of the module's folder."""
    code = read(module)
    named = {path for name in code.strings & by_name().keys() for path in by_name()[name]}
    beside = [path for parent in (folder, folder / "templates") for path in by_folder().get(parent, ())] if code.patterns else []
    return frozenset(named | {path for path in beside for pattern in code.patterns if re.fullmatch(pattern, path.name)})


# What counts


@cache
def meaning(suffix: str, content: bytes) -> str:
    """SHA-256 of what counts in a file: Python's syntax tree, YAML's values, otherwise the bytes."""
    match suffix:
        case ".py":
            content = read(content).text.encode()
        case ".yaml":
            content = repr(storage.parse_yaml(content.decode(), "a file of the package")).encode()
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Code:
    """What a digest needs of a syntax tree."""

    text: str  # without docstrings, positions and empty fields: the same for every version of Python
    strings: frozenset[str]
    patterns: tuple[str, ...]  # of the file names that its f-strings can make


@cache
def read(source: bytes) -> Code:
    """A module's code."""
    return code_of(parsed(source))


def code_of(tree: ast.AST) -> Code:
    """A syntax tree's text, strings and file name patterns, in one pass: trees are large, and every run reads all of them."""
    words, strings, patterns = list[str](), set[str](), list[str]()

    def add(node: ast.AST) -> None:
        words.append(f"({type(node).__name__}")
        if isinstance(node, ast.Constant):
            strings.update([node.value] if isinstance(node.value, str) else ())
        elif isinstance(node, ast.JoinedStr):
            parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in node.values]
            if "." in parts[-1].removeprefix(".+"):
                patterns.append("".join(parts))
        for name in node._fields:
            field = getattr(node, name, None)
            if field is None or field == []:
                continue
            words.append(name)
            if isinstance(field, ast.AST):
                add(field)
            elif type(field) is list:
                for part in field:
                    if not isinstance(part, ast.AST):
                        words.append(repr(part))
                    elif not is_docstring(part):
                        add(part)
                words.append("]")
            else:
                words.append(repr(field))
        words.append(")")

    add(tree)
    return Code("\n".join(words), frozenset(strings), tuple(patterns))


def is_docstring(statement: ast.AST) -> bool:
    """Whether a statement is a string alone."""
    return type(statement) is ast.Expr and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
