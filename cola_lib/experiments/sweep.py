"""A grid written down in a file: read it, check it, and cut it into tasks that need nothing of each other."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cola_lib.calibration import Layout
from cola_lib.compress import METHODS
from cola_lib.curation import GENERAL, STRATEGIES, TARGET_SAMPLES
from cola_lib.data import TARGETS
from cola_lib.errors import ColaError, SpecError
from cola_lib.evaluate import CAPABILITIES, LINES, Balance, Choices
from cola_lib.experiments.experiment import Experiment, LabelledSet, as_spec, as_strategy
from cola_lib.plain import load_yaml
from cola_lib.statistics import Propagate

Source = str | tuple[str, ...]
"""A source's name, or several to be mixed evenly."""


def _refused(reason: str) -> PydanticCustomError:
    return PydanticCustomError("cola", "{reason}", {"reason": reason})


def _typed(kind: type, options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Give options the types that the fields of a dataclass have; unknown options are left for others to refuse."""
    hints = get_type_hints(kind)
    typed = dict(options)
    for name, value in options.items():
        if name == "pattern" and isinstance(value, str):  # written as 4:8
            continue
        if name in hints:
            try:
                typed[name] = _adapter(hints[name]).validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                raise _refused(f"{what}: {name}: {_reason(error.errors()[0])}, and is {_short(value)}") from error
    return typed


def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _method(given: Any) -> Any:
    """Check a method, and keep it as the mapping that it is written as."""
    if not isinstance(given, dict) or not isinstance(given.get("method"), str):
        raise _refused(f"a method is written as {{method: gptq, bits: 3}}, and this is {_short(given)}")
    name = given["method"]
    if name not in METHODS:
        raise _refused(_unknown("method", name, METHODS))
    options = {option: value for option, value in given.items() if option != "method"}
    checked = {"method": name, **_typed(METHODS[name], options, name)}
    try:
        as_spec(checked)
    except ColaError as error:
        raise _refused(str(error)) from error
    return checked


def _strategy(given: Any) -> Any:
    """Check a strategy, and keep it as a mapping."""
    plain = {"strategy": given} if isinstance(given, str) else given
    if not isinstance(plain, dict) or not isinstance(plain.get("strategy"), str):
        raise _refused(f"a strategy is a name, or written as {{strategy: cola, domain: false}}: {_short(given)}")
    name = plain["strategy"]
    if name not in STRATEGIES:
        raise _refused(_unknown("strategy", name, STRATEGIES))
    options = {option: value for option, value in plain.items() if option != "strategy"}
    checked = {"strategy": name, **_typed(STRATEGIES[name], options, name)}
    try:
        as_strategy(checked)
    except ColaError as error:
        raise _refused(str(error)) from error
    return checked


def _targets(given: Any) -> Any:
    """Let targets that the library knows be given by name."""
    if isinstance(given, dict):  # what a validator passes on counts as Python, where a list is no tuple
        return {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    if not isinstance(given, list):
        return given
    for name in given:
        if name not in TARGETS:
            raise _refused(_unknown("target", str(name), TARGETS) + "; a mapping names the sources of others")
    return {name: tuple(TARGETS[name]) for name in given}


def _capability(given: Any) -> Any:
    if isinstance(given, str) and given not in (*CAPABILITIES, *LINES):
        raise _refused(_unknown("capability", given, (*CAPABILITIES, *LINES)))
    return given


def _listed(given: Any) -> Any:
    """Let a list of one number be written as the number."""
    return tuple(given) if isinstance(given, list) else (given,)


def _unknown(kind: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    offer = f"nearest: {', '.join(nearest)}" if nearest else f"allowed: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {offer}"


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Positive, ...], BeforeValidator(_listed), Field(min_length=1)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Drawn(_Checked):
    """Calibration sets of one source that are made in a way of their own."""

    source: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    n_samples: Positive | None = None
    seq_len: Positive | None = None
    layout: Layout | None = None
    format: Name | None = None
    segment_len: Positive | None = None
    split_rows: Positive | None = None
    repeat: Positive | None = None

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """What it sets, besides the source."""
        return tuple(self.model_dump(exclude={"source"}, exclude_none=True).items())


class Choosing(_Checked):
    """Strategies that choose calibration sets from a pool."""

    choose: Annotated[tuple[Annotated[dict[str, Any], BeforeValidator(_strategy)], ...], Field(min_length=1)]
    pool: Names
    targets: Names = (GENERAL,)
    limit: Positive | None = None


class Evaluation(_Checked):
    """What is measured on every compressed model."""

    capabilities: Annotated[tuple[Annotated[str, BeforeValidator(_capability)], ...], Field(min_length=1)] = (
        CAPABILITIES
    )
    tokens_per_capability: Positive = 2048
    balance: Balance = "bytes"
    choices: Choices = "all"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    sources: dict[Name, Name] | None = None


class Resources(_Checked):
    """What one worker of a cluster takes up; it shapes no number."""

    cpus: Positive = 1
    gpus: Literal[0, 1] = 0
    memory: Positive | None = None
    task_seconds: Positive = 6 * 3600


class Sweep(_Checked):
    """A grid: models × calibration sets × methods, and what is measured.

    Notes
    -----
    A set is walked by itself, also where another one's rows begin it, so that a cell's bits do not depend on what its
    worker did before.
    """

    about: str = ""
    models: Names = ("smollm2-135m",)
    methods: Annotated[tuple[Annotated[dict[str, Any], BeforeValidator(_method)], ...], Field(min_length=1)]
    sources: tuple[Name | Names | Drawn, ...] = ()
    strategies: Choosing | None = None
    draws: Positive = 3
    n_draws: Positive | None = None
    n_samples: Sizes = (8,)
    seq_len: Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_listed), Field(min_length=1)] = (256,)
    layout: Layout = "pack"
    overlap: Literal["drop", "raise", "allow"] = "drop"
    seed: Annotated[int, Field(ge=0)] = 0
    propagate: Propagate = "original"
    evaluate: Evaluation = Evaluation()
    targets: Annotated[dict[Name, Names], BeforeValidator(_targets)] = Field(default_factory=dict)
    target_samples: Positive = 16
    target_texts: Positive = TARGET_SAMPLES
    device: Name = "auto"
    store: Name = "results/sweep"
    packed: tuple[Name, ...] = ()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits_together(self) -> Sweep:
        if not self.sources and self.strategies is None:
            raise _refused("there is nothing to calibrate on: give sources, strategies or both")
        for field in ("models", "n_samples", "seq_len"):
            _refuse_twice(field, getattr(self, field))
        if self.n_draws is not None and self.n_draws < self.draws:
            raise _refused(f"n_draws: {self.draws} draws cannot be taken of {self.n_draws}")
        if self.strategies is not None:
            known = [GENERAL, *self.targets]
            for target in self.strategies.targets:
                if target not in known:
                    raise _refused(f"strategies.targets: {_unknown('target', target, known)}")
            needing = [chooser["strategy"] for chooser in self.strategies.choose if as_strategy(chooser).needs_target]
            if needing and not self.targets:
                raise _refused(f"strategy {needing[0]!r} chooses for targets: name some under targets")
        if self.resources.gpus == 0 and self.device.startswith("cuda"):
            raise _refused(f"device {self.device!r} needs resources: {{gpus: 1}}")
        return self

    @property
    def divided(self) -> int:
        """Into how many disjoint draws a source or pool is divided."""
        return self.n_draws or self.draws

    @property
    def calibrated(self) -> tuple[dict[str, Any], ...]:
        """Methods that read calibration data."""
        return tuple(method for method in self.methods if as_spec(method).calibrated)

    @property
    def uncalibrated(self) -> tuple[dict[str, Any], ...]:
        """Methods that read none."""
        return tuple(method for method in self.methods if not as_spec(method).calibrated)

    def tasks(self) -> list[SetTask]:
        """Cut the sweep into what is computed at one place, in the order in which one machine does it best."""
        found = []
        for model in self.models:
            first = SetTask(model, self.n_samples[0], self.seq_len[0])
            found.append(first)
            for draw in range(self.draws):
                for n_samples in self.n_samples:
                    for seq_len in self.seq_len:
                        one = dataclasses.replace(first, n_samples=n_samples, seq_len=seq_len, draw=draw)
                        found += self._tasks_of(one) if self.calibrated else []
        return found

    def _tasks_of(self, one: SetTask) -> list[SetTask]:
        """Every source and every strategy with each of its targets, for one model, size and draw."""
        tasks = [
            dataclasses.replace(one, source=each.source, options=each.options)
            if isinstance(each, Drawn)
            else dataclasses.replace(one, source=each)
            for each in self.sources
        ]
        if self.strategies is not None:
            for position, chooser in enumerate(map(as_strategy, self.strategies.choose)):
                for target in self.strategies.targets if chooser.needs_target else (None,):
                    tasks.append(dataclasses.replace(one, strategy=position, target=target))
        return tasks

    def n_cells(self, task: SetTask) -> int:
        """How many cells a task has."""
        return len(self.calibrated) if task.calibrated else 1 + len(self.uncalibrated)

    def experiment(self, model: str) -> Experiment:
        """Make the experiment that computes the cells of one model."""
        return Experiment(
            model=model,
            n_samples=self.n_samples[0],
            seq_len=self.seq_len[0],
            tokens_per_capability=self.evaluate.tokens_per_capability,
            capabilities=self.evaluate.capabilities,
            balance=self.evaluate.balance,
            choices=self.evaluate.choices,
            eval_dtype=self.evaluate.dtype,
            evaluate_on=self.evaluate.sources,
            store=self.store,
            packed=self.packed,
            layout=self.layout,
            overlap=self.overlap,
            seed=self.seed,
            device=self.device,
            targets=self.targets,
            target_samples=self.target_samples,
            target_texts=self.target_texts,
        )

    def labelled_set(self, task: SetTask, experiment: Experiment) -> LabelledSet:
        """Say how a task's calibration set is built, and what it is called."""
        if task.source is not None:
            return experiment.source_set({"source": task.source, "draw": task.draw, **dict(task.options)}, self.divided)
        chooser, options = self.choice(task)
        return experiment.chosen_set(chooser, options.pop("pool"), **options)

    def choice(self, task: SetTask) -> tuple[Any, dict[str, Any]]:
        """Give the strategy of a task, and the arguments with which it chooses."""
        if self.strategies is None or task.strategy is None:
            raise SpecError(f"{task}: no strategy chooses its set")
        return as_strategy(self.strategies.choose[task.strategy]), {
            "pool": self.strategies.pool,
            "draw": task.draw,
            "n_draws": self.divided,
            "target": task.target,
            "limit": self.strategies.limit,
        }


@dataclass(frozen=True)
class SetTask:
    """The cells of one model and one calibration set; or, without a set, those that read no data."""

    model: str
    n_samples: int
    seq_len: int
    draw: int = 0
    source: Source | None = None
    strategy: int | None = None
    target: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether it has a calibration set."""
        return self.source is not None or self.strategy is not None


def _refuse_twice(field: str, values: Sequence[Any]) -> None:
    twice = [value for position, value in enumerate(values) if value in values[:position]]
    if twice:
        raise _refused(f"{field}: {twice[0]!r} is there twice")


class _OnceLoader(yaml.SafeLoader):
    """YAML whose mappings have every key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_sweep(path: str | os.PathLike[str], **changes: Any) -> Sweep:
    r"""Read a sweep from a YAML file, and check all of it.

    Parameters
    ----------
    path : path
        Of the file, whose keys are the parameters of :class:`Sweep`.
    **changes
        Values that replace those of the file.

    Returns
    -------
    Sweep

    Raises
    ------
    SpecError
        If the file cannot be read, has a key that no sweep has, or a value that is not allowed. The message names the
        file, the key and what is allowed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cola_lib.errors import SpecError
    >>> from cola_lib.experiments import read_sweep
    >>> n_bytes = Path("sweep.yml").write_text("{methods: [{method: wanda}], suorces: [c4]}")
    >>> try:
    ...     read_sweep("sweep.yml")
    ... except SpecError as error:
    ...     print(error)
    sweep.yml: unknown key 'suorces'; nearest: sources, resources, store
    """
    name = os.fspath(path)
    try:
        plain = load_yaml(Path(path).read_text(encoding="utf-8"), _OnceLoader)
        if not isinstance(plain, dict):
            raise SpecError(f"{name}: a sweep is a mapping of keys to values, and this is {_short(plain)}")
        text = json.dumps({**plain, **changes}, allow_nan=True)
    except OSError as error:
        raise SpecError(f"{name}: cannot be read ({error.strerror or error})") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except (UnicodeError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise SpecError(f"{name}: holds what a sweep cannot: {error}") from error
    try:
        return Sweep.model_validate_json(text)
    except ValidationError as error:
        found: list[dict[str, Any]] = [{**each, "loc": _place(each["loc"])} for each in error.errors()]
        # a list whose items are all refused is told to be empty, too
        told = [_told(each) for each in found if not any(_is_within(other["loc"], each["loc"]) for other in found)]
        raise SpecError(f"{name}: {'; '.join(dict.fromkeys(told))}") from error


def _place(path: Sequence[Any]) -> tuple[Any, ...]:
    """Where a value stands, without the names that pydantic has for the alternatives of a type."""
    return tuple(
        part
        for part in path
        if isinstance(part, int) or not re.match(r"constrained-|tuple\[|function-|Drawn$|str$", part)
    )


def _is_within(path: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return 0 < len(outer) < len(path) and path[: len(outer)] == outer


def _told(error: Mapping[str, Any]) -> str:
    """Say where a value is wrong, and what would be right."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        *outer, key = error["loc"]
        return _unknown("key", str(key), _fields(outer)) + (f" (under {'.'.join(map(str, outer))})" if outer else "")
    if error["type"] == "cola":
        return f"{where}: {error['msg']}" if where else error["msg"]
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    return f"{where}: {_reason(error)}, and is {_short(error['input'])}"


def _reason(error: Mapping[str, Any]) -> str:
    """Say in YAML's words what pydantic found."""
    text = error["msg"].replace("valid array", "list").replace("Tuple", "List").replace(" after validation", "")
    return f"{text[0].lower()}{text[1:]}"


def _fields(path: Sequence[Any]) -> list[str]:
    """Keys that are allowed at a place of a sweep."""
    kind: type[BaseModel] = Sweep
    for part in path:
        if isinstance(part, str):
            kind = next(_models(kind.model_fields[part].annotation))
    return list(kind.model_fields)


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    """Find the models among a type and its parts."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for part in get_args(hint):
        yield from _models(part)
