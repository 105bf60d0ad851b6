"""Rate limits for one visitor and one address (token buckets), and the limit on replies under way for all together."""

import time
from collections import OrderedDict
from dataclasses import dataclass

BUCKETS = 20_000  # kept at most; the one unused longest is dropped, so it starts full again


@dataclass(frozen=True)
class Rate:
    """A limit: `burst` at once, and then `a_minute` per minute."""

    burst: float
    a_minute: float


MESSAGES_VISITOR = Rate(burst=8, a_minute=20)
MESSAGES_ADDRESS = Rate(burst=200, a_minute=600)  # a class or a household may share one
REQUESTS_ADDRESS = Rate(burst=400, a_minute=2400)
VISITORS_ADDRESS = Rate(burst=200, a_minute=60)  # so that no address alone can displace all other visitors
SIGN_INS_ADDRESS = Rate(burst=10, a_minute=10)
REPLIES_UNDER_WAY = 128


class Limits:
    """The buckets, by limit and by visitor or address."""

    def __init__(self) -> None:
        self.buckets: OrderedDict[tuple[Rate, str], tuple[float, float]] = OrderedDict()

    def wait(self, rate: Rate, who: str) -> float:
        """Take one from the bucket and return 0; if it is empty, return the seconds until it has one again."""
        now = time.monotonic()
        level, since = self.buckets.pop((rate, who), (rate.burst, now))
        level = min(rate.burst, level + (now - since) * rate.a_minute / 60)
        self.buckets[rate, who] = (level - 1 if level >= 1 else level, now)
        while len(self.buckets) > BUCKETS:
            self.buckets.popitem(last=False)
        return 0.0 if level >= 1 else (1 - level) * 60 / rate.a_minute
