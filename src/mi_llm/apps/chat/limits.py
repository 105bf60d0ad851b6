"""How much one visitor, one address and all together may ask: buckets that fill with time, and a count of replies under way."""

import time
from collections import OrderedDict
from dataclasses import dataclass

BUCKETS = 20_000  # how many are remembered; the one unused longest is forgotten, and is then full again


@dataclass(frozen=True)
class Rate:
    """So many at once, and so many a minute from then on."""

    burst: float
    a_minute: float


MESSAGES_VISITOR = Rate(burst=8, a_minute=20)
MESSAGES_ADDRESS = Rate(burst=200, a_minute=600)  # a class or a household may share one
REQUESTS_ADDRESS = Rate(burst=400, a_minute=2400)
VISITORS_ADDRESS = Rate(burst=200, a_minute=60)  # so that no address alone can push all others off the shelf
SIGN_INS_ADDRESS = Rate(burst=10, a_minute=10)
REPLIES_UNDER_WAY = 128


class Limits:
    """Buckets by purpose and by who asks."""

    def __init__(self) -> None:
        self.buckets: OrderedDict[tuple[Rate, str], tuple[float, float]] = OrderedDict()

    def wait(self, rate: Rate, who: str) -> float:
        """Take one, and return 0; or, where none is left, the seconds until there is one."""
        now = time.monotonic()
        level, since = self.buckets.pop((rate, who), (rate.burst, now))
        level = min(rate.burst, level + (now - since) * rate.a_minute / 60)
        self.buckets[rate, who] = (level - 1 if level >= 1 else level, now)
        while len(self.buckets) > BUCKETS:
            self.buckets.popitem(last=False)
        return 0.0 if level >= 1 else (1 - level) * 60 / rate.a_minute
