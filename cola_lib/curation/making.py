"""From names to a curated set: the pool, the target and the strategy in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from cola_lib.curation.base import Strategy, at_tokens, strategy
from cola_lib.curation.dataset import Curated, curated, measure
from cola_lib.curation.pool import Pool
from cola_lib.curation.target import Target, load_target
from cola_lib.errors import SpecError
from cola_lib.models import LanguageModel


def curate(
    lm: LanguageModel,
    chooser: Strategy | str,
    sources: Sequence[str],
    *,
    n_samples: int | None = None,
    n_tokens: int | None = None,
    seq_len: int,
    target: str | Target | None = None,
    seed: int = 0,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    measured: bool = True,
) -> Curated:
    """Choose a calibration set for a model.

    Parameters
    ----------
    lm : LanguageModel
        The model to be compressed, untouched.
    chooser : Strategy or str
        A strategy, or the name of one.
    sources : sequence of str
        The pool, see :func:`cola_lib.data.load_samples`.
    n_samples : int, optional
        Rows of the set.
    n_tokens : int, optional
        Effective tokens of the set, instead.
    seq_len : int
        Most tokens of a row.
    target : str or Target, optional
        What the model will be used for; a name as for :func:`~cola_lib.curation.load_target`. Texts of the target are
        not in the pool.
    seed : int
        Of everything random. The same arguments give the same set.
    limit : int, optional
        Most samples of each source in the pool.
    options : mapping, optional
        Options of a strategy that is given by name.
    measured : bool
        Run the model over the set once more, to tell its diversity and what of the target it represents.

    Returns
    -------
    Curated

    Raises
    ------
    SpecError
        If neither or both of ``n_samples`` and ``n_tokens`` are given, a source comes twice, or a target is missing.
    DataError
        If the pool does not suffice, or a source of your own repeats evaluation items.
    UnknownNameError
        If a name is not known.

    Examples
    --------
    >>> from cola_lib.curation import curate
    >>> from cola_lib.models import tiny_model
    >>> made = curate(tiny_model(), "random", ["openbookqa"], n_samples=4, seq_len=32, limit=20, measured=False)
    >>> made.rows.n_samples, made.facts["strategy"]
    (4, 'random')
    """
    if (n_samples is None) == (n_tokens is None):
        raise SpecError("a set has a number of rows or a number of tokens: give one of n_samples and n_tokens")
    if not sources or len(set(sources)) < len(sources):
        raise SpecError(f"sources must be one name or several different ones, and are: {', '.join(sources) or 'none'}")
    lm.check_length(seq_len)  # before the pool is loaded
    if isinstance(chooser, Strategy):
        if options:
            raise SpecError(f"options belong to a strategy's name; {chooser.label} has its own already")
        defaults = {option.name: option.default for option in fields(chooser)}
        options = {name: getattr(chooser, name) for name in defaults if getattr(chooser, name) != defaults[name]}
        made = chooser
    else:
        made = strategy(chooser, **(options or {}))
    aim = load_target(target, seed=seed) if isinstance(target, str) else target
    pool = Pool.load(sources, seed=seed, limit=limit, without=aim.sample_ids if aim else ())
    if n_samples is None:
        assert n_tokens is not None, "one of the two was asked for above"
        rows = at_tokens(made, pool, lm, n_tokens=n_tokens, seq_len=seq_len, target=aim, seed=seed)
    else:
        generator = torch.Generator().manual_seed(seed)
        rows = made.select(pool, lm, n_samples=n_samples, seq_len=seq_len, target=aim, generator=generator)
    drawn = "" if limit is None else f" (at most {limit:,} texts, drawn by the seed)"
    facts = {
        "strategy": made.name,
        "options": dict(options or {}),
        "target": aim.name if aim else "none",
        "model": f"{lm.name} ({lm.fingerprint})",
        "pool": [source + drawn for source in sources],
        "seed": seed,
        **({"n_samples": n_samples} if n_samples is not None else {"n_tokens": n_tokens}),
        **(measure(rows, lm, aim) if measured else {}),
    }
    return curated(rows, lm.tokenizer, facts)
