"""How surely a model expects the rows of a calibration set."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cola_lib.activations import length_batches
from cola_lib.arithmetic import fast_products
from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, NumericsError
from cola_lib.evaluate.likelihood import BATCH_TOKENS, LOGIT_BYTES, Head
from cola_lib.models import LanguageModel


@torch.no_grad()
@fast_products()
def row_nll(
    lm: LanguageModel, rows: CalibrationSet, *, batch_tokens: int | None = None, progress: bool = True
) -> Tensor:
    """Mean negative log-likelihood of the tokens of each row."""
    kind = lm.device.type
    head = Head(lm.model, LOGIT_BYTES.get(kind, LOGIT_BYTES["cuda"]))
    budget = batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS["cuda"])
    lengths = rows.attention_mask.sum(1)
    if (lengths < 2).any():
        row = int((lengths < 2).nonzero()[0])
        raise DataError(f"calibration set {rows.name!r}: row {row} has one token, and nothing to predict after it")
    found = torch.empty(rows.n_samples)
    bar = tqdm(total=int(lengths.sum()), desc="perplexity", unit="tok", disable=not progress, leave=False)
    with bar:
        for batch in length_batches(lengths, budget):
            width = int(lengths[batch[0]])
            ids = rows.input_ids[batch, :width].to(lm.device)
            predicted = rows.attention_mask[batch, 1:width].to(lm.device)
            hidden = lm.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            nll = torch.zeros(predicted.shape, device=lm.device)
            nll[predicted] = head.predict(hidden[predicted], ids[:, 1:][predicted])[0]
            mean = (nll.sum(1, dtype=torch.float64) / predicted.sum(1)).float().cpu()
            if not torch.isfinite(mean).all():
                row = int(batch[~torch.isfinite(mean)][0])
                raise NumericsError("lm_head", f"model {lm.name} gives NaN or infinite logits on row {row}")
            found[batch] = mean
            bar.update(int(lengths[batch].sum()))
    return found
