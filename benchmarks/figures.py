"""What a run has found."""

import dataclasses
from typing import Any

from load import Row


@dataclasses.dataclass
class Figures:
    """Figures by the name of a work or line, and then of a server; `failures` says what could not be measured."""

    results: dict[str, dict[str, Row]] = dataclasses.field(default_factory=dict)
    lines: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    starts: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    idle: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)
