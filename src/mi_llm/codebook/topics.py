"""The topics of Table 5, recognized by words: in AnnoMI's own labels, and in what the clients of a language say."""

from functools import cache
from importlib import resources

from mi_llm import storage
from mi_llm.language import language


@cache
def labels() -> dict[str, list[str]]:
    """The words of each topic in AnnoMI's labels."""
    return dict(storage.read_yaml(resources.files(__package__) / "annomi_topics.yaml"))


@cache
def words(code: str) -> dict[str, list[str]]:
    """The words of each topic in what the clients of a language say."""
    return dict(language.load(code).read("topics.yaml"))


def topic_and_word(text: str, words_by_topic: dict[str, list[str]]) -> tuple[str, str]:
    """The topic whose word occurs earliest in the text, the first listed of equals, with that word; else `Other` and none."""
    occurrences = [
        (text.lower().find(word.lower()), order, name, word)
        for order, (name, topic_words) in enumerate(words_by_topic.items())
        for word in topic_words
        if word.lower() in text.lower()
    ]
    return min(occurrences)[2:] if occurrences else ("Other", "")


def topic(text: str, words_by_topic: dict[str, list[str]]) -> str:
    """The topic of a text; see `topic_and_word`."""
    return topic_and_word(text, words_by_topic)[0]
