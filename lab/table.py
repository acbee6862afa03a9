"""The table of boxes and machines (boxes.json), which the Vagrantfile reads too."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from .errors import LabError

TABLE_FILE = Path(__file__).with_name("boxes.json")
TIERS = ("gate", "full", "named")
"""The tiers: `gate`, `full` (`all` runs both), and `named`, whose machines run only when named."""
SUITES = {"xfstests": "ltp/fsstress", "pjdfstest": "pjdfstest"}
"""File system suites that machines run from an installed copy, each with a file that identifies a built copy."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A bootable disk: what it is made from."""

    name: str
    about: str
    suite: str
    kernel: str
    disk_gib: int
    packages: tuple[str, ...]
    peers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MachineSpec:
    """A machine: a box, the engine that its provision script starts, and the containers made there."""

    name: str
    box: str
    engine: str
    tier: str
    memory_mib: int
    cpus: int
    containers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Everything in boxes.json."""

    boxes: dict[str, Box]
    machines: dict[str, MachineSpec]

    def machine(self, name: str) -> MachineSpec:
        """The machine NAME. Raises LabError if there is none."""
        if name not in self.machines:
            raise LabError(f"no machine is called {name!r}", f"there are: {', '.join(self.machines)}")
        return self.machines[name]

    def tier(self, tier: str) -> list[str]:
        """The names of the machines of a tier; the full tier includes the gate's."""
        wanted = ("gate", "full") if tier == "full" else (tier,)
        return [m.name for m in self.machines.values() if m.tier in wanted]


def parse(text: str) -> Table:
    """Parse the table. Raises LabError if a row refers to something that does not exist."""
    raw = json.loads(text)
    sets: dict[str, list[str]] = raw["package_sets"]
    boxes = {}
    for name, row in raw["boxes"].items():
        packages: list[str] = []
        for word in row["packages"]:
            packages += sets.get(word, [word])
        boxes[name] = Box(
            name, row["about"], row["suite"], row["kernel"], row["disk_gib"], tuple(packages), tuple(row["peers"])
        )
    machines = {}
    for name, row in raw["machines"].items():
        spec = MachineSpec(name=name, **{**row, "containers": tuple(row["containers"])})
        if spec.box not in boxes:
            raise LabError(f"{TABLE_FILE.name}: machine {name} wants box {spec.box!r}, which is not in the table")
        if spec.tier not in TIERS:
            raise LabError(f"{TABLE_FILE.name}: machine {name} has tier {spec.tier!r}; tiers are {', '.join(TIERS)}")
        machines[name] = spec
    return Table(boxes, machines)


@functools.cache
def load() -> Table:
    """The table of this checkout."""
    return parse(TABLE_FILE.read_text())
