"""A bar that says how far a fit is."""

import contextlib
from typing import Any


class Bar:
    """With `tqdm`, if there is one and it `is_shown`. Until the first step is done, the program is
    being compiled."""

    def __init__(self, steps: int, done: int, is_shown: bool):
        self._bar: Any = None
        if is_shown:
            with contextlib.suppress(ImportError):
                from tqdm.auto import tqdm

                self._bar = tqdm(total=steps, initial=done, desc="compiling")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, value: float) -> None:
        """After a step."""
        if self._bar is not None:
            self._bar.set_description("fit", refresh=False)
            self._bar.set_postfix(value=f"{value:.5g}", refresh=False)
            self._bar.update()
