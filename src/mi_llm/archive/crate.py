"""The archive's description for machines: an RO-Crate 1.2 whose pipeline is a workflow and whose finished run is an action.

Made with ro-crate-py from dvc.yaml, dvc.lock and the stages' provenance.json. Follows the profiles Workflow RO-Crate 1.0 and
Workflow Run Crate 0.5 (https://w3id.org/ro/wfrun/workflow/0.5). Nothing here has an identity or a time of its own: equal content,
equal bytes.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from rocrate.model import ContextEntity, DataEntity
from rocrate.rocrate import ROCrate

from mi_llm import __version__

METADATA = "ro-crate-metadata.json"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
PIPELINE = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
PAPER = "https://doi.org/10.2196/89077"
DVC = "https://dvc.org"
HOMES = {"mi_llm": PAPER, "python": "https://www.python.org"}  # all else are packages, with a package URL
TYPES = {
    ".md": "text/markdown", ".csv": "text/csv", ".json": "application/json", ".sh": "application/x-sh",
    ".cff": "application/yaml", ".yaml": "application/yaml", ".tar": "application/x-tar", ".bundle": "application/octet-stream",
}  # fmt: skip
BIOSCHEMAS = "https://bioschemas.org/ComputationalWorkflow"
TERMS = {  # the profiles were written for RO-Crate 1.1, which had other addresses for these
    "input": f"{BIOSCHEMAS}#input",
    "output": f"{BIOSCHEMAS}#output",
}
WORKFLOW = "code/dvc.yaml"
INPUTS = {  # what the run took: description, place in the archive, kind
    "parameters": ("the study's parameters", "code/mini/params.yaml", "File"),
    "corpora": ("sample corpora and recorded answers", "data/", "Dataset"),
    "models": ("the tiny base models, as DVC stores them", "code/store/", "Dataset"),
}
Node = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A file, or a folder (a path that ends in a slash), that the description names; `size` in bytes, of files only."""

    path: str
    about: str
    license: str
    size: int | None = None


@dataclass(frozen=True)
class Result:
    """One output of the finished run: its folder in the archive, the stage that made it, the versions that stage recorded."""

    path: str
    stage: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Source:
    """Where the content comes from: commit and time, CITATION.cff, image base, DVC's version, what dvc.yaml says of stages."""

    commit: str
    moment: datetime
    citation: Node
    base_image: str
    dvc: str
    stages: dict[str, str]


def reference(*ids: str) -> Any:
    """A link to one entity, or a list of links to several."""
    links = [{"@id": name} for name in ids]
    return links[0] if len(links) == 1 else links


def license_links(expression: str) -> Any:
    """The licenses of an SPDX expression without choices."""
    return reference(*(license_id(name) for name in expression.split(" AND ")))


def license_id(name: str) -> str:
    """The address of an SPDX license; within the description, for one that SPDX does not list."""
    return f"#{name}" if name.startswith("LicenseRef-") else f"https://spdx.org/licenses/{name}"


def data(part: Part) -> Node:
    """A part as a data entity."""
    node: Node = {"@id": part.path, "name": part.path, "description": part.about, "license": license_links(part.license)}
    if part.path.endswith("/"):
        return {**node, "@type": "Dataset"}
    kind = TYPES.get(PurePosixPath(part.path).suffix, "text/plain")
    return {**node, "@type": "File", "contentSize": str(part.size), "encodingFormat": kind}


def image(reference_text: str) -> Node:
    """The container image that `name:tag@sha256:digest` names."""
    match = re.fullmatch(r"([\w./-]+):([\w.-]+)@sha256:([0-9a-f]{64})", reference_text)
    assert match is not None, reference_text
    return {
        "@id": "#image",
        "@type": "ContainerImage",
        "additionalType": {"@id": "https://w3id.org/ro/terms/workflow-run#DockerImage"},
        "name": match[1],
        "tag": match[2],
        "sha256": match[3],
        "registry": "docker.io",
        "description": "the base of the study's container image, which code/Dockerfile builds",
    }


def software(results: Iterable[Result]) -> list[Node]:
    """The software of the run, with versions, as the outputs' provenance records it."""
    versions = sorted({pair for result in results for pair in result.versions.items()})
    return [
        {
            "@id": f"#{name}-{version}",
            "@type": "SoftwareApplication",
            "name": name,
            "version": version,
            "url": HOMES.get(name, f"pkg:pypi/{name}@{version}"),
        }
        for name, version in versions
    ]


def parameter(name: str, about: str, example: list[str], kind: str) -> Node:
    """A formal input or output of the workflow."""
    return {
        "@id": f"#{name}",
        "@type": "FormalParameter",
        "additionalType": kind,
        "name": name,
        "description": about,
        "conformsTo": {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
        "workExample": reference(*example),
    }


def root(source: Source) -> Node:
    """The properties of the archive as a whole."""
    return {
        "name": source.citation["title"],
        "description": source.citation["abstract"],
        "identifier": f"mi-llm-{__version__}-{source.commit}",
        "version": __version__,
        "datePublished": source.moment.isoformat(),
        "keywords": ", ".join(source.citation["keywords"]),
        "license": license_links(source.citation["license"]),
        "author": {"@id": "#authors"},
        "publisher": {"@id": "#authors"},
        "citation": {"@id": PAPER},
        "conformsTo": reference(*PROFILES),
        "mainEntity": {"@id": WORKFLOW},
        "mentions": reference("#run", "#image"),
    }


def workflow(source: Source, formal: tuple[list[Node], list[Node]], used: list[Node]) -> Node:
    """The properties that describe dvc.yaml as a workflow."""
    inputs, outputs = formal
    return {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "conformsTo": {"@id": PIPELINE},
        "name": "The study, a DVC pipeline",
        "programmingLanguage": {"@id": DVC},
        "url": PAPER,
        "version": source.commit,
        "creator": {"@id": "#authors"},
        "input": reference(*(node["@id"] for node in inputs)),
        "output": reference(*(node["@id"] for node in outputs)),
        "softwareRequirements": reference("#image", *(node["@id"] for node in used)),
    }


def run(results: list[Result]) -> Node:
    """The committed run, as an action."""
    return {
        "@id": "#run",
        "@type": "CreateAction",
        "name": "The committed run of the miniature study",
        "description": "Each output is the one that code/mini/dvc.lock names. No time is kept: an equal run gives equal bytes.",
        "actionStatus": "http://schema.org/CompletedActionStatus",
        "instrument": {"@id": WORKFLOW},
        "agent": {"@id": "#authors"},
        "object": reference(*(example for _, example, _ in INPUTS.values())),
        "result": reference(*(result.path for result in results)),
    }


def context(source: Source, licenses: list[str]) -> list[Node]:
    """The entities that others refer to: authors, paper, workflow language, container image, profiles and licenses."""
    nodes: list[Node] = [
        {"@id": "#authors", "@type": "Organization", "name": source.citation["authors"][0]["name"], "url": PAPER},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": source.citation["preferred-citation"]["title"], "identifier": PAPER},
        {"@id": DVC, "@type": "ComputerLanguage", "name": "DVC pipeline", "version": source.dvc, "url": DVC},
        image(source.base_image),
    ]
    for name, (title, version) in {**PROFILES, PIPELINE: ("Bioschemas ComputationalWorkflow", "1.0")}.items():
        nodes.append({"@id": name, "@type": ["CreativeWork", "Profile"], "name": title, "version": version})
    for name in licenses:
        nodes.append({"@id": license_id(name), "@type": "CreativeWork", "name": name, "identifier": name})
    return nodes


def describe(parts: list[Part], results: list[Result], source: Source) -> str:
    """The text of ro-crate-metadata.json."""
    used = software(results)
    made: dict[str, list[str]] = {}
    for result in results:
        made.setdefault(result.stage.split("@", maxsplit=1)[0], []).append(result.path)
    inputs = [parameter(f"input-{name}", about, [example], kind) for name, (about, example, kind) in INPUTS.items()]
    outputs = [parameter(f"output-{name}", source.stages[name], paths, "Dataset") for name, paths in sorted(made.items())]
    example_of = {path: node["@id"] for node in inputs + outputs for path in ids(node["workExample"])}
    entities = [data(part) for part in parts]
    for entity in entities:
        if entity["@id"] in example_of:
            entity["exampleOfWork"] = {"@id": example_of[entity["@id"]]}
        if entity["@id"] == WORKFLOW:
            entity.update(workflow(source, (inputs, outputs), used))
    licenses = sorted({name for part in parts for name in part.license.split(" AND ")})
    crate = ROCrate(version="1.2")
    crate.metadata.extra_contexts = ["https://w3id.org/ro/terms/workflow-run/context"]
    crate.metadata.extra_terms = TERMS
    for name, value in root(source).items():
        crate.root_dataset[name] = value
    crate.add(*(DataEntity(crate, entity["@id"], entity) for entity in entities))
    rest = [run(results), *context(source, licenses), *used, *inputs, *outputs]
    crate.add(*(ContextEntity(crate, node["@id"], node) for node in rest))
    described = crate.metadata.generate()
    described["@graph"].sort(key=lambda node: (node["@id"] != METADATA, node["@id"] != "./", node["@id"]))
    return json.dumps(described, ensure_ascii=False, sort_keys=True, indent=2) + "\n"


def ids(links: Any) -> list[str]:
    """The ids that one link or a list of links names."""
    return [link["@id"] for link in (links if isinstance(links, list) else [links])]
