"""The client cards of the page: the profiles of the study's language, and the sentences that a visitor may begin with.

Chinese ones also stand in English (`cards_en.yaml`); those of another language stand as they are on both pages.
"""

from dataclasses import dataclass
from importlib import resources

from mi_llm import storage
from mi_llm.codebook.coding import Text
from mi_llm.miti.clients import Profile, bundled, read_profiles


@dataclass(frozen=True)
class Card:
    """One client in both languages of the page; `starters` are offered beside the message field, as the client speaks."""

    profile: Profile
    behavior: Text
    manifestation: Text
    reason: Text
    starters: tuple[Text, ...]


def cards(language: str) -> dict[str, Card]:
    """The cards of a language's clients, by the profile's id."""
    english = storage.read_yaml(resources.files(__package__) / "cards_en.yaml") if language == "zh" else {}
    known = {}
    for profile in read_profiles(bundled(language))[0]:
        if (says := profile.says) is None:
            raise ValueError(f"profile {profile.id} has no lines to offer")
        said = (says.opening, says.manifestation[0], says.reason[0], says.change[0])
        own = {"behavior": profile.behavior, "manifestation": profile.manifestation, "reason": profile.reason, "says": said}
        entry = english.get(profile.id, own)
        known[profile.id] = Card(
            profile,
            Text(entry["behavior"], profile.behavior),
            Text(entry["manifestation"], profile.manifestation),
            Text(entry["reason"], profile.reason),
            tuple(Text(en, zh) for en, zh in zip(entry["says"], said, strict=True)),
        )
    return known
