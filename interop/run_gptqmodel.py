"""Calibrate a model with GPTQModel on a folder that `cola curate` wrote, and note what the model was shown.

Runs in the tool's own environment, without cola_lib: what it does with the folder is what the folder's card says.
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def main(checkpoint: str, folder: str, out: str) -> None:
    rows = datasets.load_dataset(folder, split="train").select_columns(["input_ids", "attention_mask"])
    config = QuantizeConfig(bits=4, group_size=32, sym=True, desc_act=False)
    model = GPTQModel.load(checkpoint, config, device="cpu")
    seen: list[list[int]] = []

    def note(_: torch.nn.Module, inputs: tuple) -> None:
        seen.extend(inputs[0].tolist())

    handle = model.model.get_input_embeddings().register_forward_pre_hook(note)
    model.quantize(list(rows), calibration_sort=None, calibration_data_min_length=0)
    handle.remove()
    saved = str(Path(out) / "model")
    model.save(saved)
    loaded = GPTQModel.load(saved, device="cpu", backend=BACKEND.GPTQ_TORCH)
    with torch.no_grad():
        logits = loaded.model(torch.tensor(rows["input_ids"][:2])).logits.float()
    (Path(out) / "facts.json").write_text(json.dumps({"seen": seen, "logits": logits[:, -1].tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
