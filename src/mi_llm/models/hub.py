"""Transport of the hub's models: from the commit that `pins.yaml` describes to verified files on this machine.

A folder named by `MI_LLM_MODELS` is looked at first; it holds `<model>/` or `<owner>--<name>/`. Else the files are downloaded
from the hub (`HF_ENDPOINT` for a mirror) into `<out>/base/.<model>.download/`, which outlives an interrupted stage: a download
goes on where it stopped. Nothing is fetched before there is room for it and a person has accepted the license.
"""

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx2
import psutil
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from tqdm import tqdm

from mi_llm import storage
from mi_llm.engine.estimate import Shape, weight_bytes
from mi_llm.models.licenses import License, license_of
from mi_llm.problem import Problem
from mi_llm.study import PINS, Study

HUB = "https://huggingface.co"
TIMEOUT = 30  # seconds for the list of files
CHUNK = 1 << 22  # bytes hashed at a time
PYTHON_BYTES = 2e9  # main memory that Python with PyTorch takes
REMEDY = "use another HF_ENDPOINT, or a folder with the files (MI_LLM_MODELS)"


class Original(BaseModel):
    """What the authors' own repository says of positions and norms, and whether it keeps q, k and v of a layer in one matrix."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    rope_theta: PositiveFloat
    partial_rotary_factor: PositiveFloat = 1.0
    rms_norm_eps: PositiveFloat
    joined_qkv: bool = False


class Pin(BaseModel):
    """What is known of a file before it is fetched: bytes, and SHA-256 or git blob id."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: NonNegativeInt | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    git: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")

    @property
    def hash(self) -> str | None:
        """The hash that the file must have."""
        return self.sha256 or self.git


class Pinned(BaseModel):
    """One entry of `pins.yaml`; the head of the root's explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    files: dict[str, Pin]
    parameters: PositiveInt
    shape: Shape
    converted: bool = False
    original: Original | None = None
    license_file: str = ""
    citation: str = ""

    @property
    def download_gb(self) -> float:
        """Size of the files in 10^9 bytes; where not all sizes are known, that of the weights in BF16."""
        sizes = [pin.bytes for pin in self.files.values() if pin.bytes is not None]
        total = sum(sizes) if len(sizes) == len(self.files) else weight_bytes(self.shape, "bfloat16")
        return math.ceil(total / 1e8) / 10


class Entry(Pinned):
    """A model of the hub: its pins, where it is, and its license."""

    repository: str
    revision: str
    license: License


@dataclass(frozen=True)
class Remote:
    """A file as the hub describes it: size in bytes, and its SHA-256 (large files) or git blob id (small ones)."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Obtained:
    """The folder with a model's files, their SHA-256 by name, and the names of those without a known checksum."""

    folder: Path
    sha256: dict[str, str]
    unverified: tuple[str, ...]


def entry_of(study: Study, model: str) -> Entry:
    """One of the study's models with what `pins.yaml` says of its files; raises Problem if there is nothing that can be used."""
    named, license, pins = study.models[model], license_of(study, model), study.pins()
    where = f"{study.beside(PINS)}: {named.commit}"
    if named.commit not in pins:
        remedy = f"run mi-llm pin {named.hub} --revision {named.revision} --name {model} --study {study.params}"
        raise Problem(where, "no such entry", "what the hub says of the files", remedy)
    try:
        pinned = Pinned.model_validate(pins[named.commit])
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False)]
        raise Problem(where, "; ".join(faults), "an entry as `mi-llm pin` writes it", "correct it") from None
    page = (
        f"{HUB}/{named.hub}/blob/{named.revision}/{quote(pinned.license_file)}" if pinned.license_file else f"{HUB}/{named.hub}"
    )
    return Entry(
        **pinned.model_dump(exclude={"citation"}),
        citation=pinned.citation or f"{named.hub}, {HUB}/{named.hub}",
        repository=named.hub,
        revision=named.revision,
        license=license.model_copy(update={"address": license.address or page}),
    )


def beside(study: Study, model: str, name: str) -> Path:
    """A path that DVC does not clear, beside the model's output."""
    return study.folder / "base" / f".{model}.{name}"


def local_folder(model: str, entry: Entry) -> Path | None:
    """The model's folder inside the folder that MI_LLM_MODELS names, if there is one."""
    named = os.environ.get("MI_LLM_MODELS")
    if not named:
        return None
    if not Path(named).is_dir():
        raise Problem(named, "no such folder", "a folder with the models' files", "correct MI_LLM_MODELS, or unset it")
    names = (model, entry.repository.replace("/", "--"))
    return next((Path(named) / name for name in names if (Path(named) / name).is_dir()), None)


def check_room(study: Study, model: str, entry: Entry) -> None:
    """Raise Problem if this machine has too little disk (for the rest of the download and a converted copy) or main memory."""
    download, source = beside(study, model, "download"), local_folder(model, entry)
    there = sum(file.stat().st_size for file in download.glob("*") if file.is_file()) if download.is_dir() else 0
    study.folder.mkdir(parents=True, exist_ok=True)
    elsewhere = source is not None and source.stat().st_dev != study.folder.stat().st_dev  # no hard links between file systems
    to_come = 0 if source else max(0.0, entry.download_gb - there / 1e9)
    copy = weight_bytes(entry.shape, "bfloat16") / 1e9 if entry.converted else entry.download_gb * elsewhere
    free = shutil.disk_usage(study.folder).free / 1e9
    if free < to_come + copy:
        raise Problem(
            f"disk of {study.out}",
            f"{free:.1f} GB are free",
            f"{to_come + copy:.1f} GB for {model}: {to_come:.1f} GB of download, {copy:.1f} GB of copy",
            f"free some space, or put {study.out} on a larger disk",
        )
    import torch

    largest = 2 * 4 * entry.shape.embedding / 1e9  # the largest matrix twice in float32, as conversion may hold it
    on_cpu = 0 if torch.cuda.is_available() else weight_bytes(entry.shape, study.finetune.precision) / 1e9
    needed, there_is = PYTHON_BYTES / 1e9 + max(largest, on_cpu), psutil.virtual_memory().total / 1e9
    if there_is < needed:
        raise Problem(
            "main memory",
            f"{there_is:.1f} GB",
            f"{needed:.1f} GB for {model}" + (", which without a GPU is held in main memory" if on_cpu > largest else ""),
            "use a larger machine (`mi-llm doctor` says what the models need)",
        )


def acceptance(model: str, entry: Entry) -> dict[str, str]:
    """What is remembered of an accepted license: it holds for one revision of one model."""
    return {"model": model, "license": entry.license.name, "revision": entry.revision}


def remembered(study: Study, model: str, entry: Entry) -> bool:
    """Whether a person has accepted a model's license in an earlier run."""
    path = beside(study, model, "license.json")
    return path.exists() and bool(storage.read_json(path) == acceptance(model, entry))


def in_place(study: Study, model: str, entry: Entry) -> bool:
    """Whether stage `base` has made this revision of a model."""
    record = study.path("base", model, "source.json")
    return record.exists() and bool(storage.read_json(record).get("revision") == entry.revision)


def accepted_by_environment() -> set[str]:
    """The models whose licenses the environment says are accepted."""
    return {name.strip() for name in os.environ.get("MI_LLM_ACCEPT_LICENSES", "").split(",")} - {""}


def accept_license(study: Study, model: str, entry: Entry) -> None:
    """Show a model's license and have it accepted, once for each revision: by a person at a terminal, or by the environment."""
    if remembered(study, model, entry):
        return
    license = entry.license
    duties = "".join(f"\n  - {duty}" for duty in license.duties)
    print(f"\n{model} ({entry.repository}) comes under: {license.name}\n  {license.address}{duties}\n", file=sys.stderr)
    named = accepted_by_environment()
    if model not in named:
        if not sys.stdin.isatty():
            raise Problem(
                f"license of {model}",
                "not accepted yet, and there is no terminal to ask at",
                f"a person who has read {license.address} and accepts it",
                f"run `mi-llm base {model} --study {study.params}` at a terminal and type yes, "
                f"or set MI_LLM_ACCEPT_LICENSES={','.join(sorted(named | {model}))} for this run",
            )
        print("Type yes to accept it: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() != "yes":
            raise Problem(f"license of {model}", "not accepted", "yes", "remove the model from models, or accept it")
    storage.write_json(beside(study, model, "license.json"), acceptance(model, entry))


def obtain(study: Study, model: str, entry: Entry, check: Callable[[Path], None]) -> Obtained:
    """The model's verified files: from the MI_LLM_MODELS folder, else from the hub.

    `check` is given the folder as soon as config.json is there, before gigabytes are hashed or downloaded.
    """
    source = local_folder(model, entry)
    return verified_copy(source, entry, check) if source else download(beside(study, model, "download"), entry, check)


def discard(study: Study, model: str) -> None:
    """Remove what was downloaded, once the checkpoint is in place."""
    shutil.rmtree(beside(study, model, "download"), ignore_errors=True)


def complete(names: Iterable[str], entry: Entry, where: str) -> list[str]:
    """The names of the entry's files, sorted; raises Problem if one of them is not among `names`."""
    if missing := sorted(set(entry.files) - set(names)):
        remedy = f"get the complete model, or correct {PINS}"
        raise Problem(where, f"no {', no '.join(missing)}", ", ".join(entry.files), remedy)
    return sorted(entry.files)


def sha256(path: Path) -> str:
    """A file's SHA-256; large files show a progress bar."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(desc=f"verify {path.name}", total=size, unit="B", unit_scale=True, disable=size < 1e9) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


# ---- a folder of the reader's own


def verified_copy(folder: Path, entry: Entry, check: Callable[[Path], None]) -> Obtained:
    """Check a local copy against the pins, and against the notes that the hub's own client leaves beside what it downloads.

    `.cache/huggingface/download/<file>.metadata` holds a line with the commit and one with the hub's entity tag, which is the
    SHA-256 of a large file and the git blob id of a small one.
    """
    names = complete((file.name for file in folder.iterdir() if file.is_file()), entry, str(folder))
    check(folder)
    digests, unverified = {}, []
    for name in names:
        digests[name] = sha256(folder / name)
        note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        commit, tag = [*storage.read_text(note).splitlines(), "", ""][:2] if note.exists() else ("", "")
        if note.exists() and commit != entry.revision:
            raise refused(folder / name, f"downloaded from commit {commit}", f"commit {entry.revision}")
        expected = entry.files[name].hash or tag
        if not expected:
            unverified.append(name)
        elif expected not in (digests[name], storage.blob_id((folder / name).read_bytes()) if len(expected) == 40 else ""):
            raise refused(folder / name, f"SHA-256 {digests[name]}", f"{expected}, as {entry.repository} has it")
    if unverified:
        print(f"{folder}: there is no checksum for {', '.join(unverified)}; hashes are recorded", file=sys.stderr)
    return Obtained(folder, digests, tuple(unverified))


def refused(path: Path, found: str, expected: str) -> Problem:
    """The problem of a file that is not what its pin says."""
    return Problem(str(path), found, expected, "the copy is damaged or another version: delete it and fetch it again")


# ---- the hub


@contextmanager
def online() -> Iterator[None]:
    """Let the hub's client reach the network inside this block, and only there.

    The command line sets HF_HUB_OFFLINE, so that no library reaches for the network behind the reader's back; the client reads
    it once and its requests then refuse to leave. A client without that check replaces it during the download.
    """
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=None))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def endpoint() -> str:
    """The hub's address, or a mirror's."""
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def download(folder: Path, entry: Entry, check: Callable[[Path], None]) -> Obtained:
    """Download a model's wanted files into a folder, or what is still missing of them; config.json first, to be checked."""
    with alone(folder.parent), online():
        folder.mkdir(exist_ok=True)
        remotes = listing(entry)
        size = sum(remote.size for remote in remotes) / 1e9
        summary = f"{entry.repository} at {entry.revision[:7]}: {len(remotes)} files, {size:.1f} GB"
        print(f"{summary}, from {endpoint()} into {folder}", file=sys.stderr)
        digests = dict[str, str]()
        for remote in sorted(remotes, key=lambda remote: remote.name != "config.json"):
            digests[remote.name] = receive_verified(folder, entry.repository, entry.revision, remote)
            if remote.name == "config.json":
                check(folder)
        return Obtained(folder, digests, ())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that downloads into a folder; another one waits here until the first ends, however it ends."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        storage.wait_alone(opened, f"downloads into {folder}")
        yield
    finally:
        os.close(opened)


@dataclass(frozen=True)
class Described:
    """What the hub says of a repository at a commit: the files at its top, by name, and the license that it states."""

    commit: str
    files: dict[str, Remote]
    license: str


def described(repository: str, revision: str | None) -> Described:
    """Ask the hub about a repository at a commit or branch, or without one at its newest commit; else raises Problem."""
    where = f"{endpoint()}/{repository}"
    try:
        info = HfApi(endpoint=endpoint()).model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise unreachable(where, error, repository, revision) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(where, f"no answer of a hub ({type(error).__name__})", "the list of a model's files", REMEDY) from error
    remote_by_name = {
        file.rfilename: Remote(
            file.rfilename,
            file.lfs.size if file.lfs else file.size or 0,
            file.lfs.sha256 if file.lfs else None,
            None if file.lfs else file.blob_id,
        )
        for file in info.siblings or []
        if "/" not in file.rfilename
    }
    stated = info.card_data.to_dict() if info.card_data else {}
    license = stated.get("license_name") if stated.get("license") == "other" else stated.get("license")
    return Described(info.sha or "", remote_by_name, str(license or ""))


def listing(entry: Entry) -> list[Remote]:
    """Ask the hub which of the wanted files the pinned commit has, and check its answer against the pins."""
    where, told = f"{endpoint()}/{entry.repository}", described(entry.repository, entry.revision)
    if told.commit != entry.revision:
        raise Problem(where, f"commit {told.commit}", entry.revision, REMEDY)
    remotes = [told.files[name] for name in complete(told.files, entry, where)]
    for remote in remotes:
        pin = entry.files[remote.name].hash
        if pin and pin not in (remote.sha256, remote.blob):
            raise Problem(f"{where}: {remote.name}", f"{remote.sha256 or remote.blob}", f"{pin}, as {PINS} says", REMEDY)
    return remotes


def unreachable(where: str, error: Exception, repository: str, revision: str | None) -> Problem:
    """The problem for everything that can go wrong on the way to the hub."""
    if isinstance(error, GatedRepoError):
        remedy = f"accept the terms at {where} with your account there, and set HF_TOKEN"
        return Problem(where, "access is granted to accepted accounts only", "an accepted account", remedy)
    if isinstance(error, RevisionNotFoundError):
        return Problem(where, f"no commit {revision}", "the pinned commit", REMEDY)
    if isinstance(error, RepositoryNotFoundError):
        return Problem(where, "no such model", repository, REMEDY)
    if isinstance(error, OSError) and error.errno:
        return Problem(
            where,
            os.strerror(error.errno),
            "a writable folder with free space",
            "free some space, then run the same command again",
        )
    status = f"status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else " ".join(str(error).split())[:200]
    remedy = f"connect to the network and run the same command again (it continues where it stopped); or {REMEDY}"
    return Problem(where, f"unavailable:  {status or type(error).__name__}", "the hub's answer", remedy)


def receive_verified(folder: Path, repository: str, revision: str, remote: Remote) -> str:
    """Download one file and verify it; a file that is not what the hub says is fetched once more. Returns its SHA-256."""
    path, expected = folder / remote.name, remote.sha256 or remote.blob
    for last in (False, True):
        receive(path, repository, revision, remote)
        digest = sha256(path)
        actual = digest if remote.sha256 else storage.blob_id(path.read_bytes())
        if actual == expected:
            return digest
        path.unlink()
        if not last:
            print(f"{remote.name}: {actual} instead of {expected}; fetching it again", file=sys.stderr)
    kind = "SHA-256" if remote.sha256 else "git blob id"
    raise Problem(f"{endpoint()}/{repository}: {remote.name}", f"{kind} {actual}, twice", f"{expected}", REMEDY)


def receive(path: Path, repository: str, revision: str, remote: Remote) -> None:
    """Download one file, whole or not at all; continues what an interrupted run left of the same content."""
    if path.exists():
        return
    part = path.with_name(f".{path.name}.{(remote.sha256 or remote.blob or '')[:12]}.part")
    if part.exists() and part.stat().st_size > remote.size:
        part.unlink()
    with part.open("ab") as file:
        try:
            if file.tell() < remote.size:
                http_get(  # without a size: a file that is too short is fetched again, as a wrong one is
                    hf_hub_url(repository, remote.name, revision=revision, endpoint=endpoint()),
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(),
                    displayed_filename=remote.name,
                    tqdm_class=tqdm,
                )
        except (httpx2.HTTPError, OSError) as error:
            raise unreachable(f"{endpoint()}/{repository}: {remote.name}", error, repository, revision) from error
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
