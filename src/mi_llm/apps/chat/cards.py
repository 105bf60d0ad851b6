"""The client cards of the page: the bundle's profiles in both languages, and the sentences that a visitor may begin with."""

from dataclasses import dataclass
from importlib import resources

from mi_llm import storage
from mi_llm.codebook.coding import Text
from mi_llm.miti.clients import Profile, bundled


@dataclass(frozen=True)
class Card:
    """One client in both languages; `starters` are offered beside the message field, and their Chinese is what is sent."""

    profile: Profile
    behaviour: Text
    manifestation: Text
    reason: Text
    starters: tuple[Text, ...]


def cards() -> dict[str, Card]:
    """The cards by the profile's id."""
    english = storage.read_yaml(resources.files(__package__) / "cards_en.yaml")
    found = {}
    for profile in bundled()[0]:
        if (says := profile.says) is None:
            raise ValueError(f"profile {profile.id} has no lines to offer")
        entry = english[profile.id]
        chinese = (says.opening, says.manifestation[0], says.reason[0], says.change[0])
        found[profile.id] = Card(
            profile,
            Text(entry["behaviour"], profile.behaviour),
            Text(entry["manifestation"], profile.manifestation),
            Text(entry["reason"], profile.reason),
            tuple(Text(en, zh) for en, zh in zip(entry["says"], chinese, strict=True)),
        )
    return found
