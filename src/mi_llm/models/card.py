"""The model card that lies beside an adapter: what it is, of what it was made, what it must not be used for, whose license holds.

Reads the parameters and, for a model of the hub, its pin. The same run writes the same card: it has no dates and no machine
in it. Its text is `card.md.jinja`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from jinja2 import Environment, StrictUndefined

from mi_llm.engine.load import chat_format
from mi_llm.language import language
from mi_llm.models import hub
from mi_llm.study import Study

GRANULARITY = {
    "dialog": "a whole dialog",
    "round": "a round with its history",
    "release": "a dialog or a round with its history, as in the authors' training file",
}


@dataclass(frozen=True)
class Source:
    """Where a base model is from. `loadable`: plain transformers can load it from there without conversion.

    `joined_parameters`: how many LoRA would train on the published layout, where that keeps q, k and v in one matrix.
    """

    name: str
    revision: str | None = None
    licence: str = ""
    address: str = ""
    duties: tuple[str, ...] = ()
    citation: str = ""
    loadable: bool = False
    joined_parameters: int | None = None

    @property
    def hub(self) -> bool:
        """Whether it is from the hub, and not the bundle's own."""
        return self.revision is not None


def source_of(study: Study, model: str) -> Source:
    """The source of one of the study's models."""
    if study.base.source != "hub":
        return Source(model)
    entry = hub.entry_of(study, model)
    licence, rank = entry.licence, study.finetune.lora.rank
    return Source(
        entry.repository,
        entry.revision,
        licence.name,
        licence.address,
        licence.duties,
        entry.citation,
        not entry.converted,
        entry.shape.adapter(rank, joined_qkv=True) if entry.original.joined_qkv else None,
    )


def card(study: Study, model: str, source: Source, numbers: Mapping[str, float]) -> str:
    """The card's text, Markdown with a YAML head; `numbers` are those of `metrics.json`."""
    form = chat_format(study, model)
    options = form.records(study.finetune)
    values = {
        "study": study, "options": options, "model": model, "source": source, "numbers": numbers, "chat_format": form.name,
        "granularity": GRANULARITY[options.records],
    }  # fmt: skip
    return rendered(resources.files(__package__) / "card.md.jinja", values)


def rendered(template: Traversable, values: Mapping[str, Any]) -> str:
    """A card's text, from a template; a value that the template needs and does not get is an error. `values` name the study."""
    environment = Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)  # noqa: S701
    speech = language.load(values["study"].language).name.en
    return environment.from_string(template.read_text(encoding="utf-8")).render(values, speech=speech) + "\n"
