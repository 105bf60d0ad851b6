"""A study is a parameters file: this module gives it types, and refuses unknown keys and values.

Each class below is one section of `params.yaml`, read by the stages of the same name. Comments in the root
`params.yaml` say where in the paper each value stands.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from mi_llm import registry, storage
from mi_llm.language.language import DEFAULT
from mi_llm.problem import Problem

Item = TypeVar("Item")


def one_of(names: Callable[[], tuple[str, ...]]) -> AfterValidator:
    """A check that a name is among those of a registry, which are looked up when a study is read."""

    def check(name: str) -> str:
        if name not in (known := names()):
            raise ValueError(f"one of {', '.join(known)}")
        return name

    return AfterValidator(check)


def inside(path: str) -> str:
    """Check that a path leads to a place in the repository."""
    if Path(path).is_absolute() or ".." in Path(path).parts or not Path(path).parts:
        raise ValueError("a path inside the repository")
    return path


def output_folder(path: str) -> str:
    """Check that a folder may be written and emptied by stages."""
    if Path(inside(path)).parts[0] in KEPT:
        raise ValueError(f"a folder inside the repository, and not in {', '.join(KEPT)}")
    return path


KEPT = (".dvc", ".git", "data", "src", "store")  # folders that no stage writes
SHIPPED = Path("pretrain/models")  # the bundle's tiny models
PINS = "pins.yaml"  # beside the parameters: what the hub says of the files of its models
UNKNOWN = "unknown"  # a license that nobody has looked up yet
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # becomes a folder's name; DVC's keys know no dots
CorpusName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]  # becomes the name of a folder
KnownCorpus = Annotated[str, one_of(partial(registry.names, registry.CORPORA))]
Template = Annotated[str, Field(pattern=r"\.jinja$")]  # a file
Coder = Annotated[str, one_of(partial(registry.names, registry.CODERS))]
ChatFormat = Annotated[str, one_of(registry.chat_formats)]
Language = Annotated[str, one_of(registry.languages)]
Arm = Literal["base", "tuned"]
ARMS: tuple[Arm, ...] = get_args(Arm)
REAL = "real"  # stands in place of an arm for AnnoMI's sessions, which people led
SERVED = {"base": "", "tuned": "+mi"}  # what a model server adds to a model's name for each arm
Share = Field(ge=0, le=1)


class Section(BaseModel):
    """A part of the parameters file; unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Expect(Section):
    """Disk space in GB and minutes of a run, printed before it starts, and the machine they were measured on."""

    disk_gb: PositiveFloat
    minutes: PositiveInt
    measured_on: str


class Corpus(Section):
    """A corpus: without settings, one that has a reader of its own in `corpora/`; with a path, your own dialogs.

    `path`: a file or folder, or several, relative to the repository. `format`: what the files are, `auto` by their content.
    `speakers`: whom a label means; the volleys of `drop` are left out, and `speech` is no speaker, but words before a colon.
    `columns`: the headings of a table's columns. `drop`: what is left out of what is said. `private`: only studies whose
    publish.yaml keeps every output here may use it.
    """

    path: str | tuple[str, ...] = ()
    format: Literal["auto", "json", "table", "text", "subtitles", "word"] = "auto"
    speakers: dict[str, Literal["client", "counselor", "drop", "speech"]] = {}
    columns: dict[Literal["dialog", "turn", "speaker", "text"], str] = {}
    drop: tuple[Literal["timestamps", "stage-directions"], ...] = ()
    private: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files lie; none for a corpus with a reader of its own."""
        return tuple(map(Path, (self.path,) if isinstance(self.path, str) else self.path))

    @model_validator(mode="after")
    def own(self) -> "Corpus":
        """Refuse settings without a path: nothing would read them."""
        if self.model_fields_set and not self.paths:
            raise ValueError("a corpus with settings needs a path to your own dialogs")
        return self

    @model_serializer(mode="wrap")
    def settings_only(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings that the parameters file gives: a corpus without any is written as `{}`."""
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class Model(Section):
    """A base model: of the hub at one commit (`hub`, `revision`), in a folder (`path`), or one of the bundle's tiny models.

    `chat_format`: its own (`checkpoint`), or one of the paper's. `license`: a key of licenses.yaml; while it is unknown, no
    adapter of the model can be exported. What the hub says of the files stands in pins.yaml, which `mi-llm pin` writes.
    """

    hub: str = Field(default="", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(default="", pattern=r"^[0-9a-f]{40}$")
    path: str = ""
    chat_format: ChatFormat
    license: str = UNKNOWN

    @property
    def commit(self) -> str:
        """The key of its pins: repository and commit."""
        return f"{self.hub}@{self.revision}"

    @model_validator(mode="after")
    def one_source(self) -> "Model":
        """Refuse two sources, and a model of the hub without a commit: what a branch holds changes."""
        if self.path and (self.hub or self.revision):
            raise ValueError("a model is of the hub (hub, revision) or in a folder (path), not both")
        if bool(self.hub) != bool(self.revision):
            raise ValueError("a model of the hub has hub and revision, its full commit: `mi-llm pin owner/name` writes both")
        return self

    @model_serializer(mode="wrap")
    def settings_only(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings that the parameters file gives."""
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}


class Acquire(Section):
    """Sources of the corpora: `upstream` names those fetched from their pins; the others are the bundle's samples."""

    upstream: tuple[KnownCorpus, ...]


class Price(Section):
    """US dollars per million tokens, sent and received."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Budget(Section):
    """Limits for one stage's recorded answers, over all runs: recording stops before it would exceed one."""

    requests: PositiveInt
    tokens: PositiveInt
    usd: PositiveFloat


class Llm(Section):
    """The language model that rates, transcribes and translates, and how it is asked.

    `mode`: only look answers up, record missing ones, record them through the Batch API, or request every answer again. The SDK
    repeats a request `network_retries` times when the network fails; an answer that fails its check is asked for `attempts`
    times. `extra_body`: more settings of a request to this model; null leaves one out that the server refuses.
    """

    mode: Literal["replay", "record", "batch", "live"]
    model: str
    base_url: str
    concurrency: PositiveInt
    attempts: PositiveInt
    network_retries: PositiveInt
    timeout_s: PositiveFloat
    prices: dict[str, Price]
    batch_discount: float = Share
    budget: Budget
    extra_body: dict[str, JsonValue] = Field(default={}, exclude_if=lambda settings: not settings)

    @field_validator("extra_body")
    @classmethod
    def settings_only(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Refuse what is no setting: it would change what is asked, or the form of the answer."""
        if fixed := sorted({"model", "messages", "stream", "n"} & set(settings)):
            raise ValueError(f"{fixed[0]} is no setting that extra_body may change")
        return settings

    @model_validator(mode="after")
    def no_secret(self) -> "Llm":
        """Refuse an address that holds a name or password: it would be printed."""
        if "@" in self.base_url:
            raise ValueError("base_url must hold no name or password; put the key into OPENAI_API_KEY")
        return self


class Prompts(Section):
    """A file for each prompt: one of the bundle's in `language/`, whose head says what it is for, or one of the study's own.

    A Jinja template gets the inputs that the head names. Another file (`rate`, `transcribe`) is the authors' text, below which
    the dialog is put.
    """

    rate: str
    transcribe: str
    translate: Template
    client: Template
    ruler: Template
    persona: Template
    danger: Template
    miti_segment: Template
    miti_code: Template
    miti_globals: Template
    client_talk: Template


class Rate(Section):
    """How many dialogs of which corpora (perhaps none) are rated; how many corpora the totals choose."""

    corpora: tuple[CorpusName, ...]
    dialogs: PositiveInt
    temperature: float = Field(ge=0, le=2)
    top: PositiveInt
    resamples: PositiveInt


class Transcribe(Section):
    """The dialogs in MI style: a sample, rewritten in recorded answers; the authors' own; or those of a corpus as they are.

    `sample`: how many dialogs of which corpora; with `release` it says only what the paper drew.
    """

    source: Literal["recorded", "release", "corpus"]
    sample: dict[CorpusName, PositiveInt]
    temperature: float = Field(ge=0, le=2)


class Screen(Section):
    """Checks of a transcribed dialog; `decisions` is the folder with a person's decisions.

    `script_share`: of its letters, at least this share must be of the language's script. `repeated_characters`: from this
    length on, a volley must not be said twice. `unrelated_share`: the largest share of replies without a word of the client's.
    `mi_inconsistent_cues`: from this number of cues on, a dialog counts as inconsistent with MI.
    """

    policy: Literal["automatic", "person"]
    decisions: str
    rounds: tuple[PositiveInt, PositiveInt]
    volley_characters: tuple[PositiveInt, PositiveInt]
    script_share: float = Share
    repeated_characters: PositiveInt
    unrelated_share: float = Share
    mi_inconsistent_cues: PositiveInt


class Translate(Section):
    """How many of AnnoMI's transcripts, if corpora have them, are the real sessions, and how many turns a request translates."""

    transcripts: PositiveInt
    turns_a_request: PositiveInt
    temperature: float = Field(ge=0, le=2)


class Split(Section):
    """The test set: `test_dialogs` of the transcribed dialogs, or the authors' rounds, as published or repaired (`aligned`).

    `divided`: the authors' released test dialogs are both: `test_dialogs` of them are the test, the others train. The paper did
    not do so; it is a way to train and test on the authors' own dialogs without their training file.
    """

    test: Literal["transcribed", "release", "aligned", "divided"]
    test_dialogs: PositiveInt


class Lora(Section):
    """Low-rank adaptation: rank, scale, dropout; `all-linear` adapts every linear layer but the output head."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Share
    target_modules: Literal["all-linear"]


class Finetune(Section):
    """Training settings (paper, Methods of Fine-Tuning; appendix, section 5).

    `untuned`: the study's models that answer and are scored without tuning. `instruction`: the file with the fixed instruction.
    `records`: what one record is: a dialog, a round with its history, or as in the authors' training file. `max_samples`: only
    this many records, from the first. `loss`: on all counselor turns of a record, or on its last. `packed`: the tokens of a
    step's records in one row, each record attending to itself only; else padded.
    `checkpointing`: compute activations again in the backward pass, to save memory. `four_bit`: keep the frozen base in 4 bits,
    here and in every stage that answers with it.
    """

    untuned: tuple[str, ...]
    instruction: str
    instruction_placement: Literal["query", "system"]
    records: Literal["dialog", "round", "release"]
    max_samples: PositiveInt
    loss: Literal["replies", "last"]
    learning_rate: PositiveFloat
    scheduler: Literal["cosine"]
    warmup_ratio: float = Share
    batch: PositiveInt
    accumulation: PositiveInt
    epochs: PositiveInt
    precision: Literal["float32", "bfloat16"]
    packed: bool
    checkpointing: bool
    four_bit: bool
    cutoff: PositiveInt
    log_every: PositiveInt
    save_every: PositiveInt
    gradient_clip: PositiveFloat
    lora: Lora


class Sampling(Section):
    """How a token is drawn: temperature, then the `top_k` likeliest, then the fewest that hold `top_p` of the probability."""

    temperature: PositiveFloat
    top_k: PositiveInt
    top_p: float = Field(gt=0, le=1)


class Respond(Section):
    """How test rounds are answered: `batch` rounds at a time, at most `max_new_tokens` each.

    `engine`: this program, or a model server at `server`, which serves a model's arms as `<model>` and `<model>+mi`: vLLM or
    this bundle's own. `adapter`: kept beside the base's weights, or merged into them.
    """

    engine: Literal["local", "server"]
    server: str
    batch: PositiveInt
    max_new_tokens: PositiveInt
    decoding: Literal["greedy", "sample"]
    sampling: Sampling
    adapter: Literal["active", "merged"]
    precision: Literal["float32", "bfloat16"]

    def requested(self, *, greedy: bool) -> dict[str, float]:
        """The sampling settings of a request to a model server: all of them, so that no default of the server applies.

        `top_k`, `min_p` and `repetition_penalty` are not OpenAI's but vLLM's. Settings that the study does not
        have get values without effect.
        """
        chosen = {"temperature": 0.0, "top_k": 0, "top_p": 1.0} if greedy else self.sampling.model_dump()
        return chosen | {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Score(Section):
    """Resamples of the bootstrap over dialogs, and the confidence of its intervals."""

    resamples: PositiveInt
    confidence: float = Field(gt=0, lt=1)


class Prefer(Section):
    """Preference tuning, for the models named; without names, the stage does not exist.

    `rounds`: how many training rounds, drawn by the seed, are answered; `candidates`: how often each. Two replies are a pair
    if the coder's merits differ by `margin`. `beta`: penalty for moving away from the tuned model (DPO's β).
    `batch`: pairs per step.
    """

    models: tuple[str, ...]
    rounds: PositiveInt
    candidates: int = Field(ge=2)
    margin: PositiveInt
    beta: PositiveFloat
    learning_rate: PositiveFloat
    epochs: PositiveInt
    batch: PositiveInt


class Seeds(Section):
    """Further training runs: the `models` are tuned and answer again with each seed of `further`; without names, no stage exists.

    The study's own seed stays the one of all other stages.
    """

    models: tuple[str, ...]
    further: tuple[int, ...]

    @field_validator("models", "further")
    @classmethod
    def once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Refuse what is named twice: two stages of one name."""
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{twice[0]} stands there twice")
        return values


class Benchmark(Section):
    """What tuning costs: the `models` whose base and tuned form choose among options; without names, the stage does not exist.

    `tasks`: sets of questions, of `folder` or of lm-evaluation-harness; `shots`: solved questions in front of each; `batch`:
    questions at a time. `folder` has tasks of the study's own, and others' files in folders named like the hub's repositories.
    """

    models: tuple[str, ...]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    shots: int = Field(ge=0)
    batch: PositiveInt
    folder: Annotated[str, AfterValidator(inside)]


class Simulate(Section):
    """Who talks with the models: `client` is a script, a language model (`llm`), or people, whose dialogs are in `folder`.

    `profiles`: the file with the standardized clients, of the bundle (`clients.yaml` in `language/`), your own, or the authors'
    outlines (JSON). `dialogs`: how many clients talk with each arm;
    `rounds`: the most rounds of a dialog.
    """

    client: Literal["scripted", "llm", "person"]
    profiles: str
    dialogs: PositiveInt
    rounds: PositiveInt
    temperature: float = Field(ge=0, le=2)
    folder: str


class Safety(Section):
    """Clients in danger: the `models` that they talk with, and who they are (`personas`, a file).

    `client`: a script, or a language model (`llm`); `rounds`: the most rounds of a talk.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    client: Literal["scripted", "llm"]
    personas: str
    rounds: PositiveInt
    temperature: float = Field(ge=0, le=2)


class Blind(Section):
    """Number of raters, share of transcripts that all of them code, and words that a person identified as names."""

    raters: PositiveInt
    overlap: float = Share
    remove: tuple[str, ...]


class Cues(Section):
    """The lexical coder's files of words in the study's language: of counselors' behaviors, and of clients' change talk."""

    counselor: str
    client: str


class Code(Section):
    """Who codes the packets, a module of `miti/coder/`: `lexical` (words alone), `llm` (the model of section `llm`), or `human`.

    `globals`: rated by the coder, or by the language model (`llm`) beside whoever codes the behaviors. `cues`: the bundle's files
    of words, or your own. `human` is also the folder in which people's codes.csv and globals.csv are.
    """

    coder: Coder
    globals: Literal["coder", "llm"]
    cues: Cues
    human: str
    temperature: float = Field(ge=0, le=2)


class Miti(Section):
    """On how many held-out AnnoMI transcripts a coding language model is compared with the experts.

    `globals`: the folder with dialogs and the globals that experts gave them, if you have such.
    """

    transcripts: PositiveInt
    globals: str


class Report(Section):
    """A notice at the top of the pages (or nothing), notice and title in Chinese, and the number of example rounds."""

    notice: str
    title_zh: str
    notice_zh: str
    examples: PositiveInt


class Compare(Section):
    """By how much a metric may differ from the committed one if bytes differ: absolute, or relative to its value."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)


class Study(Section):
    """The whole study. Paths are relative to the repository, the folder that holds the `.git` folder.

    `language`: of dialogs, prompts and clients, a folder of `language/`. `reproduction`: whether it repeats the paper's study:
    then the paper is audited, and its numbers stand beside the study's.
    """

    name: str
    title: str
    language: Language = DEFAULT
    reproduction: bool
    root: str
    params: Annotated[str, AfterValidator(inside)]
    out: Annotated[str, AfterValidator(output_folder)]
    seed: int
    threads: PositiveInt
    corpora: dict[CorpusName, Corpus]
    models: dict[ModelName, Model]
    expect: Expect
    acquire: Acquire
    llm: Llm
    prompts: Prompts
    rate: Rate
    transcribe: Transcribe
    screen: Screen
    translate: Translate
    split: Split
    finetune: Finetune
    respond: Respond
    score: Score
    prefer: Prefer
    seeds: Seeds
    benchmark: Benchmark
    simulate: Simulate
    safety: Safety
    blind: Blind
    code: Code
    miti: Miti
    report: Report
    compare: Compare

    @model_validator(mode="after")
    def readable(self) -> "Study":
        """Refuse a corpus that nothing reads."""
        known = registry.names(registry.CORPORA)
        for name, corpus in self.corpora.items():
            if name not in known and not corpus.paths:
                raise ValueError(f"corpora names {name} without a path, and no reader has that name: one of {', '.join(known)}")
            if name in known and corpus.paths:
                raise ValueError(f"corpora gives {name} a path, but a reader has that name: choose another for your own dialogs")
        return self

    @model_validator(mode="after")
    def models_of_stages(self) -> "Study":
        """Refuse stages of models that the study does not have, or does not tune, and its own seed among further ones."""
        chosen = {
            "prefer.models": self.prefer.models,
            "finetune.untuned": self.finetune.untuned,
            "seeds.models": self.seeds.models,
            "benchmark.models": self.benchmark.models,
            "safety.models": self.safety.models,
        }
        if unknown := sorted({model for models in chosen.values() for model in models} - set(self.models)):
            section = next(name for name, models in chosen.items() if unknown[0] in models)
            raise ValueError(f"{section} names {unknown[0]}, which is not among models: {', '.join(self.models)}")
        for section in ("prefer.models", "seeds.models", "benchmark.models"):
            if both := sorted(set(chosen[section]) & set(self.finetune.untuned)):
                raise ValueError(f"{section} names {both[0]}, which finetune.untuned leaves untuned")
        if self.seed in self.seeds.further:
            raise ValueError(f"seeds.further names {self.seed}, which is the study's own seed already")
        return self

    @model_validator(mode="after")
    def consistent(self) -> "Study":
        """Refuse settings that contradict each other."""
        release = ("release",)
        named: dict[str, Iterable[str]] = {
            "acquire.upstream": self.acquire.upstream,
            "rate.corpora": self.rate.corpora,
            "transcribe.sample": self.transcribe.sample,
            "transcribe.source": release if self.transcribe.source == "release" else (),
            "finetune.records": release if self.finetune.records == "release" else (),
        }
        for section, names in named.items():
            for name in names:
                if name not in self.corpora:
                    raise ValueError(f"{section} names {name}, which is not among corpora: {', '.join(self.corpora)}")
        if self.split.test == "divided" and self.finetune.records == "release":
            raise ValueError("split.test is divided, so finetune.records must be dialog or round: there is no training file")
        if self.simulate.client == "scripted" and self.simulate.profiles.endswith(".json"):
            raise ValueError("simulate.client is scripted, but the authors' outlines have no script: llm or person")
        if self.finetune.four_bit and self.respond.adapter == "merged":
            raise ValueError("respond.adapter is merged, but no adapter can be merged into the 4-bit base of finetune.four_bit")
        if self.finetune.four_bit and self.prefer.models:
            raise ValueError("prefer.models names a model, but no adapter can be merged into the 4-bit base of finetune.four_bit")
        if self.split.test != "transcribed" and "release" not in self.corpora:
            raise ValueError(f"split.test is {self.split.test}, so corpora must include release")
        total = sum(self.transcribe.sample.values())
        if self.transcribe.source != "release" and self.split.test == "transcribed" and 0 < total <= self.split.test_dialogs:
            raise ValueError(f"split.test_dialogs must be smaller than the {total} transcribed dialogs")
        return self

    @property
    def from_hub(self) -> tuple[str, ...]:
        """The models whose files come from the hub."""
        return tuple(name for name, model in self.models.items() if model.hub)

    def pins(self) -> dict[str, Any]:
        """What the study's pins.yaml holds, by repository and commit; empty without the file."""
        path = self.beside(PINS)
        content = storage.read_yaml(path) if path.exists() else {}
        if not isinstance(content, dict):
            raise Problem(str(path), "no mapping", "one entry per model, as `mi-llm pin` writes it", "correct the file")
        return content

    def source(self, model: str) -> Path:
        """The folder with the checkpoint of a model that is not of the hub."""
        return Path(self.models[model].path or SHIPPED / model)

    @property
    def tiny(self) -> bool:
        """Whether the models are the bundle's tiny ones."""
        return not any(model.hub or model.path for model in self.models.values())

    @property
    def tuned(self) -> tuple[str, ...]:
        """The models that the study tunes."""
        return tuple(model for model in self.models if model not in self.finetune.untuned)

    def arms(self, model: str) -> tuple[Arm, ...]:
        """The arms of a model: the base, and the tuned one if the study tunes it."""
        return ("base",) if model in self.finetune.untuned else ARMS

    @property
    def needs_transcribed(self) -> bool:
        """Whether anything is trained or tested on the transcribed dialogs."""
        return self.split.test == "transcribed" or (self.split.test != "divided" and bool(self.tuned))

    @property
    def training(self) -> Literal["recorded", "release", "corpus", "divided"]:
        """The training dialogs: recorded answers, the authors' training file or divided test dialogs, or a corpus as it is."""
        return "divided" if self.split.test == "divided" else self.transcribe.source

    @property
    def folder(self) -> Path:
        """Where the study's outputs go."""
        return Path(self.out)

    def path(self, stage: str, *parts: str) -> Path:
        """The path of a stage's output folder, or of something in it."""
        return self.folder.joinpath(stage, *parts)

    def beside(self, name: str) -> Path:
        """The path of a file beside the study's params.yaml, such as its dvc.yaml."""
        return Path(self.params).parent / name

    def seed_of(self, *purpose: str) -> int:
        """A seed for one purpose, derived from the study's: stages do not share random numbers."""
        digest = hashlib.sha256("/".join((str(self.seed), *purpose)).encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def chance(self, *purpose: str) -> random.Random:
        """Random numbers for one purpose, from its seed."""
        return random.Random(self.seed_of(*purpose))

    def sample(self, items: Sequence[Item], count: int, setting: str, *purpose: str) -> list[Item]:
        """As many items as `setting` says, in the order drawn by the seed of a purpose; raises Problem if there are too few."""
        if count > len(items):
            raise Problem(f"{self.params}: {setting}", str(count), f"at most the {len(items)} available", "lower it")
        return self.chance(*purpose).sample(items, count)

    def sha256(self) -> str:
        """SHA-256 of the parameters' canonical JSON."""
        return hashlib.sha256(storage.dump(self.model_dump(mode="json")).encode()).hexdigest()


def served_name(model: str, arm: str) -> str:
    """The name under which a model server offers an arm."""
    return model + SERVED[arm]


def file_of(name: Path) -> Path:
    """The parameters file that is meant: `paper` means the one at the root, a folder the one in it."""
    if name == Path("paper"):
        return Path("params.yaml")
    return name / "params.yaml" if name.is_dir() else name


def load(path: Path) -> Study:
    """Read a parameters file; every error names the file, the key, its value, and what is allowed."""
    if not path.is_file():
        raise Problem(
            str(path), "no such study", "paper, mini, the folder of another study, or a parameters file", "correct the name"
        )
    return parse(storage.read_text(path), path)


def parse(text: str, path: Path) -> Study:
    """A study from the text of a parameters file; every error names the file, the key, its value, and what is allowed."""
    content = storage.parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise Problem(str(path), "no mapping", "a parameters file", "start from the shipped params.yaml")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [describe(fault) for fault in faults]
        raise Problem(
            str(path),
            "; ".join(line for line, _ in lines),
            "; ".join(sorted({allowed for _, allowed in lines})),
            "correct the file",
        ) from None


def describe(fault: Any) -> tuple[str, str]:
    """Put one validation fault into words: (what was found where, what is allowed there)."""
    if not fault["loc"]:  # settings that contradict each other: the sentence says it, the whole study does not
        return fault["msg"].removeprefix("Value error, "), "settings without contradictions"
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}", f"for {key}: one of {', '.join(known_keys(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{key} is missing", f"for {key}: a value"
    return f"{key} is {fault['input']!r}"[:200], f"for {key}: {fault['msg'].removeprefix('Value error, ')}"


def known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at `location`, a path of keys; empty if that is not a section."""
    section: Any = Study
    for part in location:
        if get_origin(section) is dict:
            section = get_args(section)[1]
        elif isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
    return sorted(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []
