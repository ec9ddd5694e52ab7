"""Right or wrong, and how sure a share of right answers makes us."""

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054


def fraction_found(response: str, numbers: Sequence[str]) -> float:
    """The share of `numbers` that stand in the response, digit for digit (LWM's score is `answer in response`)."""
    return sum(number in response for number in numbers) / len(numbers)


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a proportion, by default 95% (Wilson 1927); (0, 1) where nothing was tried.

    It stays inside [0, 1] and keeps a width where all answers agree: 3 of 3 right is no proof of 100%.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
