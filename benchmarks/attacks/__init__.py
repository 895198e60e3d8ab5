"""What a hostile or careless caller may send, a kind a function: see `benchmarks.abuse`."""

from __future__ import annotations

from benchmarks.attacks.attack import Attack, Site
from benchmarks.attacks.bodies import BODIES
from benchmarks.attacks.connections import CONNECTIONS
from benchmarks.attacks.pictures import PICTURES
from benchmarks.attacks.promises import PROMISES

ATTACKS: dict[str, Attack] = {
    attack.name: attack for attack in (*BODIES, *PICTURES, *CONNECTIONS, *PROMISES)
}

__all__ = ["ATTACKS", "Attack", "Site"]
