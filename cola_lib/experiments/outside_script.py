"""Compress a checkpoint with llm-compressor. Runs in that tool's own environment, without cola_lib.

    python outside_script.py CHECKPOINT SET OUT RECIPE

SET is a folder of :func:`cola_lib.curation.write_dataset`, RECIPE the JSON of
:class:`cola_lib.experiments.outside.OutsideRecipe`. OUT gets a checkpoint of ordinary weights: rounded, not packed, so
that any number of bits can be compared.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version


def main(checkpoint: str, folder: str, out: str, recipe_text: str) -> None:
    """Compress, and write ordinary weights."""
    import datasets
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe, found = json.loads(recipe_text), version("llmcompressor")
    if found != recipe["version"]:
        sys.exit(f"this environment has llmcompressor {found}, and the recipe is for {recipe['version']}")
    rows = datasets.load_dataset(folder, split="train").select_columns(["input_ids", "attention_mask"])
    safe = {"trust_remote_code": False}
    model, plain = (AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **safe) for _ in range(2))
    weights = {
        "num_bits": recipe["bits"],
        "type": "int",
        "symmetric": recipe["symmetric"],
        "strategy": "group",
        "group_size": recipe["group_size"],
    }
    if recipe["act_order"]:
        weights["actorder"] = "weight"
    oneshot(
        model=model,
        recipe=GPTQModifier(
            config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
            ignore=["re:.*lm_head"],
            dampening_frac=recipe["damp"],
        ),
        # As it is: a dataset would be shuffled or sorted on the way.
        dataset=torch.utils.data.DataLoader(rows.with_format("torch")),
    )
    # Beside the rounded weights the tool leaves scales and a configuration of its own, which nobody here needs.
    rounded = model.state_dict()
    plain.load_state_dict({name: rounded[name] for name in plain.state_dict()})
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(checkpoint, **safe).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
