"""The licenses of base models: what a study's `models` name by a key, and `licenses.yaml` holds.

That file lies in the repository, not in the package, so that a new license changes the code of no stage.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mi_llm import storage
from mi_llm.problem import Problem
from mi_llm.study import UNKNOWN, Study

FILE = Path("licenses.yaml")


class License(BaseModel):
    """One entry of `licenses.yaml`; its head explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    name: str
    address: str = ""
    duties: tuple[str, ...] = ()
    identifier: str = ""
    begins: str = ""
    shown: str = ""
    notice: str = ""

    @property
    def head(self) -> str:
        """The lines that a model card's head says of it."""
        if self.identifier != "other":
            return f"license: {self.identifier or self.key}"
        return f"license: other\nlicense_name: {self.key}\nlicense_link: {self.address}"


def known() -> dict[str, License]:
    """The licenses of the file, by key; raises Problem for an entry that is none."""
    content = storage.read_yaml(FILE)
    try:
        return {key: License.model_validate({"key": key, **entry}) for key, entry in content.items()}
    except (ValidationError, AttributeError, TypeError) as error:
        found = " ".join(str(error).split())[:300]
        raise Problem(str(FILE), found, "entries like those above it", "correct the file") from None


def license_of(study: Study, model: str) -> License:
    """The license of one of the study's models; raises Problem for a key that the file does not have."""
    key, licenses = study.models[model].license, known()
    if key == UNKNOWN:
        return License(key=UNKNOWN, name="a license that this study does not know")
    if key not in licenses:
        remedy = f"correct it; or read the license, and add an entry to {FILE}"
        raise Problem(f"{study.params}: models.{model}.license", key, f"one of {', '.join(licenses)}, {UNKNOWN}", remedy)
    return licenses[key]
