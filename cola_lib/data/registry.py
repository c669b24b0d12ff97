"""The named sources, and how a name with filters becomes samples."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from types import MappingProxyType

from cola_lib.data import benchmarks, corpora, external
from cola_lib.data.overlap import EvaluationIndex, overlap_groups
from cola_lib.data.sample import Sample
from cola_lib.data.split import BENCHMARK_FRACTION, EVALUATION_ONLY, TEXT_FRACTION, Split, part
from cola_lib.errors import DataError, SpecError, UnknownNameError
from cola_lib.registry import Registry

WEIGHTS = (
    ". From the command line sources are mixed evenly; other shares are for Python: cola_lib.calibration.interleave "
    "mixes sets of different sizes, and a set's rows may have weights"
)
_NUMBER = re.compile(r"\d*\.?\d+%?")

LEVELS = ("1", "2", "3", "4", "5")
YES_NO = ("no", "yes")

HINT = (
    "A Hugging Face dataset is written hf:NAME[:config][:split][:column], a local file or folder as its path; "
    "files end in .jsonl, .json, .csv, .tsv, .parquet, .txt or .md"
)


@dataclass(frozen=True)
class SourceInfo:
    """What a registered source offers.

    Parameters
    ----------
    name : str
        As :func:`load_samples` takes it.
    summary : str
        One line.
    domain : str
        Kind of text.
    licence : str
        Of the texts, as their publishers state it.
    filters : mapping of str to tuple of str
        Values that each filter takes; ``name:key=value``, several values with commas.
    evaluation_fraction : float
        Expected part of the source that is held out for evaluation, split by a hash of each sample's ``split_key``.
        With 0 all of it is for calibration. The evaluation half can be scored with
        :func:`cola_lib.evaluate.source_suite`.
    read : callable, optional
        Yields the samples. It is called once per process, when samples are first asked for.
    fields : mapping of str to str
        Attribute of :class:`Sample` that a filter compares, where it is not the one of the filter's name.
    defaults : mapping of str to str
        Values of filters that are not given.
    groups : mapping
        For a filter whose values stand for several of the attribute's: which.
    members : tuple of str
        For a union: the sources that it draws from evenly.

    Examples
    --------
    >>> from cola_lib.data import SOURCES, Sample, SourceInfo, load_samples
    >>> def haiku():
    ...     yield Sample("1", "An old silent pond", "haiku", language="en")
    ...     yield Sample("2", "古池や", "haiku", language="ja")
    >>> languages = {"language": ("en", "ja")}
    >>> info = SourceInfo("haiku", "short poems", "poetry", "CC0-1.0", languages, evaluation_fraction=0.0, read=haiku)
    >>> SOURCES.register(info).splits
    ('calibration', 'all')
    >>> [sample.text for sample in load_samples("haiku:language=en")]
    ['An old silent pond']
    """

    name: str
    summary: str
    domain: str
    licence: str
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    evaluation_fraction: float = BENCHMARK_FRACTION
    read: Callable[[], Iterable[Sample]] | None = field(default=None, repr=False)
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    defaults: Mapping[str, str] = field(default_factory=dict, repr=False)
    groups: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict, repr=False)
    members: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """Values of ``split`` that give samples."""
        if self.evaluation_fraction <= 0:
            return ("calibration", "all")
        only = self.evaluation_fraction >= EVALUATION_ONLY
        return ("evaluation", "all") if only else ("calibration", "evaluation", "all")


def _check(info: SourceInfo) -> None:
    if not info.name or ":" in info.name or external.is_external(info.name):
        raise SpecError(f"{info.name!r} cannot name a source: it is empty, has a colon, or means a file or dataset")
    if info.read is None and not info.members:
        raise SpecError(f"source {info.name!r} has no samples: give a function that reads them as read=")
    known = {attribute.name for attribute in dataclass_fields(Sample)}
    for key, attribute in ({key: key for key in info.filters} | dict(info.fields)).items():
        if key not in info.filters or (attribute not in known and key != RATIONALE):
            raise SpecError(
                f"source {info.name!r}: filter {key!r} would compare {attribute!r}; name a filter of the source and an "
                f"attribute of Sample: {', '.join(sorted(known))}"
            )


RATIONALE = "rationale"
"""Filter of sources with worked solutions; it shortens samples, and compares nothing."""

SOURCES: Registry[SourceInfo] = Registry("source", hint=HINT, check=_check)
"""All named sources; ``SOURCES.register`` adds to them."""


def _corpus(
    name: str,
    summary: str,
    domain: str,
    licence: str,
    read: Callable[[], list[Sample]],
) -> SourceInfo:
    return SourceInfo(name, summary, domain, licence, evaluation_fraction=TEXT_FRACTION, read=read)


def _benchmark(
    name: str,
    summary: str,
    domain: str,
    licence: str,
    read: Callable[[], list[Sample]],
    *,
    filters: Mapping[str, tuple[str, tuple[str, ...]]] | None = None,
    defaults: Mapping[str, str] | None = None,
    groups: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    fraction: float = BENCHMARK_FRACTION,
) -> SourceInfo:
    filters = filters or {}
    return SourceInfo(
        name,
        summary,
        domain,
        licence,
        {key: values for key, (_, values) in filters.items()},
        fraction,
        read,
        {key: attribute for key, (attribute, _) in filters.items()},
        defaults or {},
        groups or {},
    )


_RATIONALE = {RATIONALE: ("", YES_NO)}

for _info in (
    _corpus("c4", "web pages of the C4 crawl", "web", "ODC-By-1.0", corpora.c4),
    _corpus("wikipedia", "English Wikipedia articles", "encyclopedia", "CC-BY-SA-4.0", corpora.wikipedia),
    _corpus("stories", "short synthetic stories (TinyStories)", "fiction", "CDLA-Sharing-1.0", corpora.stories),
    _corpus("technical", "articles, manuals and licences", "technical", "as exllamav3 ships it", corpora.technical),
    _corpus("code", "source code in many programming languages", "code", "as exllamav3 ships it", corpora.code),
    # Split as a benchmark: each language has little, and is calibrated on as well as scored.
    _benchmark(
        "multilingual",
        f"text in {len(corpora.MULTILINGUAL_LANGUAGES)} natural languages",
        "multilingual",
        "as exllamav3 ships it",
        corpora.multilingual,
        filters={"language": ("language", corpora.MULTILINGUAL_LANGUAGES)},
    ),
    _benchmark(
        "gsm8k",
        "grade-school word problems with worked solutions",
        "math",
        "MIT",
        benchmarks.gsm8k,
        filters=_RATIONALE,
    ),
    _benchmark(
        "math",
        "competition problems with worked solutions (MATH)",
        "math",
        "MIT",
        benchmarks.math,
        filters={
            "level": ("difficulty", LEVELS),
            "subject": ("subject", benchmarks.MATH_SUBJECTS),
            **_RATIONALE,
        },
    ),
    _benchmark(
        "mbpp",
        "short programming tasks, Python unless asked otherwise",
        "code",
        "CC-BY-4.0",
        benchmarks.mbpp,
        filters={"language": ("language", (*benchmarks.MBPP_LANGUAGES, "all"))},
        defaults={"language": "python"},
    ),
    _benchmark(
        "humaneval",
        "Python function stubs with solutions",
        "code",
        "MIT",
        benchmarks.humaneval,
        fraction=EVALUATION_ONLY,
    ),
    _benchmark(
        "arc",
        "science exam questions, easy and challenge set",
        "commonsense",
        "CC-BY-SA-4.0",
        benchmarks.arc,
        filters={"set": ("subject", ("easy", "challenge"))},
    ),
    _benchmark("csqa", "questions on everyday concepts", "commonsense", "MIT", benchmarks.csqa),
    _benchmark("siqa", "questions on social situations", "commonsense", "CC-BY-4.0", benchmarks.siqa),
    _benchmark("piqa", "everyday physical goals, two solutions", "commonsense", "AFL-3.0", benchmarks.piqa),
    _benchmark("hellaswag", "event descriptions, four endings", "commonsense", "MIT", benchmarks.hellaswag),
    _benchmark("winogrande", "pronoun riddles, two options", "commonsense", "CC-BY-4.0", benchmarks.winogrande),
    _benchmark("openbookqa", "elementary science questions", "commonsense", "Apache-2.0", benchmarks.openbookqa),
    _benchmark("boolq", "yes/no questions on passages", "commonsense", "CC-BY-SA-3.0", benchmarks.boolq),
    _benchmark(
        "lambada",
        "passages whose last word needs all of them",
        "fiction",
        "CC-BY-4.0",
        benchmarks.lambada,
        fraction=EVALUATION_ONLY,
    ),
    _benchmark(
        "mmlu",
        "exam questions of 57 subjects",
        "knowledge",
        "MIT",
        benchmarks.mmlu,
        filters={
            "subject": ("subject", benchmarks.MMLU_SUBJECTS),
            "group": ("subject", tuple(benchmarks.MMLU_GROUPS)),
        },
        groups={"group": benchmarks.MMLU_GROUPS},
    ),
    SourceInfo(
        "commonsense",
        f"the same number from each of {', '.join(benchmarks.COMMONSENSE)}",
        "commonsense",
        "those of its members",
        members=tuple(benchmarks.COMMONSENSE),  # its samples carry the name of the set that they come from
    ),
):
    SOURCES.register(_info)

_PACKAGED_NAMES = frozenset(SOURCES)

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "language": ("c4", "wikipedia"),
        "commonsense": ("commonsense",),
        "math": ("gsm8k", "math"),
        "code": ("mbpp",),
        "knowledge": ("mmlu",),
    }
)
"""For each capability, sources whose calibration half holds texts like those it is evaluated on."""


def is_packaged(name: str) -> bool:
    """Say whether a source comes with the library, so that its halves are known to share no text."""
    return name.split(":", 1)[0] in _PACKAGED_NAMES


def source_names() -> list[str]:
    """List the named sources."""
    return list(SOURCES)


def source_info(name: str) -> SourceInfo:
    """Describe a named source."""
    head = name.split(":", 1)[0]
    if head not in SOURCES and (problem := external.unread_path(name)):
        raise DataError(f"source {name!r} {problem}")
    return SOURCES[head]


def domain_of(name: str) -> str:
    """Name the kind of text that a source holds.

    Parameters
    ----------
    name : str
        With or without filters. A source that is not registered is a kind of its own.

    Returns
    -------
    str
        Such as ``"web"``, ``"math"`` or ``"code"``; the name itself if it is not registered.

    Examples
    --------
    >>> from cola_lib.data import domain_of
    >>> domain_of("math:level=5"), domain_of("notes.jsonl")
    ('math', 'notes.jsonl')
    """
    head = name.split(":", 1)[0]
    return SOURCES[head].domain if head in SOURCES else name


def load_samples(name: str, split: Split = "calibration") -> list[Sample]:
    r"""Read the samples of a source on one side of the split.

    Parameters
    ----------
    name : str
        A named source, with filters after colons and several values after commas: ``"math"``,
        ``"math:level=4,5:subject=algebra"``, ``"gsm8k:rationale=no"``, ``"mbpp:language=rust"``,
        ``"multilingual:language=de,fr"``, ``"mmlu:group=stem"``. Or a Hugging Face dataset
        ``"hf:NAME[:config][:split][:column]"``, or a local file, folder or pattern, ``"notes.jsonl"``,
        ``"notes.csv.gz:column=body:rows=1000"``, ``"notes/*.md"``: see
        :func:`cola_lib.data.external.load_external`.
    split : {"calibration", "evaluation", "all"}
        No calibration item is ever an evaluation item, under any name, filter or format. What the
        user brings is all calibration.

    Returns
    -------
    list of Sample
        In the order of the source, without repeats.

    Raises
    ------
    UnknownNameError
        If the source, a filter or a value is unknown, with the nearest names.
    DataError
        If nothing is left, or the source has no such half.
    AssetError
        If the packaged data are missing or damaged.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cola_lib.data import load_samples
    >>> _ = Path("notes.jsonl").write_text('{"text": "Still waters run deep.", "language": "en"}\n')
    >>> [(sample.text, sample.language) for sample in load_samples("notes.jsonl")]
    [('Still waters run deep.', 'en')]
    """
    if split not in ("calibration", "evaluation", "all"):
        raise UnknownNameError("split", str(split), ("calibration", "evaluation", "all"))
    if external.is_external(name) or (name.split(":", 1)[0] not in SOURCES and external.is_folder(name)):
        if split == "evaluation":
            raise DataError(
                f"source {name!r} has no evaluation half: what you bring is all for calibration. Evaluate on a "
                f"named source: {', '.join(SOURCES)}"
            )
        return external.load_external(name)
    info = source_info(name)
    filters = parse_filters(name, info)
    if split not in info.splits:
        others = [other.name for other in SOURCES.values() if split in other.splits and other.domain == info.domain]
        only, verb = ("evaluation", "calibrate") if split == "calibration" else ("calibration", "evaluate")
        raise DataError(
            f"source {info.name!r} is for {only} only, so there is nothing to {verb} on. Take another of "
            f"domain {info.domain}: {', '.join(others) or 'there is none'}"
        )
    if info.members:
        return benchmarks.interleaved(_half(member, split) for member in info.members)
    half = _half(info.name, split)
    kept = _filtered(half, info, dict(info.defaults) | filters)
    if not kept:
        where = "" if split == "all" else f" in its {split} half"
        raise DataError(
            f"source {name!r} has 0 samples{where}: its filters leave none of {len(half):,}. Drop one of them"
        )
    return kept


def parse_filters(name: str, info: SourceInfo) -> dict[str, str]:
    """Parse and check the ``key=value`` parts of a source name."""
    found: dict[str, str] = {}
    for part_ in name.split(":")[1:]:
        key, equals, value = part_.partition("=")
        if not equals:
            advice = WEIGHTS if _NUMBER.fullmatch(part_) else ""
            raise DataError(f"source {name!r}: {part_!r} is not of the form key=value{advice}")
        if not info.filters:
            raise DataError(f"unknown filter of source {info.name!r} {key!r}: this source takes no filters")
        if key not in info.filters:
            raise UnknownNameError(f"filter of source {info.name!r}", key, info.filters)
        if key in found:
            raise DataError(f"source {name!r}: filter {key!r} comes twice; join its values with a comma")
        for one in value.split(","):
            if one not in info.filters[key]:
                raise _unknown_value(info, key, one)
        found[key] = value
    return found


def _unknown_value(info: SourceInfo, key: str, value: str) -> UnknownNameError:
    """Say that a filter does not take a value, and what it takes."""
    known = info.filters[key]
    kind = f"{key} of source {info.name!r}"
    error = UnknownNameError(kind, value, known)
    if max(map(len, known)) <= 2 and "; known: " not in str(error):
        # Any code of two letters is near to those that share one: only the whole list helps.
        return UnknownNameError(kind, value, known, f"Known: {', '.join(known)}")
    return error


def _filtered(samples: Sequence[Sample], source: SourceInfo, filters: Mapping[str, str]) -> list[Sample]:
    kept = list(samples)
    for key, value in filters.items():
        members = source.groups.get(key, {})
        wanted = {each for one in value.split(",") for each in members.get(one, (one,))}
        if key == RATIONALE:
            kept = kept if "yes" in wanted else [_without_rationale(sample) for sample in kept]
        elif "all" not in wanted:
            kept = [sample for sample in kept if getattr(sample, source.fields.get(key, key)) in wanted]
    return kept


def _without_rationale(sample: Sample) -> Sample:
    text = benchmarks.question_answer(sample.question or "", sample.answer or "")
    return replace(sample, text=text, reasoning=None)


@functools.cache
def _read(name: str) -> tuple[Sample, ...]:
    """Read a whole packaged source, repeats dropped; read once per process."""
    unique: dict[str, Sample] = {}
    read = SOURCES[name].read
    for sample in read() if read else ():
        unique.setdefault(sample.id, sample)
    return tuple(unique.values())


@functools.cache
def _half(name: str, split: Split) -> list[Sample]:
    return part(_read(name), split, SOURCES[name].evaluation_fraction)


def evaluation_index() -> EvaluationIndex:
    """Index the evaluation items of every registered source, Python only for MBPP; takes seconds, once."""
    return _index(tuple(name for name, info in SOURCES.items() if info.read and "evaluation" in info.splits))


@functools.cache
def _index(scored: tuple[str, ...]) -> EvaluationIndex:
    return EvaluationIndex([sample for name in scored for sample in load_samples(name, "evaluation")])


def overlap_report() -> str:
    """Compute which split keys of all packaged sources share text."""
    samples = [sample for name in SOURCES for sample in _read(name)]
    fraction: dict[str, float] = {}
    for sample in samples:
        key = sample.split_key
        fraction[key] = max(fraction.get(key, 0.0), SOURCES[sample.source].evaluation_fraction)
    groups = overlap_groups(samples)
    lines = [f"{max(fraction[key] for key in group)} {' '.join(group)}" for group in groups]
    return "\n".join(["# evaluation fraction, then split keys that share 13 words in a row", *lines]) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(overlap_report())
