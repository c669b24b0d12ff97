"""Run lm-eval on a model in memory."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cola_lib.errors import SpecError
from cola_lib.evaluate.harness.official import FEWSHOT_SEED, CodeScorer, Quiet, build
from cola_lib.evaluate.harness.result import OWN, HarnessResult, plain
from cola_lib.evaluate.harness.selection import HarnessSuite
from cola_lib.evaluate.sandbox import check_sandbox, require_permission

if TYPE_CHECKING:
    from cola_lib.models import LanguageModel

log = logging.getLogger(__name__)


def run_harness(
    lm: LanguageModel,
    suite: HarnessSuite,
    *,
    batch_size: int = 8,
    bootstrap_iters: int = 0,
    allow_code_execution: bool = False,
    progress: bool = True,
) -> HarnessResult:
    """Evaluate a model with lm-eval.

    Notes
    -----
    lm-eval is imported here, which takes 15 to 30 s. ``lm_eval.simple_evaluate`` is not used: it sets the global random
    seeds and describes the machine at length. What it decides about examples and seeds is decided in the same way.
    """
    if suite.runs_code:
        require_permission(allow_code_execution, ", ".join(task.name for task in suite.tasks if task.code))
        check_sandbox()
    if batch_size < 1:
        raise SpecError(f"batch_size is {batch_size}; it must be at least 1")
    template = _chat_template(lm) if suite.chat_template else None
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    began = time.time()
    scorers: dict[str, CodeScorer] = {}
    with _quiet("lm_eval.api.task", "lm_eval.models.huggingface"), _bars(progress):
        tasks = TaskManager(include_defaults=False).load(build(suite, scorers))
        # A copy of the tokenizer: lm-eval gives it a padding token.
        runner = HFLM(
            pretrained=lm.model,
            tokenizer=copy.deepcopy(lm.tokenizer),
            batch_size=batch_size,
            max_length=suite.max_length,
        )
        report: dict[str, Any] = evaluator.evaluate(
            runner,
            tasks,
            limit=suite.limit,
            bootstrap_iters=bootstrap_iters,
            apply_chat_template=suite.chat_template,
            fewshot_as_multiturn=suite.chat_template,
            confirm_run_unsafe_code=suite.runs_code,
        )
    _add_items(report, suite, scorers)
    for config in report["configs"].values():
        config.pop("custom_dataset", None)  # the source text of a function of ours
    report["task_hashes"] = {task: _task_hash(samples) for task, samples in report["samples"].items()}
    report["config"] = {
        "model": lm.name,
        "model_args": None,
        "model_num_parameters": lm.model.num_parameters(),
        "model_dtype": str(lm.dtype),
        "batch_size": batch_size,
        "device": str(lm.device),
        "limit": suite.limit,
        "bootstrap_iters": bootstrap_iters,
        "gen_kwargs": None,
        "fewshot_seed": FEWSHOT_SEED,
    }
    report |= {
        "date": began,
        "total_evaluation_time_seconds": str(time.time() - began),
        "max_length": runner.max_length,
        "fewshot_as_multiturn": suite.chat_template,
        "chat_template": template,
        "chat_template_sha": template and hashlib.sha256(template.encode()).hexdigest(),
    }
    report |= {f"{name}_version": version(name) for name in ("lm_eval", "transformers")}
    report[OWN] = {
        "version": version("cola-lib"),
        "model_fingerprint": lm.fingerprint,
        "suite": suite.name,
        "dataset": suite.dataset,
        "items": suite.items,
        "missing": dict(suite.missing),
        "sandbox": asdict(suite.sandbox) if suite.runs_code else None,
    }
    return HarnessResult(plain(report))


def _chat_template(lm: LanguageModel) -> str:
    """Find the tokenizer's template. lm-eval would go on without one."""
    try:
        return str(lm.tokenizer.get_chat_template())
    except ValueError as error:
        raise SpecError(
            f"the tokenizer of {lm.name} has no chat template; leave chat_template (--chat-template) out, or set "
            "tokenizer.chat_template"
        ) from error


def _add_items(report: dict[str, Any], suite: HarnessSuite, scorers: dict[str, CodeScorer]) -> None:
    """Name the item of each sample, and say how its program ended."""
    for task, samples in report["samples"].items():
        names = suite.item_ids(task) if suite.dataset == "packaged" else None
        for sample in samples:
            number = sample["doc_id"]
            sample["item"] = names[number] if names else f"{task}/{number}"
        if task in scorers:
            for sample, run in zip(samples, scorers[task].runs, strict=True):
                sample["sandbox"] = {"outcome": run.outcome, "output": run.output[-1000:], "seconds": run.seconds}


def _task_hash(samples: list[dict[str, Any]]) -> str:
    """Hash items, prompts and targets together, as lm-eval does when it writes results."""
    text = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Take lm-eval's bars away if they are not wanted."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    def without(*args: Any, **options: Any) -> Any:
        return tqdm(*args, **{**options, "disable": True})

    # lm-eval has no option for it: its evaluator hands no `disable_tqdm` on, and the bar that builds requests takes
    # none. tqdm's own switch, TQDM_DISABLE, is read once, when tqdm is imported. So their name for it is lent out.
    modules = () if shown else (model, task, huggingface)
    theirs = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = without
    try:
        yield
    finally:
        for module, bar in zip(modules, theirs, strict=True):
            module.tqdm = bar


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep remarks that say nothing here out of the log."""
    remark = Quiet()
    for name in names:
        logging.getLogger(name).addFilter(remark)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeFilter(remark)
