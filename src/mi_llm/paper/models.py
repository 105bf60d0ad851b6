"""The paper's models, read from `models.yaml`: every name under which the paper and its released files know them."""

from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from mi_llm import storage

REAL = "Real"  # the column of the real dialogs in Table 6


class PaperModel(BaseModel):
    """One model that the paper tuned; the head of `models.yaml` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chat_format: str
    table_1: str
    repository: str
    table_4: str
    table_6: str
    figure_3: str
    sheets: tuple[str, ...]


class PaperModels(BaseModel):
    """The content of `models.yaml`: models by name, and the rows of Table 1 that belong to models the paper did not tune."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tuned: dict[str, PaperModel]
    compared: dict[str, str]


@cache
def read() -> PaperModels:
    """The whole file."""
    return PaperModels.model_validate(storage.read_yaml(resources.files(__package__) / "models.yaml"))


def tuned() -> dict[str, PaperModel]:
    """The three models that the paper tuned, by name, in the order of its tables."""
    return read().tuned


def of_format(chat_format: str) -> PaperModel | None:
    """The paper's model beside which a study's model stands: the one with its chat format; None where the paper has none."""
    return next((model for model in tuned().values() if model.chat_format == chat_format), None)


def rows_of_table_1() -> dict[str, str]:
    """The model that each row of Table 1 is about."""
    return {model.table_1: model.repository for model in tuned().values()} | read().compared
