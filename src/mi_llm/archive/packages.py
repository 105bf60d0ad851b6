"""The packages that the study runs on: which files they are, with SHA-256 and license, and the bill of materials made of that.

`packages.csv` is committed: an archive must be the same bytes without a network too. `mi-llm archive packages` renews it from
pip's own report after requirements.lock changed. A package may have several rows: one per platform, or a CPU and a CUDA build.
"""

import csv
import io
import json
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from importlib.metadata import metadata
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id
from packageurl import PackageURL

from mi_llm import __version__, storage
from mi_llm.compare import LOCK, locked_versions, normal_name
from mi_llm.problem import Problem

TABLE = Path("src/mi_llm/archive/packages.csv")
CLASSIFIED = {  # what a package says in a classifier only, where that names one license
    "Apache Software License": "Apache-2.0",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


@dataclass(frozen=True)
class Package:
    """One file of a package: name and version as in requirements.lock, SHA-256, license (SPDX, or the package's own words)."""

    package: str
    version: str
    file: str
    sha256: str
    license: str


def shipped() -> str:
    """The committed table, as text."""
    return (resources.files(__package__) / TABLE.name).read_text(encoding="utf-8")


def read(table: str) -> list[Package]:
    """The rows of a packages.csv."""
    return [Package(**row) for row in csv.DictReader(io.StringIO(table))]


def against(lock: str, packages: list[Package]) -> list[str]:
    """Where a table of packages differs from the lock; an empty list if it does not."""
    expected, listed = locked_versions(lock), {normal_name(item.package): item.version for item in packages}
    names = sorted(expected.keys() | listed.keys())
    return [
        f"{name}: {listed.get(name, 'nothing')}, not {expected.get(name, 'in the lock')}"
        for name in names
        if expected.get(name) != listed.get(name)
    ]


def license(name: str) -> str:
    """An installed package's license: its SPDX expression, else the SPDX name of its older metadata, else its own words."""
    about = metadata(name)
    if expression := about["License-Expression"]:
        return str(expression)
    own = str(about["License"] or "").strip()
    if identifier := fixup_id(own):
        return str(identifier)
    classified = [
        item.rsplit(" :: ", 1)[-1] for item in about.get_all("Classifier", []) if item.startswith("License :: OSI Approved :: ")
    ]
    if len(classified) == 1 and classified[0] in CLASSIFIED:
        return CLASSIFIED[classified[0]]
    words = own if "\n" not in own else ""
    return " / ".join(classified) or words or "see the package"


def renew() -> None:
    """Ask pip which files it would install here for the lock, and add them to the table; rows of the locked versions stay."""
    versions = locked_versions(storage.read_text(LOCK))
    arguments = [
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
        "--requirement",
        str(LOCK),
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], stdout=subprocess.PIPE, check=False)  # noqa: S603 — a fixed command
    if done.returncode:
        raise Problem(
            "pip", "could not find every package; its message is above", "an index that has them", "correct pip's settings"
        )
    rows = (
        {item for item in read(storage.read_text(TABLE)) if versions.get(normal_name(item.package)) == item.version}
        if TABLE.exists()
        else set()
    )
    for item in json.loads(done.stdout)["install"]:
        name, download = item["metadata"]["name"], item["download_info"]
        file = unquote(download["url"].rsplit("/", 1)[-1])
        rows.add(Package(name, versions[normal_name(name)], file, download["archive_info"]["hashes"]["sha256"], license(name)))
    listed = pd.DataFrame(sorted(rows, key=lambda row: (normal_name(row.package), row.file)))
    storage.write_table(TABLE, listed)
    print(f"{TABLE}: {len(rows)} files of {len(versions)} packages; commit it together with {LOCK}", file=sys.stderr)


def sums(packages: list[Package]) -> str:
    """What `sha256sum --check` reads, for package files in a folder wheels/."""
    return "".join(f"{item.sha256}  wheels/{item.file}\n" for item in packages)


def bill(packages: list[Package], commit: str, moment: datetime) -> str:
    """The software bill of materials: CycloneDX 1.6, JSON; serial number and time come from the commit."""
    license_of = LicenseFactory().make_from_string
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"https://doi.org/10.2196/89077#{commit}"))
    bom.metadata.timestamp = moment
    study = Component(
        name="mi-llm", version=__version__, type=ComponentType.APPLICATION, bom_ref="mi-llm", licenses=[license_of("MIT")]
    )
    bom.metadata.component = study
    for name, version in sorted({(item.package, item.version) for item in packages}):
        rows = [item for item in packages if item.package == name]
        address = PackageURL("pypi", None, normal_name(name), version)
        bom.components.add(
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                bom_ref=str(address),
                purl=address,
                licenses=[license_of(rows[0].license)],
                external_references=[
                    ExternalReference(
                        type=ExternalReferenceType.DISTRIBUTION,
                        url=XsUri(row.file),
                        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=row.sha256)],
                    )
                    for row in rows
                ],
            )
        )
    bom.register_dependency(study, bom.components)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"
