"""Negative log-likelihood of continuations: one decoder pass, logits only where they are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from cola_lib.evaluate.suite import Suite
    from cola_lib.models import LanguageModel


def evaluate(
    lm: LanguageModel, suite: Suite, *, batch_tokens: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Score every item of a suite."""
    raise NotImplementedError
