"""The command `mi-llm`: one verb a stage, and what people need around them. Thin: it only wires."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no stage reaches for the network behind the reader's back
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DVCLIVE_LOGLEVEL", "ERROR")

import typer
from ruamel.yaml import YAML

from mi_llm.problem import Problem
from mi_llm.study import Llm, Study, file_of, load

if TYPE_CHECKING:
    from mi_llm.construct.cassette import Question
    from mi_llm.construct.llm import Workload

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
StudyFile = Annotated[
    Path, typer.Option("--study", help="the study: paper, mini, another's folder, or a parameters file", callback=file_of)
]
Item = Annotated[str, typer.Argument()]
Mode = Annotated[str | None, typer.Option(help="replay, record, batch or live, in place of the parameters' llm.mode")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what recording would take, and do nothing")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask before spending; the parameters' budget holds")]
Files = Annotated[list[Path], typer.Argument(help="cassettes")]
File = Annotated[Path, typer.Argument(help="a cassette")]
MINI = Path("mini/params.yaml")


def member(name: str, allowed: tuple[str, ...], key: str, study: Study) -> str:
    """The name, if the study has it."""
    if name not in allowed:
        raise Problem(name, f"not among {key} of {study.params}", f"one of {', '.join(allowed)}", "correct the name")
    return name


@app.command()
def acquire(corpus: Item, study: StudyFile = MINI) -> None:
    """Bring one corpus here, verified."""
    from mi_llm.corpora.acquire import acquire as run

    settings = load(study)
    run(settings, member(corpus, settings.corpora, "corpora", settings))


@app.command()
def read(corpus: Item, study: StudyFile = MINI) -> None:
    """Turn one corpus's files into dialogs, and count every repair."""
    from mi_llm.corpora.read import read as run

    settings = load(study)
    run(settings, member(corpus, settings.corpora, "corpora", settings))


@app.command()
def rate(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Have a language model rate dialogs of each corpus."""
    from mi_llm.construct import rate as stage

    asking("rate", stage.rate, listed(stage.questions, "rate"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command()
def transcribe(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Collect the MI-style counterparts of a sample of dialogs."""
    from mi_llm.construct import transcribe as stage

    work = listed(stage.questions, "transcribe")
    asking("transcribe", stage.transcribe, work, with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command()
def translate(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Put a sample of AnnoMI's transcripts into Chinese."""
    from mi_llm.construct import translate as stage

    work = listed(stage.questions, "translate")
    asking("translate", stage.translate, work, with_mode(load(study), mode), dry_run=dry_run, yes=yes)


def listed(questions: "Callable[[Study], Sequence[Question]]", name: str) -> "Callable[[Study], Workload]":
    """What a stage would ask whose questions are known before it runs."""
    from mi_llm.construct import llm

    return lambda study: llm.workload(study, name, questions(study))


def asking(
    name: str, run: Callable[[Study], None], work: "Callable[[Study], Workload]", study: Study, *, dry_run: bool, yes: bool
) -> None:
    """Run a stage that may ask a language model, after a person agreed to all it would ask; or only say what that is."""
    from mi_llm.construct import llm

    if dry_run:
        print(f"{name}: answers to be recorded\n{llm.forecast(study.llm, work(study))}", end="")
        return
    if study.llm.mode != "replay":
        llm.consent(study, name, work(study), yes=yes)
    run(study)


def with_mode(study: Study, mode: str | None) -> Study:
    """The study with another `llm.mode`, if one is given; checked like the parameters' own."""
    if mode is None:
        return study
    allowed = get_args(Llm.model_fields["mode"].annotation)
    if mode not in allowed:
        raise Problem("--mode", mode, ", ".join(allowed), "correct it")
    return study.model_copy(update={"llm": study.llm.model_copy(update={"mode": mode})})


@app.command()
def screen(study: StudyFile = MINI) -> None:
    """Check every transcribed dialog, and apply a person's decisions."""
    from mi_llm.construct.screen import screen as run

    run(load(study))


@app.command()
def split(study: StudyFile = MINI) -> None:
    """Divide the dialogs into training and test, and the test into rounds."""
    from mi_llm.construct.split import split as run

    run(load(study))


@app.command()
def base(model: Item, study: StudyFile = MINI) -> None:
    """Put one base model's checkpoint in place."""
    from mi_llm.models.base import base as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command()
def finetune(
    model: Item,
    study: StudyFile = MINI,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would take here, and do nothing")] = False,
) -> None:
    """LoRA-tune one base model."""
    from mi_llm.models import finetune as stage

    settings = load(study)
    (stage.dry_run if dry_run else stage.finetune)(settings, member(model, settings.models, "models", settings))


@app.command()
def respond(model: Item, study: StudyFile = MINI) -> None:
    """Answer every test round with base and tuned model."""
    from mi_llm.models.respond import respond as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command()
def prefer(model: Item, study: StudyFile = MINI) -> None:
    """Tune one tuned model on, by what the lexical coder prefers."""
    from mi_llm.models.prefer import prefer as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command()
def score(study: StudyFile = MINI) -> None:
    """Compare every reply with its reference."""
    from mi_llm.score.score import score as run

    run(load(study))


@app.command()
def simulate(model: Item, study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Let standardized clients talk with a base model and its tuned one."""
    from mi_llm.miti import simulate as stage

    settings = with_mode(load(study), mode)
    member(model, settings.models, "models", settings)
    run, work = partial(stage.simulate, model=model), partial(stage.workload, model=model)
    asking(f"simulate {model}", run, work, settings, dry_run=dry_run, yes=yes)


@app.command()
def blind(study: StudyFile = MINI) -> None:
    """Make of all talks packets that do not say where they come from."""
    from mi_llm.miti.blind import blind as run

    run(load(study))


@app.command()
def code(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Have every packet coded by MITI: by people, a language model or words alone."""
    from mi_llm.miti import coders as stage

    asking("code", stage.code, listed(stage.questions, "code"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command()
def miti(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Hold the automatic coders against AnnoMI's experts, and code the released dialogs."""
    from mi_llm.miti import validation as stage

    asking("miti", stage.miti, listed(stage.questions, "miti"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command()
def summary(study: StudyFile = MINI) -> None:
    """Make the tables of the manual evaluation."""
    from mi_llm.miti.summary import summary as run

    run(load(study))


@app.command()
def audit(study: StudyFile = MINI) -> None:
    """Check every numeric claim of the paper against its public data."""
    from mi_llm.audit.audit import audit as run

    run(load(study))


@app.command()
def report(study: StudyFile = MINI) -> None:
    """Write the page that shows what came out."""
    from mi_llm.report.page import report as run

    run(load(study))


@app.command()
def serve(
    *,
    study: StudyFile = MINI,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all, then set MI_LLM_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    models: Annotated[str, typer.Option(help="only these models of the study, with commas between")] = "",
    queue: Annotated[int, typer.Option(min=0, help="how many replies may wait for a model")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="seconds that a reply may take")] = 120,
) -> None:
    """Offer base and tuned models to anything that speaks OpenAI's protocol."""
    from mi_llm.apps.model.server import serve as run

    settings = load(study)
    names = [member(name, settings.models, "models", settings) for name in models.split(",") if name] or settings.models
    run(settings, names, host, port, queue=queue, seconds=timeout)


@app.command()
def chat(
    *,
    model_url: Annotated[str, typer.Option(help="a model server: `mi-llm serve`, or vLLM")],
    study: StudyFile = MINI,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all, then set MI_LLM_CHAT_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    votes: Annotated[Path, typer.Option(help="file that keeps the votes of blind comparisons")] = Path("votes.jsonl"),
    address: Annotated[str, typer.Option(help="where people reach the chat, if not at host and port: https://…")] = "",
) -> None:
    """Open the demo chat: a research demo, not care."""
    from mi_llm.apps.chat.serve import serve as run

    run(load(study), model_url, host, port, votes, address=address)


@app.command()
def pretrain(
    archive: Annotated[Path, typer.Argument(help="smile-<commit>.tar.gz, the SmileChat archive")],
    models: Annotated[list[str], typer.Argument(help="which of the tiny models")],
    out: Annotated[Path, typer.Option(help="folder for the checkpoints")] = Path("pretrain/models"),
) -> None:
    """Re-create the miniature's base models from SmileChat (about an hour each on one core)."""
    from mi_llm import prompts, storage
    from mi_llm.models.pretrain import Pretraining
    from mi_llm.models.pretrain import pretrain as run

    options = Pretraining.model_validate(YAML(typ="safe").load(storage.read_text(Path("pretrain/params.yaml"))))
    run(archive, out, models, prompts.render("counselor"), options)


cassette = typer.Typer(no_args_is_help=True, help="Look at recorded answers, check them, put them together.")
app.add_typer(cassette, name="cassette")


@cassette.command("ls")
def cassette_ls(files: Files, failed: Annotated[bool, typer.Option("--failed", help="only answers that failed")] = False) -> None:
    """List the answers, a line each."""
    from mi_llm.construct.cassette import Cassette, line_of

    for path in files:
        for record in Cassette.open(existing(path)).records:
            if record["problem"] or not failed:
                print(line_of(record))


@cassette.command("show")
def cassette_show(file: File, key: Annotated[str, typer.Argument(help="the key's first characters")]) -> None:
    """Show what was asked under a key, and every answer that came."""
    from mi_llm.construct.cassette import Cassette, chosen, shown

    print("\n\n".join(shown(record) for record in chosen(Cassette.open(existing(file)), key)))


@cassette.command("verify")
def cassette_verify(files: Files) -> None:
    """Check that every answer is as it was recorded."""
    from mi_llm.construct.cassette import verify

    faults = {path: verify(existing(path)) for path in files}
    for path, found in faults.items():
        print("\n".join(found) or f"{path}: as recorded")
    sys.exit(1 if any(faults.values()) else 0)


@cassette.command("merge")
def cassette_merge(target: File, sources: Files) -> None:
    """Add to the first cassette what the others hold and it does not."""
    from mi_llm.construct.cassette import merge

    print(f"{target}: {merge(target, [existing(path) for path in sources])} answers added")


@cassette.command("export")
def cassette_export(file: File, out: Annotated[Path, typer.Argument(help="a .csv file")]) -> None:
    """Write the answers as a table: what each is about, the request, the answer, tokens, times."""
    from mi_llm.construct.cassette import Cassette, export

    export(Cassette.open(existing(file)), out)


def existing(path: Path) -> Path:
    """The path, if it is a file."""
    if not path.is_file():
        raise Problem(str(path), "no such file", "a cassette", "correct the path")
    return path


desk = typer.Typer(help="The coding desk, where raters code blinded transcripts in a browser.")
app.add_typer(desk, name="desk")
Packets = Annotated[Path, typer.Option(help="folder of blinded packets with raters.json")]
DeskData = Annotated[Path, typer.Option(help="folder that keeps desk.sqlite")]
Address = Annotated[str | None, typer.Option(help="where people reach the desk, if not at host and port: https://…")]


@desk.callback(invoke_without_command=True)
def desk_open(  # noqa: PLR0917 — typer passes options by name
    context: typer.Context,
    packets: Annotated[Path | None, typer.Option(help="folder of blinded packets with raters.json")] = None,
    data: Annotated[Path | None, typer.Option(help="folder that keeps desk.sqlite")] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8808,
    training: Annotated[Path | None, typer.Option(help="folder of training packets with gold codes.csv and globals.csv")] = None,
    address: Address = None,
) -> None:
    """Open the coding desk; personal links are printed once."""
    from mi_llm.apps.desk.serve import serve

    if context.invoked_subcommand is None:
        if packets is None or data is None:
            raise Problem("mi-llm desk", "no --packets or no --data", "both folders", "name them")
        serve(packets, data, host, port, training=training, address=address)


@desk.command("links")
def desk_links(
    packets: Packets,
    data: DeskData,
    address: Annotated[str, typer.Option(help="where people reach the desk")] = "http://127.0.0.1:8808",
    renew: Annotated[str | None, typer.Option(help="whose link to replace")] = None,
) -> None:
    """Print links of people who have none, or replace one person's."""
    from mi_llm.apps.desk.serve import links

    links(packets, data, address, renew)


@desk.command("export")
def desk_export(packets: Packets, data: DeskData, out: Annotated[Path, typer.Option(help="folder for the two files")]) -> None:
    """Write codes.csv and globals.csv of what all its raters finished."""
    from mi_llm.apps.desk.serve import export

    export(packets, data, out)


exporting = typer.Typer(no_args_is_help=True, help="Make of the study's outputs what others can take up.")
app.add_typer(exporting, name="export")


@exporting.command("adapter")
def export_adapter(
    model: Item,
    out: Annotated[Path, typer.Option(help="folder to write; its name will be the repository's")],
    study: StudyFile = MINI,
) -> None:
    """Write a tuned model's adapter as a repository for the hub: adapter, card, license, notice, checksums."""
    from mi_llm.models.export import export as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings), out)


archive = typer.Typer(no_args_is_help=True, help="The archive: one zip file from which the study runs again without a network.")
app.add_typer(archive, name="archive")


@archive.command("build")
def archive_build(
    out: Annotated[Path, typer.Option(help="folder for the zip file")] = Path("dist"),
    image: Annotated[Path | None, typer.Option(help="a container image to put in: docker save, or an OCI tarball")] = None,
) -> None:
    """Write the archive of the commit that is checked out and of its finished outputs."""
    from mi_llm.archive.build import build

    print(build(out, image))


@archive.command("verify")
def archive_verify(file: Annotated[Path, typer.Argument(help="an archive")]) -> None:
    """Check that an archive is whole, and is what it says."""
    from mi_llm.archive.verify import verify

    sys.exit(verify(file))


@archive.command("packages")
def archive_packages() -> None:
    """Renew packages.csv from pip's report, after requirements.lock changed."""
    from mi_llm.archive.packages import renew

    renew()


@app.command()
def doctor(study: StudyFile = MINI) -> None:
    """Check this machine: what is here, and what is missing for which study."""
    from mi_llm.doctor import doctor as run

    others = [path for path in (MINI, Path("params.yaml")) if path != study]
    sys.exit(run([load(path) for path in (study, *others)]))


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="auto, mini, audit, paper, or a folder with a params.yaml")] = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before starting")] = False,
    mirror: Annotated[
        Path | None, typer.Option(help="folder with the archives of the public corpora (default: MI_LLM_MIRROR)")
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="fetch finished outputs instead of computing them, where they exist")
    ] = False,
) -> None:
    """Run a whole study through DVC, then compare it with the committed one."""
    from mi_llm.reproduce import reproduce as run

    if mirror is not None:
        os.environ["MI_LLM_MIRROR"] = str(mirror.resolve())
    sys.exit(run(study, yes=yes, pull=pull))


@app.command()
def accept(study: StudyFile = MINI) -> None:
    """Make the outputs that are here the reference: commit the reference file together with dvc.lock."""
    from mi_llm.compare import accept as run

    run(load(study))


@app.command()
def compare(
    study: StudyFile = MINI,
    codechecker: Annotated[
        str | None, typer.Option(help="who checks: a name, or Name <ORCID> (default: git's user.name)")
    ] = None,
) -> None:
    """Compare the outputs that are here with the committed ones; write the certificate. Exit status 1: something differs."""
    from mi_llm.certificate.certify import certify

    sys.exit(certify(load(study), codechecker))


def guarded(run: Callable[[], None]) -> NoReturn:
    """Run the command; show a Problem as a sentence, and an interruption as one."""
    try:
        run()
    except Problem as problem:
        print(f"mi-llm: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nmi-llm: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def main() -> None:
    """Entry point."""
    guarded(app)
