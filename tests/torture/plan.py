"""The schedule of an epoch: who is killed or stopped, when and how. A pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CREW", "Blow", "plan"]

# How many processes of each role work at the same time.
CREW = {"producer": 2, "consumer": 3, "claimer": 3, "reader": 2, "replacer": 1}

# How often each role is the victim: the more of its time in the lock, the more often.
_VICTIMS = {"producer": 6, "consumer": 6, "claimer": 6, "reader": 2, "replacer": 4}
# "kill": at whatever it is doing. "locked": while it holds the lock of an arena. "asleep": a
# consumer or claimer, once it sleeps in pop or claim. "stopped": stop, wait, kill. "pause": stop,
# wait, continue; nobody dies.
_WAYS = {"kill": 10, "locked": 6, "asleep": 2, "stopped": 1, "pause": 2}
_MOST_OPERATIONS = 200
_MOST_PAUSE_MS = 50


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to whom, once all processes together have done ``after`` more operations."""

    way: str
    role: str
    index: int
    after: int
    pause_ms: int

    @property
    def kills(self) -> bool:
        return self.way != "pause"


def plan(seed: str, kills: int) -> Iterator[Blow]:
    """Blows until ``kills`` of them have been deadly."""
    rng = random.Random(seed)
    while kills > 0:
        way = rng.choices(list(_WAYS), list(_WAYS.values()))[0]
        role = rng.choices(list(_VICTIMS), list(_VICTIMS.values()))[0]
        if way == "asleep":
            role = rng.choice(("consumer", "claimer"))
        blow = Blow(
            way,
            role,
            rng.randrange(CREW[role]),
            rng.randrange(_MOST_OPERATIONS),
            rng.randint(1, _MOST_PAUSE_MS),
        )
        kills -= blow.kills
        yield blow
