"""The times of requests that one client sends one after the other."""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Timing:
    """The milliseconds of each request of a kind, and the server's memory before them and at its highest."""

    milliseconds: Sequence[float]
    memory_before: int
    memory_peak: int

    def percentile(self, share: float) -> float:
        """The time that this share of the requests took at most."""
        return sorted(self.milliseconds)[math.ceil(share * len(self.milliseconds)) - 1]

    @property
    def p50(self) -> float:
        return self.percentile(0.5)

    @property
    def p99(self) -> float:
        return self.percentile(0.99)

    @property
    def longest(self) -> float:
        return max(self.milliseconds)
