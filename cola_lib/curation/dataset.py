"""A calibration set as a Hugging Face dataset on disk, with a card that says where it came from.

The folder is laid out as a dataset repository is: ``README.md`` (the card), ``data/train-00000-of-00001.parquet`` with
one row per calibration row (``text``, ``input_ids``, ``attention_mask``, ``source``, ``id`` and, where rows count
differently, ``weight``), and ``curation.json`` with the card's facts. ``datasets.load_dataset(folder)`` reads it, and
so does :func:`read_dataset`, which gives the set back bit for bit. Nothing in it depends on the time or the place.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cola_lib.activations import coverage, mmd, pooled_activations, vendi_score
from cola_lib.calibration import CalibrationSet
from cola_lib.curation.lexical import repeated_ngrams
from cola_lib.curation.target import Target
from cola_lib.errors import DataError, OutputError
from cola_lib.folders import written_whole
from cola_lib.models import LanguageModel, fingerprint_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

FACTS = "curation.json"
TABLE = "data/train-00000-of-00001.parquet"
CARD = "README.md"


@dataclass(frozen=True)
class Curated:
    """A calibration set with what is known of it.

    Parameters
    ----------
    rows : CalibrationSet
        The set.
    texts : tuple of str
        What each row says.
    facts : mapping of str to Any
        For the card: plain data.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.curation import Curated, describe, row_texts
    >>> from cola_lib.models import byte_tokenizer
    >>> rows = random_tokens_set(byte_tokenizer(), 2, 8)
    >>> made = Curated(rows, tuple(row_texts(rows, byte_tokenizer())), describe(rows))
    >>> made.facts["rows"], len(made.texts)
    (2, 2)
    """

    rows: CalibrationSet
    texts: tuple[str, ...]
    facts: Mapping[str, Any]

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a Hugging Face dataset with a card; see :func:`write_dataset`."""
        write_dataset(self, out, overwrite=overwrite)


def describe(rows: CalibrationSet) -> dict[str, Any]:
    """Facts of a set that its tokens alone tell."""
    lengths = rows.attention_mask.sum(1)
    ids = rows.token_lists()
    per_source: Counter = Counter()
    for source, length in zip(rows.sources, lengths.tolist(), strict=True):
        per_source[source] += length
    counts = Counter(rows.sources)
    return {
        "rows": rows.n_samples,
        "seq_len": rows.seq_len,
        "effective_tokens": rows.n_tokens,
        "padding": round(1 - rows.n_tokens / rows.input_ids.numel(), 4),
        "mean_length": round(float(lengths.float().mean()), 1),
        "token_types": len({token for row in ids for token in row}),
        "repeated_4grams": round(sum(map(repeated_ngrams, ids)) / len(ids), 4),
        "sources": {
            source: {"rows": counts[source], "tokens": tokens, "share": round(tokens / rows.n_tokens, 4)}
            for source, tokens in sorted(per_source.items())
        },
        "weighted": rows.weights is not None,
        "fingerprint": rows.fingerprint,
    }


def measure(rows: CalibrationSet, lm: LanguageModel, target: Target | None = None) -> dict[str, Any]:
    """Diversity of a set in activation space, and how well it represents a target's texts."""
    own = pooled_activations(lm, rows, progress=False).vectors()
    found: dict[str, Any] = {"diversity": {"vendi_score": round(vendi_score(own), 3)}}
    if target is None:
        return found
    wanted = target.pool.rows(lm.tokenizer, rows.seq_len, most=32)
    theirs = pooled_activations(lm, wanted.tokens, progress=False).vectors()
    found["representativeness"] = {}
    for capability in target.texts:
        at = [i for i, source in enumerate(wanted.sources) if source == capability]
        found["representativeness"][capability] = {
            "coverage": round(coverage(theirs[at], own), 4),
            "mmd": round(mmd(theirs[at], own), 4),
        }
    return found


def compare(one: CalibrationSet, other: CalibrationSet) -> dict[str, Any]:
    """Tell how alike two sets are.

    Parameters
    ----------
    one, other : CalibrationSet
        Of one tokenizer.

    Returns
    -------
    dict
        ``shared_rows`` (rows with the same tokens), ``shared_samples``, ``shared_token_types`` (of all that either has)
        and ``token_overlap``: Σₜ min(pₜ, qₜ) over relative frequencies of tokens, 0 for sets without a token in common
        and 1 for sets of the same tokens in any order.

    Notes
    -----
    The likeness of tokens that COLA's first stage reads is a divergence with a floor, made for whole sources: between
    sets of a few thousand tokens it is 0 as a rule, because each has tokens that the other lacks.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.curation import compare
    >>> from cola_lib.models import byte_tokenizer
    >>> rows = random_tokens_set(byte_tokenizer(), 4, 16)
    >>> compare(rows, rows.take([0, 1]))["shared_rows"]
    2
    """
    rows = [{tuple(ids) for ids in each.token_lists()} for each in (one, other)]
    samples = [{name for some in s.sample_ids for name in some} for s in (one, other)]
    tokens = [Counter(s.input_ids[s.attention_mask].tolist()) for s in (one, other)]
    types = [set(each) for each in tokens]
    overlap = sum(min(each[token] / each.total() for each in tokens) for token in types[0] & types[1])
    return {
        "shared_rows": len(rows[0] & rows[1]),
        "shared_samples": len(samples[0] & samples[1]),
        "shared_token_types": round(len(types[0] & types[1]) / len(types[0] | types[1]), 4),
        "token_overlap": round(overlap, 4),
    }


def curated(
    rows: CalibrationSet,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Any],
) -> Curated:
    """Put a set together with its texts and facts."""
    ids = rows.token_lists()
    texts = tuple(tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False))
    about = {"tokenizer": fingerprint_tokenizer(tokenizer), "set": describe(rows), "cola_lib": version("cola-lib")}
    return Curated(rows, texts, {**facts, **about})


def write_dataset(made: Curated, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a set with its card, whole or not at all.

    Parameters
    ----------
    made : Curated
        The set.
    folder : path
        Where to.
    overwrite : bool
        Replace what is there.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder exists and ``overwrite`` is off, or it cannot be written.

    Examples
    --------
    >>> from cola_lib.curation import curate, write_dataset
    >>> from cola_lib.models import tiny_model
    >>> made = curate(tiny_model(), "random", ["openbookqa"], n_samples=4, seq_len=32, limit=20, measured=False)
    >>> sorted(path.name for path in write_dataset(made, "my-set").iterdir())
    ['README.md', 'curation.json', 'data']
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    check_folder(folder, overwrite=overwrite)
    try:
        with written_whole(folder) as partial:
            (partial / TABLE).parent.mkdir()
            pq.write_table(_table(made), partial / TABLE, compression="zstd")
            text = json.dumps(made.facts, indent=1, ensure_ascii=False, sort_keys=True)
            (partial / FACTS).write_text(text + "\n", encoding="utf-8")
            (partial / CARD).write_text(card(made.facts), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}") from error
    return folder


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is there already and must not be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"{folder} exists: choose another folder, or overwrite it")
    if not (folder / FACTS).is_file():
        raise OutputError(f"{folder} is not a curated set, so it is not overwritten; choose another folder")


def _table(made: Curated) -> pa.Table:
    import pyarrow as pa

    rows = made.rows
    ids = rows.token_lists()
    columns = {
        "text": pa.array(made.texts, pa.string()),
        "input_ids": pa.array(ids, pa.list_(pa.int32())),
        "attention_mask": pa.array([[1] * len(one) for one in ids], pa.list_(pa.int8())),
        "source": pa.array(rows.sources, pa.string()),
        "id": pa.array(["+".join(some) for some in rows.sample_ids], pa.string()),
    }
    if rows.weights is not None:
        columns["weight"] = pa.array(rows.weights, pa.float64())
    facts = {name: getattr(rows, name) for name in ("name", "seed", "layout", "draw", "n_draws", "format", "seq_len")}
    stored = {"cola_lib": json.dumps({**facts, "sample_ids": rows.sample_ids, "fingerprint": rows.fingerprint})}
    return pa.table(columns).replace_schema_metadata(stored)


def read_dataset(folder: str | os.PathLike[str]) -> Curated:
    """Read what :func:`write_dataset` wrote.

    Parameters
    ----------
    folder : path
        Where it lies.

    Returns
    -------
    Curated
        The set with its texts and facts.

    Raises
    ------
    DataError
        If it is not there, cannot be read, or was altered since.

    Examples
    --------
    >>> from cola_lib.curation import curate, read_dataset, write_dataset
    >>> from cola_lib.models import tiny_model
    >>> made = curate(tiny_model(), "random", ["openbookqa"], n_samples=4, seq_len=32, limit=20, measured=False)
    >>> folder = write_dataset(made, "my-set")
    >>> read_dataset(folder).rows.fingerprint == made.rows.fingerprint
    True
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not folder.is_dir():
        what = "a file, and a curated set is a folder; give a file as a source" if folder.exists() else "not there"
        raise DataError(f"no curated set {folder}: it is {what}")
    for name in (TABLE, FACTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no curated set: {name} is missing; `cola curate` makes one")
    try:
        table = pq.read_table(folder / TABLE)
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        stored = json.loads((table.schema.metadata or {})[b"cola_lib"])
        fingerprint, seq_len = stored.pop("fingerprint"), stored.pop("seq_len")
        ids = table["input_ids"].to_pylist()
        lengths = torch.tensor([len(one) for one in ids])
        weights = tuple(table["weight"].to_pylist()) if "weight" in table.column_names else None
        stored["sample_ids"] = tuple(map(tuple, stored["sample_ids"]))
        rows = CalibrationSet(
            torch.tensor([one + [0] * (seq_len - len(one)) for one in ids], dtype=torch.int64),
            torch.arange(seq_len) < lengths[:, None],
            sources=tuple(table["source"].to_pylist()),
            weights=weights,
            **stored,
        )
        texts = tuple(table["text"].to_pylist())
        _check_facts(facts)
    except (
        AttributeError,
        KeyError,
        OSError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        pa.ArrowException,
    ) as error:
        raise DataError(f"the curated set in {folder} cannot be read: {error}") from error
    if rows.fingerprint != fingerprint:
        raise DataError(
            f"the curated set in {folder} was altered: its tokens have fingerprint {rows.fingerprint}, and {TABLE} "
            f"says {fingerprint}. Make it again"
        )
    return Curated(rows, texts, {**facts, "set": describe(rows)})


def _check_facts(facts: Any) -> None:
    """Refuse facts that :func:`curated` does not give: whoever shows them relies on their kinds."""
    numbers = [facts.get("diversity", {"vendi_score": 0})["vendi_score"]]
    for own in facts.get("representativeness", {}).values():
        numbers += [own["coverage"], own["mmd"]]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"{FACTS}: a measure is no number")
    if not isinstance(facts.get("options", {}), dict):
        raise TypeError(f"{FACTS}: the options of the strategy are no mapping")


def card(facts: Mapping[str, Any]) -> str:
    """Write the dataset card."""
    about = facts["set"]
    lines = [
        "---",
        "configs:",
        # datasets finds what it has cached by the names of folder and configuration: a name of its own keeps one set
        # from being taken for another that lies, or lay, in a folder of the same name.
        f"- config_name: rows-{about['fingerprint']}",
        "  data_files:",
        "  - split: train",
        f"    path: {TABLE}",
        "tags: [calibration, quantization, pruning]",
        "---",
        "",
        f"# Calibration set: {facts.get('strategy', 'by hand')}",
        "",
        f"{about['rows']:,} rows of at most {about['seq_len']:,} tokens, {about['effective_tokens']:,} effective "
        f"tokens (mean row {about['mean_length']:,g}, {about['padding']:.1%} padding). "
        f"Made with cola_lib {facts['cola_lib']}.",
        "",
        "## Provenance",
        "",
        *(f"- **{name}**: {_plain(facts[name])}" for name in PROVENANCE if name in facts),
        f"- **fingerprint**: `{about['fingerprint']}`",
        "",
        "| source | rows | tokens | share |",
        "|---|---:|---:|---:|",
        *(
            f"| {source} | {own['rows']:,} | {own['tokens']:,} | {own['share']:.1%} |"
            for source, own in about["sources"].items()
        ),
        "",
        "The texts keep the licences of their sources; `cola sources` lists them.",
        "",
        "## Diversity and representativeness",
        "",
        f"- {about['token_types']:,} different tokens; {about['repeated_4grams']:.1%} of 4-grams repeated within a row",
    ]
    if "diversity" in facts:
        score = facts["diversity"]["vendi_score"]
        lines += [
            f"- Vendi score in activation space: {score:g} effectively different rows of {about['rows']:,}. It is near "
            "1 for any texts, whose activations share one large direction: compare it with other sets of as many rows"
        ]
    if "representativeness" in facts:
        lines += ["", "How near the set comes to the target's texts: nearer is a higher coverage and a lower MMD.", ""]
        lines += ["| capability | coverage | MMD |", "|---|---:|---:|"]
        lines += [
            f"| {capability} | {own['coverage']:.3f} | {own['mmd']:.3f} |"
            for capability, own in facts["representativeness"].items()
        ]
    return "\n".join([*lines, "", *_use(about)]) + "\n"


def _use(about: Mapping[str, Any]) -> list[str]:
    """How to hand the set to other tools, so that they see its rows and no others."""
    if about["weighted"]:
        return [
            "## Use",
            "",
            "`cola compress --calibration FOLDER`. Other tools would pass over the weights of the rows.",
        ]
    return [
        "## Use",
        "",
        "`cola compress --calibration FOLDER`, or in other tools, which take the rows as they are if they are told so.",
        "Both need environments of their own: `pip install llmcompressor datasets`, `pip install gptqmodel datasets`.",
        "",
        "```python",
        "import datasets",
        "",
        'rows = datasets.load_dataset("FOLDER", split="train").select_columns(["input_ids", "attention_mask"])',
        "",
        "# llm-compressor: a plain dataset it would shuffle or sort",
        "from llmcompressor import oneshot",
        "from llmcompressor.modifiers.gptq import GPTQModifier",
        "from torch.utils.data import DataLoader",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("CHECKPOINT", dtype="auto")',
        'weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}',
        'groups = {"group_0": {"targets": ["Linear"], "weights": weights}}',
        'recipe = GPTQModifier(config_groups=groups, ignore=["re:.*lm_head"])',
        'oneshot(model=model, recipe=recipe, dataset=DataLoader(rows.with_format("torch")))',
        'model.save_pretrained("packed", save_compressed=True)',
        'AutoTokenizer.from_pretrained("CHECKPOINT").save_pretrained("packed")',
        "",
        "# GPTQModel: otherwise it drops short rows, and would tokenize the column text again",
        "from gptqmodel import GPTQModel, QuantizeConfig",
        "",
        'model = GPTQModel.load("CHECKPOINT", QuantizeConfig(bits=4, group_size=32))',
        "model.quantize(list(rows), calibration_sort=None, calibration_data_min_length=0)",
        'model.save("packed")',
        "```",
    ]


PROVENANCE = ("strategy", "options", "target", "model", "tokenizer", "pool", "n_samples", "n_tokens", "seed")
"""Facts that say how a set was made."""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_plain(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
