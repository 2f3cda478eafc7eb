"""What is said, by commands that go on through it, of a store that is away."""

from __future__ import annotations

import sys

from metta.sweep.errors import StoreAwayError


class Absences:
    """Says on standard error when the store is away, once an absence, and when it is back."""

    def __init__(self) -> None:
        self._is_away = False

    def away(self, error: StoreAwayError) -> None:
        """It cannot be reached just now."""
        if not self._is_away:
            sys.stderr.write(f"the store is away, waiting for it: {error}\n")
        self._is_away = True

    def there(self) -> None:
        """It has answered."""
        if self._is_away:
            sys.stderr.write("the store is back\n")
        self._is_away = False
