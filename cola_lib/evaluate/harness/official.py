"""lm-eval's own definitions, with other data behind them and generated code run in the sandbox."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_lib.data.published import PublishedItem
from cola_lib.errors import DataError, SandboxError, SpecError
from cola_lib.evaluate.harness.selection import HarnessSuite
from cola_lib.evaluate.harness.tasks import GROUPS, HarnessTask
from cola_lib.evaluate.sandbox import CodeRun, Limits, check_sandbox, run_code

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""lm-eval's default."""


class CodeScorer:
    """Stands in for the metric ``code_eval``, which a definition downloads, and which runs programs unguarded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.runs: list[CodeRun] = []

    def share(self, references: str | Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
        """Share of the programs that pass."""
        tests = [references] if isinstance(references, str) else references
        candidates = [[one] if isinstance(one, str) else one for one in predictions]
        passed = []
        for test, programs in zip(tests, candidates, strict=True):
            for program in programs:
                run = self._run(f"{program}\n{test}")
                self.runs.append(run)
                passed.append(run.passed)
        return sum(passed) / len(passed)

    def _run(self, program: str) -> CodeRun:
        """Run a program. One that breaks the sandbox has failed; a machine that cannot contain any is an error."""
        try:
            return run_code(program, allow_code_execution=True, limits=self._limits)
        except SandboxError as error:
            check_sandbox()
            log.warning("a generated program counts as failed: %s", error)
            return CodeRun("failed", str(error), exit_code=-1, seconds=0.0, cpu_seconds=0.0)

    def metric(self, task: str) -> Callable[..., Any]:
        """Give the function by the name, and with the result, that the definition of the task expects."""

        def pass_at_k(references: Any, predictions: Any, k: Any = None) -> dict[str, float]:
            return {"pass@1": self.share(references, predictions)}

        def pass_at_1(references: Any, predictions: Any) -> float:
            return self.share(references, predictions)

        found: dict[str, Callable[..., Any]] = {"humaneval": pass_at_k, "mbpp": pass_at_1}
        return found[task]


def _after_prompt(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """HumanEval: a completion continues its prompt."""
    return [[doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs, strict=True)]


def tasks_folder() -> Path:
    """Folder of the installed lm-eval's definitions."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise SpecError("lm-eval is not installed; install lm-eval>=0.4.13,<0.5")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def definition(task: HarnessTask) -> dict[str, Any]:
    """Read a task's official definition."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(tasks_folder() / task.yaml, resolve_func=not task.code)
    for structural in ("tag", "group", "task_list"):
        config.pop(structural, None)
    return config


def with_sandbox(task: HarnessTask, config: dict[str, Any], scorer: CodeScorer) -> dict[str, Any]:
    """Put the sandbox where a definition names the functions of its module."""
    (metric,) = config["metric_list"]
    config = {**config, "metric_list": [{**metric, "metric": scorer.metric(task.name)}]}
    if task.name == "humaneval":
        (outer,) = config["filter_list"]
        (inner,) = outer["filter"]
        config["filter_list"] = [{**outer, "filter": [{**inner, "filter_fn": _after_prompt}]}]
    if task.name == "mbpp":
        samples = _literal(tasks_folder() / "mbpp" / "utils.py", "list_fewshot_samples")
        config["fewshot_config"] = {**config["fewshot_config"], "samples": samples}
    return config


def _literal(module: Path, function: str) -> Any:
    """Read what a function returns out of its source, without running the module."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name, body=[*_, ast.Return(value=ast.expr() as value)]) if name == function:
                return ast.literal_eval(value)
    raise SpecError(
        f"{module}: no function {function} that returns a literal; this lm-eval is another one than was tried"
    )


def with_packaged_items(
    task: HarnessTask,
    config: dict[str, Any],
    wanted: Sequence[PublishedItem],
    examples: Sequence[PublishedItem],
) -> dict[str, Any]:
    """Put packaged items behind a definition."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    splits: dict[str, Dataset] = {task.split: Dataset.from_list([task.columns(item.row) for item in wanted])}
    own_examples = config.get("fewshot_split") == "dev"
    changed = {**config, "training_split": None, f"{task.split}_split": task.split}
    if task.split == "validation":
        changed["test_split"] = None
    if examples:
        name = "dev" if own_examples else "train"
        splits[name] = Dataset.from_list([task.columns(item.row) for item in examples])
        changed["training_split"] = None if own_examples else name
    elif config.get("training_split"):
        # lm-eval leaves an item out of its own examples where they come from the split named as the test split.
        changed |= {"validation_split": None, "test_split": task.split, "fewshot_split": task.split}

    def packaged_items(**_: Any) -> DatasetDict:
        return DatasetDict(splits)

    return {**changed, "custom_dataset": packaged_items}


def build(suite: HarnessSuite, scorers: dict[str, CodeScorer]) -> list[Task | Group]:
    """Make lm-eval's tasks, in their groups."""
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    found: list[Task | Group] = []
    groups: dict[str, Group] = {}
    for task in suite.tasks:
        config = definition(task)
        if task.code:
            scorers[task.name] = CodeScorer(suite.sandbox)
            config = with_sandbox(task, config, scorers[task.name])
        if suite.dataset == "packaged":
            config = with_packaged_items(task, config, *suite.rows[task.name])
        try:
            made = ConfigurableTask(config=config)
        except (OSError, ValueError) as error:
            if suite.dataset == "packaged":
                raise
            raise DataError(
                f"task {task.name}: lm-eval could not get {config.get('dataset_path')} from the hub: {error}. Check "
                "that this machine reaches it, or take dataset='packaged'"
            ) from error
        _set_examples(made, suite.num_fewshot)
        within: Group | None = None
        for name in task.groups:
            if name not in groups:
                groups[name] = Group.from_config(load_yaml(tasks_folder() / GROUPS[name]))
                found.append(groups[name]) if within is None else within.add(groups[name])
            within = groups[name]
        found.append(made) if within is None else within.add(made)
    return found


def _set_examples(task: Task, num_fewshot: int | None) -> None:
    """Decide on the number of solved examples as lm-eval does: a definition that says 0 is not overruled."""
    defined = task.get_config("num_fewshot")
    if num_fewshot is not None and defined != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif defined is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


class Quiet(logging.Filter):
    """Drops lm-eval's remarks, once for each task or run, on what is done here on purpose."""

    _REMARKS = ("Custom kwargs can be passed", "`pretrained` model kwarg is not", "Passed an already-initialized model")

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is kept."""
        return not any(remark in record.getMessage() for remark in self._REMARKS)
