"""Calibrate a model with llm-compressor on a folder that `cola curate` wrote, and note what the model was shown.

Runs in the tool's own environment, without cola_lib: what it does with the folder is what the folder's card says.
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(checkpoint: str, folder: str, out: str) -> None:
    rows = datasets.load_dataset(folder, split="train").select_columns(["input_ids", "attention_mask"])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    seen: list[list[int]] = []

    def note(_: torch.nn.Module, inputs: tuple) -> None:
        seen.extend(inputs[0].tolist())

    handle = model.get_input_embeddings().register_forward_pre_hook(note)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["re:.*lm_head"]
    )
    oneshot(
        model=model,
        recipe=recipe,
        dataset=torch.utils.data.DataLoader(rows.with_format("torch")),
    )
    handle.remove()
    model.save_pretrained(Path(out) / "model", save_compressed=True)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(Path(out) / "model")
    loaded = AutoModelForCausalLM.from_pretrained(Path(out) / "model", dtype="auto")
    with torch.no_grad():
        logits = loaded(torch.tensor(rows["input_ids"][:2])).logits.float()
    (Path(out) / "facts.json").write_text(json.dumps({"seen": seen, "logits": logits[:, -1].tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
