"""How far raters agree, beyond chance, on codes without order."""

from collections import Counter
from collections.abc import Hashable, Sequence


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters over the same items (Cohen 1960, doi:10.1177/001316446002000104).

    (observed − expected agreement) / (1 − expected); nan where both raters give one code only.
    """
    size = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / size
    ones, others = Counter(first), Counter(second)
    expected = sum(ones[code] * others[code] for code in ones) / size**2
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def fleiss(items: Sequence[Sequence[Hashable]]) -> float:
    """Fleiss' kappa (Fleiss 1971, doi:10.1037/h0031619): for each item the codes it was given, by two raters or more.

    Items may have different numbers of raters; each weighs by its pairs' mean agreement, and chance by all codes given.
    """
    rated = [Counter(codes) for codes in items if len(codes) > 1]
    agreement = []
    for counts in rated:
        size = counts.total()
        agreement.append(sum(count * (count - 1) for count in counts.values()) / (size * (size - 1)))
    observed = sum(agreement) / len(agreement)
    together = Counter[Hashable]()
    for counts in rated:
        together.update(counts)
    expected = sum((count / together.total()) ** 2 for count in together.values())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")
