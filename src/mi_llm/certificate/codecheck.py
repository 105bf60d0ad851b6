"""The certificate for programs: `codecheck.yml`, after the CODECHECK configuration file specification 2.0.

Reads the comparison, `CITATION.cff`, the pipeline and the outputs' headings; gives the file's content. What only a person or the
CODECHECK register can supply is marked `FIXME` or left out, and `gaps` names it: nothing is made up to please a validator.
https://codecheck.org.uk/spec/config/2.0/
"""

import html
import io
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.certificate.circumstances import Circumstances
from mi_llm.compare import Comparison, lock_of, stages
from mi_llm.git import git
from mi_llm.problem import Problem
from mi_llm.study import Study

SPECIFICATION = "https://codecheck.org.uk/spec/config/2.0/"
FIXME = "FIXME"
MATERIAL = {
    "en": {
        "public": "Public files, from the commits and addresses that src/mi_llm/corpora/sources.yaml pins: {}.",
        "own": "Dialogs of the study's own, which are not in this bundle: {}.",
        "shipped": "Sample corpora, recorded answers and models as this bundle ships them (data.dvc, pretrain/dvc.yaml).",
        "models": "Models as this bundle ships them (pretrain/dvc.yaml).",
        "comma": ", ",
        "space": " ",
    },
    "zh": {
        "public": "公开的文件，其提交和地址由 src/mi_llm/corpora/sources.yaml 固定：{}。",
        "own": "研究自己的对话，不在本研究包中：{}。",
        "shipped": "随本研究包发布的样例语料、已记录的回答和模型（data.dvc、pretrain/dvc.yaml）。",
        "models": "随本研究包发布的模型（pretrain/dvc.yaml）。",
        "comma": "、",
        "space": "",
    },
}
REPORTED = (".html", ".csv", ".svg")  # the files of an output that people read; the others are its metrics and provenance
PERSON = re.compile(r"(?P<name>[^<>]*[^<>\s])\s*(?:<(?P<orcid>[^<>]*)>)?")


@dataclass(frozen=True)
class Person:
    """Who checked: a name, and an ORCID where known."""

    name: str
    orcid: str | None = None

    @property
    def entry(self) -> dict[str, str]:
        """The person as the specification writes one."""
        return {"name": self.name} | ({"ORCID": self.orcid} if self.orcid else {})


@dataclass(frozen=True)
class Gap:
    """A field that the specification asks for and this file does not have yet, and who can supply it."""

    field: str
    english: str
    chinese: str


def valid_orcid(text: str) -> bool:
    """Whether a text is a plain ORCID whose last character is the check digit of the others (ISO 7064, MOD 11-2)."""
    if not re.fullmatch(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]", text):
        return False
    total = 0
    for digit in text.replace("-", "")[:-1]:
        total = (total + int(digit)) * 2
    return text[-1] == "0123456789X"[(12 - total % 11) % 11]


def codechecker(named: str | None) -> Person | None:
    """The person named on the command line as `Name <ORCID>` or `Name`, else git's user.name, else None."""
    if named is None:
        name = git("config", "--default", "", "user.name").decode("utf-8", "replace").strip() if shutil.which("git") else ""
        return Person(name) if name else None
    match = PERSON.fullmatch(named.strip())
    if match is None or (match["orcid"] is not None and not valid_orcid(match["orcid"])):
        raise Problem("--codechecker", named, "a name, or a name and an ORCID: Name <0000-0000-0000-0000>", "correct it")
    return Person(match["name"], match["orcid"])


def paper(study: Study) -> dict[str, Any]:
    """The paper that a study reproduces, as `CITATION.cff` cites it, the corresponding author (its `contact`) first, as the
    specification wants; of any other study its title, for its authors to complete."""
    if not study.reproduction:
        return {"title": study.title, "authors": [{"name": FIXME}], "reference": FIXME}
    cited = storage.read_yaml(Path("CITATION.cff"))["preferred-citation"]
    contacts = [name_of(person) for person in cited.get("contact", [])]
    authors = [{"name": name_of(person)} | orcid_of(person) for person in cited["authors"]]
    return {
        "title": cited["title"],
        "authors": sorted(authors, key=lambda author: author["name"] not in contacts),
        "reference": f"https://doi.org/{cited['doi']}",
    }


def name_of(person: dict[str, str]) -> str:
    """A person's name as it is printed under a title."""
    return f"{person['given-names']} {person['family-names']}"


def orcid_of(person: dict[str, str]) -> dict[str, str]:
    """A person's ORCID, which CFF writes as an address and CODECHECK without it; nothing if the citation has none."""
    return {"ORCID": person["orcid"].removeprefix("https://orcid.org/")} if "orcid" in person else {}


def reported(study: Study) -> list[Path]:
    """The pages, tables and figures of the outputs that no later stage reads: what the run was for."""
    entries = stages(storage.read_text(lock_of(study))).values()
    read = [Path(dep["path"]) for entry in entries for dep in entry.get("deps", [])]
    made = [Path(out["path"]) for entry in entries for out in entry.get("outs", [])]
    last = [out for out in made if not any(dep == out or out in dep.parents or dep in out.parents for dep in read)]
    return [path for out in sorted(last) for path in sorted(out.rglob("*")) if path.suffix in REPORTED]


def heading(path: Path) -> str:
    """A file's heading: a page's title or a table's columns; only `page` or `figure` where a damaged file has no title."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".csv":
        columns = text.split("\n", maxsplit=1)[0].strip().split(",")
        return f"table: {', '.join(columns)}"
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
    kind = "page" if path.suffix == ".html" else "figure"
    return f"{kind}: {html.unescape(' '.join(title[1].split()))}" if title else kind


def manifest(study: Study) -> list[dict[str, str]]:
    """The files that a check must reproduce, with paths relative to the certificate's folder."""
    files = {path.relative_to(study.folder): heading(path) for path in reported(study)}
    return [{"file": f"../{file.as_posix()}", "comment": f"{file.parts[0]}, {text}"} for file, text in files.items()]


def source(study: Study, lang: str = "en") -> str:
    """Where the checked material comes from, in words."""
    words, names = MATERIAL[lang], study.acquire.upstream
    own = [name for name, corpus in study.corpora.items() if corpus.paths]
    parts = [words["public"].format(words["comma"].join(names))] if names else []
    parts += [words["own"].format(words["comma"].join(own))] if own else []
    parts += [words["shipped"]] if not parts else [words["models"]] if own and study.tiny else []
    return words["space"].join(parts)


def summary(comparison: Comparison, where: Circumstances) -> str:
    """The certificate in two or three sentences."""
    text = f"{comparison.sentence[0].upper()}{comparison.sentence[1:]}. "
    if comparison.claims:
        text += f"{comparison.agreeing} of {len(comparison.claims)} claims of the paper have the reference's verdict. "
    return text + f"Run on {where.processor}, {where.cores} cores, {where.gpu or 'no NVIDIA GPU'}, {where.system}."


def configuration(study: Study, comparison: Comparison, where: Circumstances, checker: Person | None) -> dict[str, Any]:
    """The content of `codecheck.yml`; fields that the specification does not know are under `mi_llm`."""
    return {
        "version": SPECIFICATION,
        "manifest": manifest(study),
        "paper": paper(study),
        "codechecker": [checker.entry if checker else {"name": FIXME}],
        "source": source(study),
        "report": FIXME,
        "summary": summary(comparison, where),
        **({"repository": where.code.address} if where.code.address else {}),
        "check_time": where.time,
        "certificate": FIXME,
        "mi_llm": {
            "study": study.name,
            "parameters": study.params,
            "parameters_sha256": study.sha256(),
            "commit": where.code.commit,
            "changed_since_commit": None if where.code.changed is None else list(where.code.changed),
            "processor": where.processor,
            "cores": where.cores,
            "memory_gb": round(where.memory, 1),
            "gpu": where.gpu,
            "system": where.system,
            "versions": where.versions,
            "made_with_other_packages_than_the_lock": list(comparison.packages),
            "compared_with": comparison.against,
            "tolerance": study.compare.model_dump(),
            "outputs": [
                {"path": output.path, "stage": output.stage, "verdict": output.verdict}
                | ({"reasons": list(output.reasons)} if output.reasons else {})
                for output in comparison.outputs
            ],
            **({"outputs_by_lock_alone": comparison.by_lock} if comparison.by_lock else {}),
            "outputs_without_reference": list(comparison.unknown),
            "claims": {"judged": len(comparison.claims), "changed": [asdict(claim) for claim in comparison.changed]},
        },
    }


def gaps(content: dict[str, Any]) -> list[Gap]:
    """What the specification demands of a finished certificate (its MUSTs) and the file does not have."""
    missing = []
    if any(person["name"] == FIXME for person in content["codechecker"]):
        how = "mi-llm compare --codechecker"
        missing.append(Gap("codechecker", f"who checked: {how} 'Name <ORCID>'", f"检查人：{how} '姓名 <ORCID>'"))
    without = [author["name"] for author in content["paper"]["authors"] if not valid_orcid(author.get("ORCID", ""))]
    if FIXME in without:
        missing.append(Gap("paper", "the study's own publication: authors, and address", "本研究自己的论文：作者和网址"))
    elif without:
        names = ", ".join(without)
        english, chinese = f"ORCIDs, which CITATION.cff does not have, of {names}", "CITATION.cff 中没有的作者 ORCID"
        missing.append(Gap("paper.authors", english, chinese))
    if FIXME in content["report"]:
        missing.append(Gap("report", "the address of the published certificate, once it is published", "证书发表后的地址"))
    if not re.fullmatch(r"\d{4}-\d{3}", content["certificate"]):
        missing.append(Gap("certificate", "the number that the CODECHECK register gives", "CODECHECK 登记处给出的编号"))
    return missing


def written(content: dict[str, Any]) -> str:
    """The file's text: YAML 1.1, as an explicit document."""
    yaml, text = YAML(), io.StringIO()
    yaml.version, yaml.explicit_start, yaml.allow_unicode, yaml.width = (1, 1), True, True, 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(content, text)
    return text.getvalue()
