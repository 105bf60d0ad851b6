"""The command `mi-llm`: reads options, loads the study, and calls the function behind each verb. It holds no logic of its own."""

import os
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no stage reaches for the network behind the reader's back
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DVCLIVE_LOGLEVEL", "ERROR")
os.environ.setdefault("TQDM_MININTERVAL", "0.1" if sys.stderr.isatty() else "30")  # seconds between states of a bar: in a log,
os.environ.setdefault("TQDM_MAXINTERVAL", "10" if sys.stderr.isatty() else "60")  # each is a line (progress.Lines)

import typer

from mi_llm.problem import Problem
from mi_llm.progress import Lines
from mi_llm.report.stages import Stage, stages
from mi_llm.study import Llm, Study, file_of, load
from mi_llm.tools import commands as tools

if TYPE_CHECKING:
    from mi_llm.llm.ask import Workload
    from mi_llm.llm.cassette import Question

STUDY, STAGES, PEOPLE, SHARE = "Study", "Stages, in the order of the paper's Methods", "People", "Share"  # groups in --help
HELP = "Run, check, and share the study of Chinese counselor models for motivational interviewing (JMIR Form Res 2026;10:e89077)."
EXAMPLES = {
    "mi-llm reproduce mini": "run the study in miniature and compare it with the committed run",
    "mi-llm reproduce audit": "check every claim of the paper against its released data",
    "mi-llm chat": "talk with the models of a study that has run",
    "mi-llm doctor": "see what this machine has and what each study still needs",
    "mi-llm new mine": "begin a study of your own",
    "mi-llm STAGE --help": "see what a stage does and which options it has",
}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=HELP,
    epilog="\n\n".join(["Examples:", *(f"{command}: {what}" for command, what in EXAMPLES.items())]),
)
StudyFile = Annotated[
    Path,
    typer.Option("--study", help="the study: paper, mini, the folder of another study, or a parameters file", callback=file_of),
]
Corpus = Annotated[str, typer.Argument(help="a corpus of the study")]
Model = Annotated[str, typer.Argument(help="a model of the study")]
Mode = Annotated[str | None, typer.Option(help="replay, record, batch, or live; replaces llm.mode of the parameters")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what recording would cost, and do nothing else")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask before spending money; the budget in the parameters still applies")]
Files = Annotated[list[Path], typer.Argument(help="cassettes")]
File = Annotated[Path, typer.Argument(help="a cassette")]
Proxies = Annotated[str, typer.Option(help="addresses or networks of the HTTPS proxies in front, separated by commas")]
MINI = Path("mini/params.yaml")


def member(name: str, allowed: Collection[str], key: str, study: Study) -> str:
    """The name, if it is allowed; raises Problem otherwise."""
    if name not in allowed:
        raise Problem(name, f"not among {key} of {study.params}", f"one of {', '.join(allowed)}", "correct the name")
    return name


def listed(questions: "Callable[[Study], Sequence[Question]]", name: str) -> "Callable[[Study], Workload]":
    """The workload of a stage whose questions are known before it runs."""
    from mi_llm.llm import ask

    return lambda study: ask.workload(study, name, questions(study))


def asking(
    name: str, run: Callable[[Study], None], work: "Callable[[Study], Workload]", study: Study, *, dry_run: bool, yes: bool
) -> None:
    """Run a stage that may ask a language model, once a person has agreed to it; with `dry_run` only print the cost."""
    from mi_llm.llm import ask

    if dry_run:
        print(f"{name}: answers to be recorded\n{ask.forecast(study.llm, work(study))}", end="")
        return
    if study.llm.mode != "replay":
        ask.consent(study, name, work(study), yes=yes)
    run(study)


def with_mode(study: Study, mode: str | None) -> Study:
    """The study with another `llm.mode`, if one is given; checked like the parameters' own."""
    if mode is None:
        return study
    allowed = get_args(Llm.model_fields["mode"].annotation)
    if mode not in allowed:
        raise Problem("--mode", mode, ", ".join(allowed), "correct it")
    return study.model_copy(update={"llm": study.llm.model_copy(update={"mode": mode})})


@app.command(rich_help_panel=STUDY)
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


@app.command(rich_help_panel=STUDY)
def new(
    folder: Annotated[str, typer.Argument(help="a new folder here; also the study's name")],
    like: Annotated[str, typer.Option(help="whose models and scale it has: mini, or paper")] = "mini",
    language: Annotated[str, typer.Option(help="what is spoken in it: zh, en, or another of src/mi_llm/language/")] = "zh",
    title: Annotated[str, typer.Option(help="what its pages are called")] = "",
) -> None:
    """Write a study of your own, whose outputs all stay on this machine, and check it."""
    from mi_llm.new import new as run

    sys.exit(run(folder, like, title, language))


@app.command("import", rich_help_panel=STUDY)
def import_dialogs(  # noqa: PLR0917 — typer passes options by name
    paths: Annotated[list[Path], typer.Argument(help="files or folders with your own dialogs, in any usual format")],
    name: Annotated[str, typer.Option(help="what the corpus is called in parameters and folders")],
    study: StudyFile = MINI,
    speaker: tools.Speaker = None,
    column: tools.Column = None,
    keep: Annotated[list[str] | None, typer.Option(help="timestamps or stage-directions: keep them in what is said")] = None,
    check: Annotated[bool, typer.Option("--check", help="only look, write nothing")] = False,
    train: Annotated[bool, typer.Option("--train", help="they are MI dialogs: train and test on them as they are")] = False,
    private: Annotated[bool, typer.Option("--private/--public", help="whether they must stay on this machine")] = True,
) -> None:
    """Look at your own dialogs, say what was understood, and name them in a study."""
    from mi_llm.corpora.own import importing

    settings = importing.settings_of(speaker or [], column or [], keep or [], private=private)
    importing.import_dialogs(load(study), paths, name, settings, check=check, train=train)


@app.command(rich_help_panel=STUDY)
def pin(
    repository: Annotated[str, typer.Argument(help="a chat model of the hub: owner/name")],
    study: StudyFile = MINI,
    revision: Annotated[str, typer.Option(help="a commit or branch (default: the newest commit)")] = "",
    name: Annotated[str, typer.Option(help="what the study calls it (default: the repository's name)")] = "",
) -> None:
    """Name a model of the hub in a study, with its commit and the sizes and hashes of its files."""
    from mi_llm.models.pin import pin as run

    run(load(study), repository, revision, name)


@app.command(rich_help_panel=STUDY)
def doctor(
    study: StudyFile = MINI,
    gpu: Annotated[bool, typer.Option("--gpu", help="estimate fine-tuning on common GPUs, though there is none here")] = False,
) -> None:
    """Check what this machine has, and what each study still needs."""
    from mi_llm.doctor import doctor as run

    other_studies = [path for path in (MINI, Path("params.yaml")) if path != study]
    sys.exit(run([load(path) for path in (study, *other_studies)], estimates=gpu))


@app.command(rich_help_panel=STUDY)
def compare(
    study: StudyFile = MINI,
    codechecker: Annotated[
        str | None, typer.Option(help="who checks: a name, or Name <ORCID> (default: git's user.name)")
    ] = None,
) -> None:
    """Compare the present outputs with the committed ones, and write the certificate. Exit status 1: something differs."""
    from mi_llm.certificate.certify import certify

    sys.exit(certify(load(study), codechecker))


@app.command(rich_help_panel=STUDY)
def accept(study: StudyFile = MINI) -> None:
    """Make the present outputs the reference. Commit the reference file together with dvc.lock."""
    from mi_llm.compare import accept as run

    run(load(study))


@app.command(rich_help_panel=STUDY)
def pretrain(
    archive: Annotated[Path, typer.Argument(help="smile-<commit>.tar.gz, the SmileChat archive")],
    models: Annotated[list[str], typer.Argument(help="tiny models to make")],
    out: Annotated[Path, typer.Option(help="folder for the checkpoints")] = Path("pretrain/models"),
) -> None:
    """Make the miniature's base models again from SmileChat (about an hour each on one core)."""
    from mi_llm import prompts, storage
    from mi_llm.models.pretrain import Pretraining
    from mi_llm.models.pretrain import pretrain as run

    options = Pretraining.model_validate(storage.read_yaml(Path("pretrain/params.yaml")))
    run(archive, out, models, prompts.filled_in(prompts.bundled_path("zh", "counselor"), "zh"), options)


@app.command(rich_help_panel=STAGES)
def digests(study: StudyFile = MINI) -> None:
    """Record a digest of each stage's code and of your own dialogs, by which DVC finds what changed."""
    from mi_llm.digests import digests as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def acquire(corpus: Corpus, study: StudyFile = MINI) -> None:
    """Fetch one corpus and verify its files."""
    from mi_llm.corpora.acquire import acquire as run

    settings = load(study)
    run(settings, member(corpus, settings.corpora, "corpora", settings))


@app.command(rich_help_panel=STAGES)
def read(corpus: Corpus, study: StudyFile = MINI) -> None:
    """Turn one corpus's files into dialogs, and count every repair."""
    from mi_llm.corpora.read import read as run

    settings = load(study)
    run(settings, member(corpus, settings.corpora, "corpora", settings))


@app.command(rich_help_panel=STAGES)
def rate(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Have a language model rate dialogs of each corpus."""
    from mi_llm.construct import rate as stage

    asking("rate", stage.rate, listed(stage.questions, "rate"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def transcribe(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Rewrite a sample of the dialogs in MI style with a language model."""
    from mi_llm.construct import transcribe as stage

    work = listed(stage.questions, "transcribe")
    asking("transcribe", stage.transcribe, work, with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def screen(
    study: StudyFile = MINI,
    opened: Annotated[bool, typer.Option("--open", help="open the page on which a person decides, on this machine")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of that page")] = 8090,
) -> None:
    """Check every transcribed dialog, and apply a person's decisions; with --open, decide."""
    from mi_llm.construct.screen import screen as run

    if opened:  # no part of the stage, nor of its digest
        import_module("mi_llm.apps.screening.serve").serve(load(study), port)
    else:
        run(load(study))


@app.command(rich_help_panel=STAGES)
def translate(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Put a sample of AnnoMI's transcripts, where there are any, into the study's language."""
    from mi_llm.construct import translate as stage

    work = listed(stage.questions, "translate")
    asking("translate", stage.translate, work, with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def split(study: StudyFile = MINI) -> None:
    """Divide the dialogs into training and test, and the test dialogs into rounds."""
    from mi_llm.construct.split import split as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def base(model: Model, study: StudyFile = MINI) -> None:
    """Put one base model's checkpoint in place."""
    from mi_llm.models.base import base as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command(rich_help_panel=STAGES)
def finetune(
    model: Model,
    study: StudyFile = MINI,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the memory and time it would take on this machine, and do nothing else")
    ] = False,
) -> None:
    """Tune one base model with LoRA."""
    from mi_llm.models import finetune as stage

    settings = load(study)
    (stage.dry_run if dry_run else stage.finetune)(settings, member(model, settings.models, "models", settings))


@app.command(rich_help_panel=STAGES)
def respond(model: Model, study: StudyFile = MINI) -> None:
    """Answer every test round with the base and the tuned model."""
    from mi_llm.models.respond import respond as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command(rich_help_panel=STAGES)
def prefer(model: Model, study: StudyFile = MINI) -> None:
    """Tune one model further, by which replies the lexical coder prefers."""
    from mi_llm.prefer.prefer import prefer as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command(rich_help_panel=STAGES)
def seeds(
    model: Model, seed: Annotated[int, typer.Argument(help="a further seed of the study")], study: StudyFile = MINI
) -> None:
    """Tune one model again with another seed, and score what it then answers."""
    from mi_llm.seeds.seeds import seeds as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings), seed)


@app.command(rich_help_panel=STAGES)
def benchmark(model: Model, study: StudyFile = MINI) -> None:
    """Let a base model and its tuned form answer multiple-choice questions: what tuning costs."""
    from mi_llm.benchmark.benchmark import benchmark as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings))


@app.command(rich_help_panel=STAGES)
def score(study: StudyFile = MINI) -> None:
    """Compare every reply with its reference."""
    from mi_llm.score.score import score as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def simulate(model: Model, study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Let standardized clients talk with a base model and its tuned form."""
    from mi_llm.miti import simulate as stage

    settings = with_mode(load(study), mode)
    member(model, settings.models, "models", settings)
    run, work = partial(stage.simulate, model=model), partial(stage.workload, model=model)
    asking(f"simulate {model}", run, work, settings, dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def safety(
    model: Model,
    *,
    study: StudyFile = MINI,
    personas: Annotated[Path | None, typer.Option(help="a file of clients; replaces safety.personas of the parameters")] = None,
    mode: Mode = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let clients in danger talk with a base model and its tuned form, and grade what the models do."""
    from mi_llm.apps.chat import beside, in_front
    from mi_llm.apps.chat.guard import faults
    from mi_llm.safety import safety as stage

    settings = with_mode(load(study), mode)
    if personas is not None:
        options = settings.safety.model_copy(update={"personas": str(personas)})
        settings = settings.model_copy(update={"safety": options})
    member(model, settings.models, "models", settings)
    guard = stage.Guard(in_front.answer, beside.under, beside.instead, faults)
    run, work = partial(stage.safety, model=model, guard=guard), partial(stage.workload, model=model)
    asking(f"safety {model}", run, work, settings, dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def blind(study: StudyFile = MINI) -> None:
    """Turn the transcripts into anonymous packets."""
    from mi_llm.miti.blind import blind as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def code(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Code every packet by MITI: by people, a language model, or from words alone."""
    from mi_llm.miti import code as stage

    asking("code", stage.code, listed(stage.questions, "code"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def summary(study: StudyFile = MINI) -> None:
    """Make the tables of the manual evaluation."""
    from mi_llm.miti.summary import summary as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def miti(study: StudyFile = MINI, mode: Mode = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Compare the automatic coders with AnnoMI's experts, and code the released dialogs."""
    from mi_llm.miti import miti as stage

    asking("miti", stage.miti, listed(stage.questions, "miti"), with_mode(load(study), mode), dry_run=dry_run, yes=yes)


@app.command(rich_help_panel=STAGES)
def audit(study: StudyFile = MINI) -> None:
    """Where the study reproduces the paper, check every numeric claim of it against its public data."""
    from mi_llm.audit.audit import audit as run

    run(load(study))


@app.command(rich_help_panel=STAGES)
def report(study: StudyFile = MINI) -> None:
    """Write the pages that show the results."""
    from mi_llm.report.page import report as run

    run(load(study))


@app.command(rich_help_panel=PEOPLE)
def chat(
    *,
    model_url: Annotated[
        str, typer.Option(help="a model server: `mi-llm serve`, or vLLM; without one, the study's own models are served")
    ] = "",
    study: StudyFile = MINI,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all, then set MI_LLM_CHAT_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    votes: Annotated[Path, typer.Option(help="file for the votes of blind comparisons")] = Path("votes.jsonl"),
    experiment: Annotated[
        Path | None, typer.Option(help="participants, consent, and arms of a study with people; what they say is then kept")
    ] = None,
    address: Annotated[str, typer.Option(help="public address of the chat, if it is not host and port: https://…")] = "",
    proxies: Proxies = "",
) -> None:
    """Open the demo chat: a research demo, not care."""
    from mi_llm.apps.chat.serve import serve as run

    run(load(study), model_url, host, port, votes, address=address, proxies=proxies, experiment=experiment)


@app.command(rich_help_panel=PEOPLE)
def serve(
    *,
    study: StudyFile = MINI,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all, then set MI_LLM_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    models: Annotated[str, typer.Option(help="only these models of the study, separated by commas")] = "",
    queue: Annotated[int, typer.Option(min=0, help="how many replies may wait in the queue of a model")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="the most seconds that a reply may take")] = 120,
) -> None:
    """Serve the base and tuned models over OpenAI's protocol."""
    from mi_llm.apps.model.server import serve as run

    settings = load(study)
    names = [member(name, settings.models, "models", settings) for name in models.split(",") if name] or [*settings.models]
    run(settings, names, host, port, queue=queue, seconds=timeout)


tool = typer.Typer(no_args_is_help=True, help="Run single tools on your own files; they need no study.")
app.add_typer(tool, name="tool", rich_help_panel=PEOPLE)
tool.command("score")(tools.score)
tool.command("code")(tools.code)
tool.command("agree")(tools.agree)
tool.command("tables")(tools.tables)


desk = typer.Typer(help="Open the coding desk, where raters code blinded transcripts in a browser.")
app.add_typer(desk, name="desk", rich_help_panel=PEOPLE)
Packets = Annotated[
    Path | None, typer.Option(help="folder of blinded packets with raters.json (default: packets, in the folder of --data)")
]
DeskData = Annotated[Path, typer.Option(help="folder for desk.sqlite, and for packets made of --transcripts")]
DESK = Path("desk")
Address = Annotated[str | None, typer.Option(help="public address of the desk, if it is not host and port: https://…")]


@desk.callback(invoke_without_command=True)
def desk_open(  # noqa: PLR0917 — typer passes options by name
    context: typer.Context,
    packets: Packets = None,
    data: DeskData = DESK,
    transcripts: Annotated[Path | None, typer.Option(help="your own sessions, to make packets of, without a study")] = None,
    raters: Annotated[str, typer.Option(help="who codes those sessions: names, separated by commas")] = "",
    overlap: Annotated[float, typer.Option(min=0, max=1, help="share of those sessions that all raters code")] = 0.3,
    speaker: tools.Speaker = None,
    column: tools.Column = None,
    gold: Annotated[
        Path | None, typer.Option(help="gold codes (codes.csv) of some sessions, which all raters code without knowing it")
    ] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8808,
    training: Annotated[Path | None, typer.Option(help="folder of training packets with gold codes.csv and globals.csv")] = None,
    training_first: Annotated[
        bool, typer.Option("--training-first", help="packets open to a rater who has finished all exercises")
    ] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="agreement (κ) below which the coordinator is warned")] = 0.6,
    address: Address = None,
    proxies: Proxies = "",
) -> None:
    """Open the coding desk. Personal links are printed once."""
    from mi_llm.apps.desk.prepare import GOLD, prepare
    from mi_llm.apps.desk.serve import serve
    from mi_llm.corpora.own.importing import settings_of

    if context.invoked_subcommand is not None:
        return
    if transcripts is not None:
        names = [name.strip() for name in raters.split(",") if name.strip()]
        packets = prepare(transcripts, data, names, overlap, gold, **settings_of(speaker or [], column or []))
    if transcripts is not None or (packets is None and gold is None):  # the gold codes of our own packets lie beside them
        gold = data / GOLD if (data / GOLD).is_file() else None
    serve(
        packets or data / "packets", data, host, port, training=training, training_first=training_first, gold=gold,
        threshold=threshold, address=address, proxies=proxies,
    )  # fmt: skip


@desk.command("links")
def desk_links(
    packets: Packets = None,
    data: DeskData = DESK,
    address: Annotated[str, typer.Option(help="public address of the desk")] = "http://127.0.0.1:8808",
    renew: Annotated[str | None, typer.Option(help="the person whose link is replaced")] = None,
) -> None:
    """Print links for people who have none yet, or replace one person's link."""
    from mi_llm.apps.desk.serve import links

    links(packets or data / "packets", data, address, renew)


@desk.command("export")
def desk_export(
    out: Annotated[Path, typer.Option(help="folder for the three files")], packets: Packets = None, data: DeskData = DESK
) -> None:
    """Write codes.csv, globals.csv, and consensus.csv of the transcripts that all their raters finished."""
    from mi_llm.apps.desk.serve import export

    export(packets or data / "packets", data, out)


cassette = typer.Typer(no_args_is_help=True, help="Show, check, merge, and export recorded answers.")
app.add_typer(cassette, name="cassette", rich_help_panel=SHARE)


@cassette.command("ls")
def cassette_ls(files: Files, failed: Annotated[bool, typer.Option("--failed", help="only answers that failed")] = False) -> None:
    """List the answers, one per line."""
    from mi_llm.llm.cassette import Cassette, line_of

    for path in files:
        for record in Cassette.open(existing(path)).records:
            if record["problem"] or not failed:
                print(line_of(record))


@cassette.command("show")
def cassette_show(file: File, key: Annotated[str, typer.Argument(help="the key's first characters")]) -> None:
    """Show the request with a key, and all its answers."""
    from mi_llm.llm.cassette import Cassette, chosen, shown

    print("\n\n".join(shown(record) for record in chosen(Cassette.open(existing(file)), key)))


@cassette.command("verify")
def cassette_verify(files: Files) -> None:
    """Check that no answer was changed after recording."""
    from mi_llm.llm.cassette import verify

    faults = {path: verify(existing(path)) for path in files}
    for path, messages in faults.items():
        print("\n".join(messages) or f"{path}: as recorded")
    sys.exit(1 if any(faults.values()) else 0)


@cassette.command("merge")
def cassette_merge(target: File, sources: Files) -> None:
    """Add to the first cassette the answers that only the others have."""
    from mi_llm.llm.cassette import merge

    print(f"{target}: {merge(target, [existing(path) for path in sources])} answers added")


@cassette.command("export")
def cassette_export(file: File, out: Annotated[Path, typer.Argument(help="a .csv file")]) -> None:
    """Write the answers as a table: subject, request, answer, tokens, times."""
    from mi_llm.llm.cassette import Cassette, export

    export(Cassette.open(existing(file)), out)


def existing(path: Path) -> Path:
    """The path, if it is a file; raises Problem otherwise."""
    if not path.is_file():
        raise Problem(str(path), "no such file", "a cassette", "correct the path")
    return path


def verb(stage: Stage) -> Callable[..., None]:
    """The command of a stage without options of its own: calls the function of its name in the module of its name."""

    def run(item: Annotated[str | None, typer.Argument()] = None, study: StudyFile = MINI) -> None:
        function = getattr(import_module(f"mi_llm.{stage.phase}.{stage.name}"), stage.name)
        function(load(study), *([item] if item else []))

    return run


VERBS = {command.callback.__name__ for command in app.registered_commands if command.callback}
for row in stages().values():
    if row.name not in VERBS:
        app.command(row.name, help=row.what, rich_help_panel=STAGES)(verb(row))


template = typer.Typer(no_args_is_help=True, help="Show how a dialog becomes tokens.")
app.add_typer(template, name="template", rich_help_panel=STUDY)


@template.command("check")
def template_check(model: Model, study: StudyFile = MINI) -> None:
    """Compare a dialog's tokens as trained, answered, served, and exported. Exit status 1: they differ."""
    from mi_llm.models.template_check import check

    settings = load(study)
    sys.exit(check(settings, member(model, settings.models, "models", settings)))


@tool.command("guard")
def tool_guard(
    file: Annotated[Path, typer.Argument(help="lines of plain text, or of JSON with id and messages (replies: id and text)")],
    replies: Annotated[bool, typer.Option("--replies", help="read counselor replies, not client messages")] = False,
    json: Annotated[bool, typer.Option("--json", help="print one JSON line per input line instead of a table")] = False,
) -> None:
    """Run the chat's crisis guard over a file, one line after the other. Exit status 0 whatever it finds."""
    from mi_llm.apps.chat.screening import screening

    screening(existing_text(file), replies=replies, as_json=json)


@tool.command("guard-train")
def tool_guard_train() -> None:
    """Fit the crisis guard's detectors again from their training sentences, after these changed."""
    from mi_llm.apps.chat.training import training

    training()


@tool.command("guard-measure")
def tool_guard_measure(
    folder: Annotated[Path, typer.Argument(help="danger.jsonl, lookalikes.jsonl, talks.jsonl, replies.jsonl")],
    out: Annotated[Path, typer.Argument(help="CSV file to which the figures are added")],
    name: Annotated[str, typer.Option("--set", help="what the set is called in the table")],
    version: Annotated[str, typer.Option("--guard", help="which guard is measured")],
) -> None:
    """Measure the crisis guard on a set with labels: shares by category and language, with intervals."""
    from mi_llm.apps.chat.measuring import measure

    measure(folder, out, name=name, version=version)


def existing_text(path: Path) -> Path:
    """The path, if it is a file; raises Problem otherwise."""
    if not path.is_file():
        raise Problem(str(path), "no such file", "a file of lines", "correct the path")
    return path


exporting = typer.Typer(no_args_is_help=True, help="Prepare the study's outputs for others.")
app.add_typer(exporting, name="export", rich_help_panel=SHARE)


@exporting.command("adapter")
def export_adapter(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder to write; its name becomes the repository's name")],
    study: StudyFile = MINI,
) -> None:
    """Write a tuned model's adapter as a repository for the hub, with card, license, notice, and checksums."""
    from mi_llm.models.export import export as run

    settings = load(study)
    run(settings, member(model, settings.models, "models", settings), out)


@exporting.command("llamafactory")
def export_llamafactory(
    out: Annotated[Path, typer.Option(help="folder to write")],
    study: StudyFile = MINI,
) -> None:
    """Write the study's dialogs and settings for LLaMA-Factory: records, dataset_info.json, YAML files."""
    from mi_llm.models.llamafactory import export as run

    run(load(study), out)


archive = typer.Typer(
    no_args_is_help=True, help="Build or check the archive: one zip file from which the study runs without a network."
)
app.add_typer(archive, name="archive", rich_help_panel=SHARE)


@archive.command("build")
def archive_build(
    out: Annotated[Path, typer.Option(help="folder for the zip file")] = Path("dist"),
    image: Annotated[Path | None, typer.Option(help="a container image to include: docker save, or an OCI tarball")] = None,
) -> None:
    """Write the archive of the checked-out commit and its finished outputs."""
    from mi_llm.archive.build import build

    print(build(out, image))


@archive.command("verify")
def archive_verify(file: Annotated[Path, typer.Argument(help="an archive")]) -> None:
    """Check that an archive is complete and unchanged."""
    from mi_llm.archive.verify import verify

    sys.exit(verify(file))


@archive.command("packages")
def archive_packages() -> None:
    """Update packages.csv from pip's report, after requirements.lock changed."""
    from mi_llm.archive.packages import renew

    renew()


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
    if not sys.stderr.isatty():
        sys.stderr = Lines(sys.stderr)
    guarded(app)
