"""Strategies that let the model write its own calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy
from cola_lib.curation.baselines import even
from cola_lib.errors import DataError, SpecError
from cola_lib.evaluate import row_nll

BATCH_ROWS = {"cpu": 32, "cuda": 128}
"""Rows written side by side."""


class FallingTemperature(LogitsProcessor):
    """Divide logits by a temperature that moves linearly over the first tokens and then stays."""

    def __init__(self, first: float, last: float, n_steps: int, n_given: int) -> None:
        self.first, self.last, self.n_steps, self.n_given = first, last, n_steps, n_given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scale the scores of the next token."""
        done = min((input_ids.shape[1] - self.n_given) / self.n_steps, 1.0)
        return scores / (self.first + done * (self.last - self.first))


def continued(
    brief: Brief, prompts: Tensor, settings: GenerationConfig, processors: LogitsProcessorList | None = None
) -> tuple[Tensor, Tensor]:
    """Let the model continue prompts."""
    lm, seq_len = brief.lm, brief.seq_len
    eos = lm.tokenizer.eos_token_id
    settings.max_length = seq_len
    settings.eos_token_id, settings.pad_token_id = eos, eos if eos is not None else 0
    parts = []
    size = BATCH_ROWS.get(lm.device.type, BATCH_ROWS["cuda"])
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _neutral(lm.model):
        torch.manual_seed(brief.seed())  # transformers draws from torch's own generator
        for some in prompts.split(size):
            generate: Any = lm.model.generate  # declared on a base that types it as a tensor
            written = generate(
                input_ids=some.to(lm.device),
                attention_mask=torch.ones_like(some).to(lm.device),
                generation_config=settings,
                logits_processor=processors,
            ).cpu()
            parts.append(torch.nn.functional.pad(written, (0, seq_len - written.shape[1]), value=settings.pad_token_id))
    input_ids = torch.cat(parts)
    if eos is None:
        return input_ids, torch.ones_like(input_ids, dtype=torch.bool)
    ended = (input_ids[:, prompts.shape[1] :] == eos).cumsum(1)  # an end that was given is none
    before = torch.nn.functional.pad(ended, (1, 0))[:, :-1] == 0
    return input_ids, torch.cat([torch.ones_like(prompts, dtype=torch.bool), before], dim=1)


@contextmanager
def _neutral(model: PreTrainedModel) -> Iterator[None]:
    """Put the checkpoint's own sampling settings aside: transformers fills from them whatever is left open."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _written(brief: Brief, input_ids: Tensor, mask: Tensor, origin: CalibrationSet | None = None) -> CalibrationSet:
    n = len(input_ids)
    return CalibrationSet(
        input_ids,
        mask,
        sample_ids=origin.sample_ids if origin is not None else ((),) * n,
        sources=("self-generated",) * n,
        name=brief.name,
        seed=brief.generator.initial_seed(),
        layout="generated",
    )


@STRATEGIES.register
@dataclass(frozen=True)
class SelfGenerated(Strategy):
    """The model continues the first tokens of texts; the most surprising fifth of what it writes is dropped.

    Parameters
    ----------
    n_given : int
        Tokens of each text that it is given.
    drop : float
        Share of the rows, those of highest perplexity, that are dropped.
    temperature, top_p, top_k, repetition_penalty
        Of the sampling.

    Notes
    -----
    Rows end where the model ends its text. The texts are an even mixture of the pool's sources; the original's are
    5,000 of Wikipedia. Settings are those of the released code.

    References
    ----------
    Ji et al., "Beware of Calibration Data for Pruning Large Language Models", ICLR 2025, arXiv 2410.17711;
    github.com/Dereck0602/calibration_data.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, SelfGenerated
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = SelfGenerated().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'self_generated')
    """

    name: ClassVar[str] = "self_generated"
    stochastic: ClassVar[bool] = True

    n_given: int = 2
    drop: float = 0.2
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 50
    repetition_penalty: float = 1.2

    def __post_init__(self) -> None:
        if self.n_given < 1 or not 0 <= self.drop < 1:
            raise SpecError(
                f"n_given must be at least 1 and drop from 0 to below 1, and they are {self.n_given} and {self.drop:g}"
            )

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        if self.n_given >= brief.seq_len:
            raise SpecError(f"{self.n_given} given tokens leave none to write in a row of {brief.seq_len}")
        rows = brief.rows()
        wanted = -(-brief.n_samples // (1 - self.drop))
        long = [i for i in even(brief, rows) if rows.lengths[i] >= self.n_given][: int(wanted)]
        if len(long) < wanted:
            raise DataError(
                f"strategy {brief.name!r} begins {int(wanted):,} rows with {self.n_given} tokens of as many texts, and "
                f"{len(long):,} are long enough: add a source"
            )
        begun = rows.tokens.take(long)
        settings = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
        )
        written = _written(brief, *continued(brief, begun.input_ids[:, : self.n_given], settings), begun)
        kept = row_nll(brief.lm, written, progress=False).argsort(stable=True)[: brief.n_samples]
        return written.take(sorted(kept.tolist()))


@STRATEGIES.register
@dataclass(frozen=True)
class SelfCalibrated(Strategy):
    """The model writes freely from the beginning-of-sequence token, hotter at first: no text is needed at all.

    Parameters
    ----------
    first, last : float
        Temperature of the first token and after ``n_steps`` tokens; linear between.
    n_steps : int
        Tokens until the temperature stays.

    Notes
    -----
    The published text that could be read does not give temperatures or steps; these are ours. A tokenizer without
    beginning-of-sequence token begins with its end-of-sequence token.

    References
    ----------
    Williams, Chrysostomou and Aletras, "Self-calibration for Language Model Quantization and Pruning", NAACL 2025,
    arXiv 2410.17170.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, SelfCalibrated
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = SelfCalibrated().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'self_calibrated')
    """

    name: ClassVar[str] = "self_calibrated"
    stochastic: ClassVar[bool] = True

    first: float = 2.0
    last: float = 1.0
    n_steps: int = 10

    def __post_init__(self) -> None:
        if min(self.first, self.last) <= 0 or self.n_steps < 1:
            raise SpecError(
                f"temperatures must be above 0 and n_steps at least 1, and they are {self.first:g}, {self.last:g} and "
                f"{self.n_steps}"
            )

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        tokenizer = brief.lm.tokenizer
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if begin is None:
            raise SpecError(f"strategy {brief.name!r} begins with a special token, and this tokenizer has none")
        prompts = torch.full((brief.n_samples, 1), begin)
        falling = LogitsProcessorList([FallingTemperature(self.first, self.last, self.n_steps, 1)])
        settings = GenerationConfig(do_sample=True, top_k=0, top_p=1.0)
        return _written(brief, *continued(brief, prompts, settings, falling))
