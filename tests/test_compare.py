"""Two runs and the verdict on them; the certificate: what the specification demands of it, and what people see."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from edits import edit
from looks import BROKEN, WIDTHS, problems, serious_faults
from repository import ROOT
from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.audit.audit import audit
from mi_llm.certificate.circumstances import circumstances, public
from mi_llm.certificate.codecheck import gaps, valid_orcid
from mi_llm.cli import main
from mi_llm.compare import accept, deviations, facts, judge, outputs
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.paper.claims import claims
from mi_llm.study import Study, load

MINI = Path("mini/params.yaml")
ORCID = r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$"
FINISHED = {"type": "string", "minLength": 1, "not": {"pattern": "FIXME|TODO|XXXXX"}}
# The MUSTs of https://codecheck.org.uk/spec/config/2.0/ for a finished certificate, and our own comment for every file.
RULES = {
    "type": "object",
    "required": ["version", "manifest", "paper", "codechecker", "report", "summary", "certificate"],
    "properties": {
        "version": {"const": "https://codecheck.org.uk/spec/config/2.0/"},
        "manifest": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["file", "comment"],
                "properties": {"file": {"type": "string", "pattern": "^[^/]"}, "comment": FINISHED},
            },
        },
        "paper": {
            "type": "object",
            "required": ["title", "authors", "reference"],
            "properties": {
                "title": FINISHED,
                "reference": {"type": "string", "pattern": r"^https://doi\.org/10\.\d{4,}/\S+$"},
                "authors": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "ORCID"],
                        "properties": {"name": FINISHED, "ORCID": {"type": "string", "pattern": ORCID}},
                    },
                },
            },
        },
        "codechecker": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": FINISHED, "ORCID": {"type": "string", "pattern": ORCID}},
            },
        },
        "report": {"type": "string", "pattern": r"^https?://\S+$"},
        "summary": FINISHED,
        "certificate": {"type": "string", "pattern": r"^\d{4}-\d{3}$"},
        "source": {"type": "string"},
        "repository": {"type": "string", "pattern": "^https://"},
        "check_time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$"},
    },
}


@dataclass(frozen=True)
class Run:
    """A run of `mi-llm compare`: its status, what it printed, and the two files it wrote."""

    status: int
    lines: list[str]
    errors: str
    content: dict[str, Any]
    page: str


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the miniature has run up to its audit, with that run committed as lock and reference."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("params.yaml", "dvc.yaml"):
        (folder / "mini").mkdir(exist_ok=True)
        shutil.copy(ROOT / "mini" / name, folder / "mini" / name)
    for name in ("CITATION.cff", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").symlink_to(ROOT / "data")
    here = Path.cwd()
    os.chdir(folder)
    try:
        study = load(MINI)
        for corpus in study.corpora:
            acquire(study, corpus)
            read(study, corpus)
        audit(study)
        lock = YAML(typ="safe").load((ROOT / "mini" / "dvc.lock").read_text(encoding="utf-8"))
        ran = {name: entry for name, entry in lock["stages"].items() if name.split("@")[0] in ("acquire", "read", "audit")}
        for entry in ran.values():
            for out in entry["outs"]:
                out["md5"] = listed(facts(Path(out["path"]))["files"])
        storage.write_json(folder / "mini/dvc.lock", {"schema": lock["schema"], "stages": ran})
        git(folder, "init", "--quiet")
        accept(study)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", "a run")
    finally:
        os.chdir(here)
    return folder


def listed(files: dict[str, str]) -> str:
    """DVC's hash of a folder with these files."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    """A copy of that repository, to be changed."""
    return shutil.copytree(finished, tmp_path / "bundle", symlinks=True)


def compare(folder: Path, *words: str, **environment: str) -> Run:
    """Run `mi-llm compare` as a person does who has no git identity but what the repository says."""
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, **environment}
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in nobody.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["mi-llm", "compare", *words])
        with pytest.raises(SystemExit) as end:
            main()
    status = int(end.value.code or 0)
    written = folder / "runs/mini/certificate"
    if not written.exists():
        return Run(status, out.getvalue().splitlines(), err.getvalue(), {}, "")
    page = (written / "index.html").read_text(encoding="utf-8")
    if not (written / "codecheck.yml").exists():
        return Run(status, out.getvalue().splitlines(), err.getvalue(), {}, page)
    text = (written / "codecheck.yml").read_text(encoding="utf-8")
    assert text.startswith("%YAML 1.1\n---\n")
    content = YAML(typ="safe").load(text)
    return Run(status, out.getvalue().splitlines(), err.getvalue(), content, page)


def faults(content: dict[str, Any]) -> set[str]:
    """Where the content breaks the specification's rules, numbers of list items left out."""
    errors = jsonschema_rs.validator_for(RULES).iter_errors(content)
    return {".".join(str(part) for part in error.instance_path if isinstance(part, str)) for error in errors}


def test_an_equal_run_is_identical_claim_by_claim(bundle: Path) -> None:
    run = compare(bundle)
    number = len(claims())
    assert run.status == 0, run.errors
    assert run.lines[-1] == "compared with the committed lock: 13 identical, 0 within tolerance, 0 differ"
    assert f"{number} claims of the paper: {number} judged as in the reference" in run.lines
    ours = run.content["mi_llm"]
    assert {output["verdict"] for output in ours["outputs"]} == {"identical"}
    assert ours["claims"] == {"judged": number, "changed": []}
    assert ours["changed_since_commit"] == []
    assert len(ours["commit"]) == 40
    assert ours["versions"]["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_the_file_lacks_only_what_no_program_can_know(bundle: Path) -> None:
    run = compare(bundle)
    assert faults(run.content) == {"paper.authors", "codechecker.name", "report", "certificate"}
    assert {gap.field for gap in gaps(run.content)} == {"paper.authors", "codechecker", "report", "certificate"}
    authors = [author | {"ORCID": "0000-0002-1825-0097"} for author in run.content["paper"]["authors"]]
    supplied = {
        "paper": run.content["paper"] | {"authors": authors},
        "codechecker": [{"name": "Josiah Carberry"}],
        "report": "https://doi.org/10.5281/zenodo.3674056",
        "certificate": "2026-001",
    }
    assert faults(run.content | supplied) == set()
    assert gaps(run.content | supplied) == []


def test_the_manifest_names_what_the_run_was_for(bundle: Path) -> None:
    manifest = compare(bundle).content["manifest"]
    files = {entry["file"]: entry["comment"] for entry in manifest}
    assert all((bundle / "runs/mini/certificate" / file).is_file() for file in files)
    assert {file.split("/")[1] for file in files} == {"audit"}  # the outputs that a later stage reads are not ends
    assert files["../audit/index.html"] == "audit, page: The paper against its released data"
    assert files["../audit/claims.csv"].startswith("audit, table: id, location, reported")


def test_the_paper_is_cited_with_its_corresponding_author_first(bundle: Path) -> None:
    paper = compare(bundle).content["paper"]
    assert paper["reference"] == "https://doi.org/10.2196/89077"
    assert [author["name"] for author in paper["authors"]][:2] == ["Zheng Liu", "Runze Hu"]
    assert len(paper["authors"]) == 11


def test_who_checked_is_never_made_up(bundle: Path) -> None:
    assert compare(bundle).content["codechecker"] == [{"name": "FIXME"}]
    git(bundle, "config", "user.name", "Person of the Repository")
    assert compare(bundle).content["codechecker"] == [{"name": "Person of the Repository"}]
    certificate = compare(bundle, "--codechecker", "Josiah Carberry <0000-0002-1825-0097>")
    assert certificate.content["codechecker"] == [{"name": "Josiah Carberry", "ORCID": "0000-0002-1825-0097"}]
    assert "Josiah Carberry (ORCID 0000-0002-1825-0097)" in certificate.page
    wrong = compare(bundle, "--codechecker", "Josiah Carberry <0000-0002-1825-0098>")
    assert wrong.status == 2
    assert "--codechecker" in wrong.errors


@pytest.mark.parametrize(
    ("orcid", "valid"),
    [
        ("0000-0002-1825-0097", True),  # the ORCID documentation's own examples
        ("0000-0002-1694-233X", True),
        ("0000-0002-1825-0079", False),
        ("https://orcid.org/0000-0002-1825-0097", False),
        ("0000000218250097", False),
    ],
)
def test_orcids(orcid: str, valid: bool) -> None:
    assert valid_orcid(orcid) is valid


def test_other_bytes_with_the_same_numbers_are_within_tolerance(bundle: Path) -> None:
    page = bundle / "runs/mini/audit/index.html"
    page.write_text(page.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    run = compare(bundle)
    assert run.status == 0
    assert "  within tolerance: runs/mini/audit: index.html has different bytes" in run.lines
    assert run.lines[-1] == "compared with the committed lock: 12 identical, 1 within tolerance, 0 differ"


def test_packages_that_are_not_those_of_the_lock_are_named(bundle: Path) -> None:
    lock = bundle / "requirements.lock"
    pandas = storage.read_json(bundle / "runs/mini/audit/provenance.json")["versions"]["pandas"]
    lock.write_text(f"# exact versions\npandas=={pandas}\n", encoding="utf-8")
    assert not [line for line in compare(bundle).lines if "packages" in line]

    lock.write_text("pandas==0.1\n", encoding="utf-8")
    run = compare(bundle)
    [line] = [line for line in run.lines if "packages" in line]
    assert line.startswith(f"  other packages than requirements.lock has: pandas {pandas} (the lock has 0.1) made ")
    assert "runs/mini/audit" in line
    assert run.content["mi_llm"]["made_with_other_packages_than_the_lock"] == [line.split("has: ", 1)[1]]
    assert "(the lock has 0.1)" in run.page


def test_a_flipped_byte_of_a_corpus_differs(bundle: Path) -> None:
    dialogs = bundle / "runs/mini/read/annomi/dialogs.jsonl"
    content = bytearray(dialogs.read_bytes())
    content[1000] ^= 1
    dialogs.write_bytes(content)
    run = compare(bundle)
    assert run.status == 1
    assert "  differs: runs/mini/read/annomi: dialogs.jsonl has different bytes" in run.lines
    assert run.lines[-1] == "compared with the committed lock: 12 identical, 0 within tolerance, 1 differ"


def test_a_changed_verdict_differs_and_is_named(bundle: Path) -> None:
    table = bundle / "runs/mini/audit/claims.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    changed = next(row for row in rows if row["verdict"] == "reproduced")
    changed["verdict"] = "inconsistent"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run = compare(bundle)
    assert run.status == 1
    assert f"  differs: runs/mini/audit: claim {changed['id']}: here inconsistent, in the reference reproduced" in run.lines
    [claim] = run.content["mi_llm"]["claims"]["changed"]
    assert (claim["id"], claim["verdict"], claim["before"]) == (changed["id"], "inconsistent", "reproduced")
    section = run.page[run.page.index('<h2 id="claims">') : run.page.index("What ran, where, when")]
    assert changed["id"] in section
    assert f"{len(rows)} claims of the paper: {len(rows) - 1} judged as in the reference" in run.lines


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("claims.csv", b"id,verdict\nx,\xff\n", "runs/mini/audit/claims.csv, byte 13 is not UTF-8 (byte 0xff)"),
        ("claims.csv", b"", "runs/mini/audit/claims.csv is columns None"),
        ("metrics.json", b'{"claims": ', "runs/mini/audit/metrics.json, line 1 is not JSON (Expecting value)"),
    ],
)
def test_a_damaged_output_differs(bundle: Path, name: str, content: bytes, why: str) -> None:
    (bundle / "runs/mini/audit" / name).write_bytes(content)
    run = compare(bundle)
    assert run.status == 1
    assert f"  differs: runs/mini/audit: {why}" in run.lines
    assert run.lines[-1] == "compared with the committed lock: 12 identical, 0 within tolerance, 1 differ"


@pytest.mark.parametrize(("torn", "problem_text"), [("outs:\n  - path: [", "not YAML"), ("outs:\n    - path:", "expected str")])
def test_a_torn_lock_is_a_sentence(bundle: Path, torn: str, problem_text: str) -> None:
    (bundle / "mini/dvc.lock").write_text(f"schema: '2.0'\nstages:\n  read@annomi:\n    {torn}", encoding="utf-8")
    run = compare(bundle)
    assert run.status == 2
    assert run.errors.startswith(f"mi-llm: dvc.lock: {problem_text}")


def test_an_output_that_is_not_here(bundle: Path) -> None:
    shutil.rmtree(bundle / "runs/mini/read/annomi")
    run = compare(bundle)
    counted = "13 identical (1 of them by the lock alone), 0 within tolerance, 0 differ"
    assert run.lines[-1] == f"compared with the committed lock: {counted}"
    assert counted in run.content["summary"]
    assert run.content["mi_llm"]["outputs_by_lock_alone"] == 1
    assert "by the lock alone" in run.page
    [output] = [entry for entry in run.content["mi_llm"]["outputs"] if entry["path"] == "runs/mini/read/annomi"]
    assert output["verdict"] == "identical"  # DVC did not fetch it; the lock vouches for it
    assert output["reasons"] == ["not fetched: its hash in the lock is the committed one"]
    lock = bundle / "mini/dvc.lock"
    md5 = storage.read_json(lock)["stages"]["read@annomi"]["outs"][0]["md5"]
    edit(lock, {md5: "0" * 32 + ".dir"})
    assert "  differs: runs/mini/read/annomi: it is missing" in compare(bundle).lines


def test_a_folder_without_its_metrics_differs(bundle: Path) -> None:
    (bundle / "runs/mini/read/annomi/metrics.json").unlink()
    run = compare(bundle)
    assert run.status == 1
    assert "  differs: runs/mini/read/annomi: runs/mini/read/annomi/metrics.json is no such file" in run.lines
    assert run.lines[-1] == "compared with the committed lock: 12 identical, 0 within tolerance, 1 differ"


@pytest.mark.parametrize("committed", ["lock", "reference"])
def test_a_run_that_never_happened_is_not_certified(bundle: Path, committed: str) -> None:
    shutil.rmtree(bundle / "runs")
    if committed == "reference":
        git(bundle, "rm", "--quiet", "--cached", "mini/dvc.lock")
        git(bundle, "commit", "--quiet", "--message", "no lock")
    run = compare(bundle)
    assert run.status == 2
    assert run.errors.startswith("mi-llm: runs/mini: no output of the study")
    assert not (bundle / "runs").exists()


def test_without_a_committed_lock_the_reference_is_compared(bundle: Path) -> None:
    git(bundle, "rm", "--quiet", "--cached", "mini/dvc.lock")
    reference = bundle / "mini/reference.json"
    known = json.loads(reference.read_text(encoding="utf-8"))
    del known["runs/mini/read/efaqa"]
    storage.write_json(reference, known)
    git(bundle, "commit", "--quiet", "--all", "--message", "no lock")
    run = compare(bundle)
    assert run.status == 0
    assert run.lines[-1] == "compared with the committed reference: 12 identical, 0 within tolerance, 0 differ"
    assert "  no reference: runs/mini/read/efaqa" in run.lines
    shutil.rmtree(bundle / "runs/mini/read/annomi")
    assert "  differs: runs/mini/read/annomi: it is missing" in compare(bundle).lines
    git(bundle, "rm", "--quiet", "--force", "mini/reference.json")
    git(bundle, "commit", "--quiet", "--message", "no reference")
    none = compare(bundle)
    assert none.status == 0
    expected = "nothing to compare with: git has no mini/dvc.lock yet; what ran: runs/mini/certificate/index.html\n"
    assert none.errors == expected
    assert (none.lines, none.content) == ([], {})
    assert "This run was compared with nothing" in none.page


@pytest.mark.parametrize("outer", [True, False])
def test_without_git_the_reference_that_lies_here_is_compared(bundle: Path, tmp_path: Path, outer: bool) -> None:
    shutil.rmtree(bundle / ".git")
    if outer:  # unpacked below somebody's repository, whose commit says nothing of the bundle
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "other work")
    run = compare(bundle) if outer else compare(bundle, PATH=str(tmp_path))
    assert run.status == 0, run.errors
    counts = "13 identical, 0 within tolerance, 0 differ"
    assert run.lines[-1] == f"compared with the reference that lies here (no git commit): {counts}"
    assert run.content["mi_llm"]["commit"] is None
    assert run.content["mi_llm"]["changed_since_commit"] is None
    assert "unknown: no git commit here" in run.page
    assert "committed reference" not in run.page + "".join(run.lines) + run.content["summary"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, "dubious ownership"),  # as with sudo
        ({"PATH": "/nowhere"}, "no such command"),
        ({}, "index file smaller than expected"),
    ],
)
def test_where_git_fails_nothing_is_certified(bundle: Path, environment: dict[str, str], message: str) -> None:
    (bundle / "runs/mini/audit/index.html").write_text("other", encoding="utf-8")
    edit(bundle / "mini/reference.json", {facts(bundle / "runs/mini/audit")["files"]["index.zh.html"]: "0" * 32})
    if not environment:
        (bundle / ".git/index").write_bytes(b"torn")
    run = compare(bundle, **environment)
    assert run.status == 2
    assert message in run.errors
    assert run.lines == []
    assert run.content == {}


def test_changes_since_the_commit_are_named(bundle: Path) -> None:
    (bundle / "CITATION.cff").write_text((ROOT / "CITATION.cff").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    (bundle / "新的.txt").write_text("x", encoding="utf-8")
    with (bundle / "mini/dvc.lock").open("a", encoding="utf-8") as lock:
        lock.write("\n")  # a run writes it
    run = compare(bundle)
    assert run.content["mi_llm"]["changed_since_commit"] == ["CITATION.cff", "新的.txt"]
    assert "新的.txt" in run.page


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://someone:secret@example.org/group/bundle.git", "https://example.org/group/bundle.git"),
        ("https://example.org:8443/bundle", "https://example.org:8443/bundle"),
        ("/home/someone/bundle", None),
        ("git@example.org:group/bundle.git", None),
        ("", None),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str | None) -> None:
    assert public(address) == shown


def test_the_page_begins_with_a_mark_and_one_sentence(bundle: Path) -> None:
    same = compare(bundle)
    number = len(claims())
    assert '<div class="result identical"><b aria-hidden="true">✓</b>' in same.page
    first = " ".join(same.page.split("<h2", 1)[0].split())
    assert "All 13 outputs are identical to the reference run, byte for byte" in first
    assert f"each of the paper's {number} claims got the same verdict as in it" in first
    assert "<th scope" not in same.page.split("<h2", 1)[0]  # no table where nothing differs
    (bundle / "runs/mini/audit/claims.csv").unlink()
    other = compare(bundle)
    assert '<div class="result differs"><b aria-hidden="true">✗</b>' in other.page
    assert "1 of 13 outputs differs" in other.page
    rows = re.findall(r'<code class="path">(\w+)</code></td><td>', other.page)
    assert rows == ["audit"]


@pytest.mark.parametrize(
    ("name", "sentence", "reason", "material"),
    [
        ("index.html", "12 are identical, 0 within tolerance", "here not there, in the reference reproduced", "Sample corpora"),
        ("index.zh.html", "12 个一致", "此处为空缺，参考为可复现", "随本研究包发布的样例语料"),
    ],
)
def test_the_page_in_a_browser(bundle: Path, browser: Any, name: str, sentence: str, reason: str, material: str) -> None:
    (bundle / "runs/mini/audit/claims.csv").unlink()
    compare(bundle)
    address = (bundle / "runs/mini/certificate" / name).as_uri()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    for width, scheme in zip(WIDTHS, ("light", "dark", "light", "dark"), strict=True):
        requests, complaints = [], []
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("request", lambda asked: requests.append(asked.url))  # noqa: B023 — of this page
        page.on("console", lambda told: complaints.append(told.text))  # noqa: B023
        page.goto(address)
        page.locator("summary").click()
        text = " ".join(page.inner_text("main").split())
        links = re.findall(r'href="([^"#:]+)"', page.content())
        missing = [link for link in links if not (bundle / "runs/mini/certificate" / link).exists()]
        assert (requests, complaints, missing) == ([address], [], [])
        assert problems(page) == []
        assert serious_faults(page, axe) == []
        assert [words for words in (sentence, reason, material) if words not in text] == []
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 690, "height": 1000})
        assert page.evaluate(BROKEN) == []
        page.close()


def test_numbers_within_tolerance(study: Study) -> None:
    tolerance = study.compare
    wanted = {"tiny": {"bleu_4": 4.0, "rounds": 121}, "name": "x"}
    assert deviations({"tiny": {"bleu_4": 4.4, "rounds": 121}, "name": "x"}, wanted, tolerance) == []
    assert deviations({"tiny": {"bleu_4": 4.6, "rounds": 121}, "name": "x"}, wanted, tolerance) == [
        "tiny.bleu_4: here 4.6, in the reference 4.0"
    ]
    assert deviations({"tiny": {"bleu_4": 4.0}, "name": "x"}, wanted, tolerance) != []


def test_only_floating_point_stages_may_differ_in_their_files(study: Study) -> None:
    now = {"files": {"metrics.json": "z", "train.jsonl": "changed"}, "metrics": {"rounds": 1}}
    then = {"files": {"metrics.json": "x", "train.jsonl": "y"}, "metrics": {"rounds": 1}}
    assert judge(study, "split", now, then) == ["train.jsonl has different bytes"]
    assert judge(study, "score", now, then) == []


def test_lost_added_and_emptied_files_differ_in_every_stage(study: Study) -> None:
    empty = hashlib.md5(b"", usedforsecurity=False).hexdigest()
    weights, config, left_out = "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "left_out.csv"
    then: dict[str, Any] = {"files": {"metrics.json": "x", weights: "w", config: "c", left_out: "l"}, "metrics": {"loss": 1.0}}

    def judged(stage: str, **changed: Any) -> list[str]:
        return judge(study, stage, {"files": then["files"] | changed, "metrics": {"loss": 1.0}}, then)

    assert judged("finetune@tiny-llama3", **{weights: "other digits", left_out: "other digits"}) == []
    assert judged("finetune@tiny-llama3", **{config: "other rank"}) == [f"{config} has different bytes"]
    for stage in ("finetune@tiny-llama3", "base@tiny-llama3"):
        assert judged(stage, **{weights: empty}) == [f"{weights} is empty"]
        assert judged(stage, **{"optimizer.pt": "o"}) == ["optimizer.pt is new"]
        kept = {name: md5 for name, md5 in then["files"].items() if name != weights}
        assert judge(study, stage, {"files": kept, "metrics": {"loss": 1.0}}, then) == [f"{weights} is gone"]
    # equal runs write left_out.csv both, or neither of them
    del then["files"][left_out]
    assert judged("finetune@tiny-glm4", **{weights: "other digits"}) == []


def test_a_page_that_is_lost_or_emptied_differs(bundle: Path) -> None:
    (bundle / "runs/mini/audit/index.html").write_text("", encoding="utf-8")
    (bundle / "runs/mini/audit/index.zh.html").unlink()
    run = compare(bundle)
    assert run.status == 1
    assert "  differs: runs/mini/audit: index.html is empty; index.zh.html is gone" in run.lines


def test_the_committed_reference_belongs_to_the_committed_lock() -> None:
    reference = storage.read_json(ROOT / "mini" / "reference.json")
    wanted = outputs(storage.read_text(ROOT / "mini" / "dvc.lock"))
    assert set(reference) == set(wanted)
    for path, known in reference.items():
        assert wanted[path][1] == listed(known["files"]), path
    assert set(reference["runs/mini/audit"]["claims"]) == set(claims())


def test_the_audits_reference_covers_the_audit_and_nothing_that_cannot_be_had() -> None:
    study, reference = load(ROOT / "params.yaml"), storage.read_json(ROOT / "reference.json")
    corpora = {f"{study.out}/{stage}/{corpus}" for stage in ("acquire", "read") for corpus in study.corpora}
    assert set(reference) == corpora | {f"{study.out}/{stage}" for stage in ("translate", "audit", "miti")}
    known = reference[f"{study.out}/audit"]
    assert set(known["claims"]) == set(claims())
    for verdict in set(known["claims"].values()):
        assert list(known["claims"].values()).count(verdict) == known["metrics"][verdict]


def test_the_certificate_names_the_packages_that_are_installed_and_needs_no_optional_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mi_llm.certificate.circumstances.TRACED", ("pandas", "an_optional_package"))
    assert {"python", "mi_llm", "pandas", "dvc"} <= circumstances().versions.keys()
    assert "an_optional_package" not in circumstances().versions


def test_the_audits_reference_is_what_public_files_give(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_MIRROR", str(mirror))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, workspace / name)
    study, reference = load(Path("params.yaml")), storage.read_json(ROOT / "reference.json")
    acquire(study, "annomi")
    read(study, "annomi")
    for path in ("runs/paper/acquire/annomi", "runs/paper/read/annomi"):
        now = facts(Path(path))["files"]
        assert now.keys() == reference[path]["files"].keys()
        assert {name for name in now if now[name] != reference[path]["files"][name]} <= {"provenance.json"}, path
