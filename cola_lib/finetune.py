"""Train a compressed model a little further, with low-rank adapters that respect what was pruned."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from cola_lib.calibration import CalibrationSet
from cola_lib.errors import NumericsError, SpecError
from cola_lib.models import LanguageModel

IGNORED = -100
"""Label of a token whose prediction does not count in the loss."""


@dataclass(frozen=True)
class TuneSpec:
    """How to train.

    Parameters
    ----------
    steps : int
        Updates.
    batch_rows : int
        Rows of each.
    rank : int
        Of the adapters.
    alpha : float
        Adapters are scaled by alpha / rank.
    learning_rate : float
        Of AdamW, falling to zero as half a cosine.
    max_perplexity : float, optional
        Tokens that the model, before training, gives a probability below one in so many do not count in the loss.
        Default: all count. 2.5 in the reference.
    seed : int
        Of adapters and of the order of rows.

    Raises
    ------
    SpecError
        If a value is out of range.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. Leaving surprising tokens out: Wu
    et al., "Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning", arXiv 2501.14315.

    Examples
    --------
    >>> from cola_lib.finetune import TuneSpec
    >>> TuneSpec(steps=5, rank=2).alpha
    16.0
    """

    steps: int = 20
    batch_rows: int = 4
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 1e-4
    max_perplexity: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_rows, self.rank) < 1 or min(self.alpha, self.learning_rate) <= 0:
            raise SpecError(
                f"steps, batch_rows and rank must be at least 1, alpha and learning_rate above 0, and they are "
                f"{self.steps}, {self.batch_rows}, {self.rank}, {self.alpha:g} and {self.learning_rate:g}"
            )
        if self.max_perplexity is not None and self.max_perplexity <= 1:
            raise SpecError(f"max_perplexity must be above 1, and is {self.max_perplexity:g}")


@dataclass(frozen=True)
class TuneReport:
    """What was done."""

    losses: tuple[float, ...]
    counted: float
    trained: int


@torch.no_grad()
def labels_of(lm: LanguageModel, rows: CalibrationSet, max_perplexity: float | None) -> Tensor:
    """Say which tokens of rows are to be predicted."""
    labels = rows.input_ids.masked_fill(~rows.attention_mask, IGNORED)
    labels[:, 0] = IGNORED
    if max_perplexity is None:
        return labels
    for row in range(rows.n_samples):
        ids = rows.input_ids[row : row + 1].to(lm.device)
        nll = nn.functional.cross_entropy(lm.model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
        labels[row, 1:][nll.cpu() > math.log(max_perplexity)] = IGNORED
    return labels


def finetune(
    lm: LanguageModel, rows: CalibrationSet, spec: TuneSpec, *, keep_zeros: bool = True, progress: bool = True
) -> TuneReport:
    """Train adapters on every linear layer of the blocks, and fold them into the weights.

    Notes
    -----
    With ``keep_zeros`` the adapter's product is multiplied by the mask of the other weights, in training and when it is
    folded in, so that a sparse model stays as sparse as it was. A quantized weight leaves its grid by what the adapter
    adds, as it does when an adapter is kept beside it.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    if lm.input_rounding:
        raise SpecError(
            f"{len(lm.input_rounding)} layers of {lm.name} round their inputs, which has no gradient to train by; "
            "leave act_bits out, or do not train the model further"
        )
    labels = labels_of(lm, rows, spec.max_perplexity)
    predicted = int((rows.attention_mask.sum(1) - 1).sum())
    counted = int((labels != IGNORED).sum())
    if not counted:
        raise SpecError("no token counts in the loss: raise max_perplexity or take other rows")
    names = [f"{lm.block_name(i)}.{layer}" for i in range(len(lm.blocks)) for layer in lm.architecture.layers]
    alpha: Any = spec.alpha  # declared a whole number there, and only ever divided
    config = LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(spec.seed)
        with warnings.catch_warnings():  # peft asks transformers for what is going to be renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = get_peft_model(lm.model, config)
        layers: dict[str, Any] = {
            name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)
        }
        masks: dict[str, Tensor] = {}
        if keep_zeros:
            for name, module in layers.items():
                masks[name] = module.get_base_layer().weight != 0
                module.forward = partial(_masked, module, masks[name])  # in place of the adapter's own, not after it
        try:
            losses = _train(adapted, rows, labels, spec, lm.device, progress)
            folded = {}
            for name, module in layers.items():
                delta = module.get_delta_weight("default").detach()
                folded[id(module.get_base_layer())] = delta * masks[name] if keep_zeros else delta
        finally:
            lm.model = cast(PreTrainedModel, adapted.unload())
    trained = sum(p.numel() for module in layers.values() for p in _adapter(module))
    for index, block in enumerate(lm.blocks):
        for layer in lm.architecture.layers:
            module, weight = block.get_submodule(layer), block.get_parameter(f"{layer}.weight")
            new = weight.data + folded[id(module)].to(weight.dtype)
            if not torch.isfinite(new).all():
                raise NumericsError(f"{lm.block_name(index)}.{layer}", "training made its weight NaN or infinite")
            weight.data = new
    lm.model.requires_grad_(False).eval()
    lm.weights_changed()
    return TuneReport(tuple(losses), counted / predicted, trained)


def _adapter(module: Any) -> list[Tensor]:
    return [*module.lora_A["default"].parameters(), *module.lora_B["default"].parameters()]


def _masked(module: Any, mask: Tensor, x: Tensor) -> Tensor:
    """Output of an adapted layer whose adapter's product is behind a mask."""
    base = module.get_base_layer()
    return nn.functional.linear(x, base.weight + mask * module.get_delta_weight("default"), base.bias)


def _train(
    model: nn.Module, rows: CalibrationSet, labels: Tensor, spec: TuneSpec, device: torch.device, progress: bool
) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.steps)
    generator = torch.Generator().manual_seed(spec.seed)
    losses: list[float] = []
    order: list[int] = []
    for step in tqdm(range(spec.steps), desc="train", unit="step", disable=not progress, leave=False):
        while len(order) < spec.batch_rows:
            order += torch.randperm(rows.n_samples, generator=generator).tolist()
        batch, order = order[: spec.batch_rows], order[spec.batch_rows :]
        wanted = labels[batch].to(device)
        if not (wanted != IGNORED).any():
            raise SpecError(f"no token of step {step} counts in the loss: raise max_perplexity or take larger batches")
        logits = model(input_ids=rows.input_ids[batch].to(device)).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=IGNORED)
        if not torch.isfinite(loss):
            raise NumericsError("loss", f"it is {float(loss)} at step {step}: lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
