"""Time llm-compressor on one job. Runs in that tool's own environment, without cola_lib.

    python time_llmcompressor.py CHECKPOINT TOKENS OUT JOB

TOKENS is a safetensors file with ``input_ids`` of shape (n_samples, seq_len). JOB is JSON: ``method``, its options,
``batch_size``, ``threads``, ``cpu_time`` (count processor time, not wall time). OUT gets the compressed model as
ordinary weights. Prints one line of JSON: the seconds of ``oneshot`` alone, without imports, loading and saving, and
those of a plain forward pass of the same tokens.
"""

import json
import sys
import time

import torch
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HEAD = ["re:.*lm_head"]


def weights(job):
    """Group-wise integers, as llm-compressor spells them."""
    return {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": job["bits"],
                "type": "int",
                "symmetric": job["symmetric"],
                "strategy": "group",
                "group_size": job["group_size"],
            },
        }
    }


RECIPES = {
    "wanda": lambda job: [WandaPruningModifier(sparsity=job["sparsity"], ignore=HEAD)],
    "sparsegpt": lambda job: [SparseGPTModifier(sparsity=job["sparsity"], dampening_frac=job["damp"], ignore=HEAD)],
    "gptq": lambda job: [
        GPTQModifier(config_groups=weights(job), dampening_frac=job["damp"], ignore=HEAD, actorder=None)
    ],
    "awq": lambda job: [
        AWQModifier(n_grid=job["n_grid"], duo_scaling=job["duo_scaling"]),
        QuantizationModifier(config_groups=weights(job), ignore=HEAD),
    ],
}


@torch.no_grad()
def round_weights(model):
    """Round what the tool rounds only while it runs: its AWQ leaves scaled weights and a grid beside them."""
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            module.weight.copy_(forward_quantize(module, module.weight, "weight", scheme.weights))


def main(checkpoint, tokens, out, job_text):
    job = json.loads(job_text)
    torch.set_num_threads(job["threads"])
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda self, *_: self  # its AWQ pins memory, which fails without a GPU's driver
    ids = load_file(tokens)["input_ids"]
    model, plain = (AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32) for _ in range(2))
    rows = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(job["batch_size"])]
    clock = time.process_time if job["cpu_time"] else time.perf_counter
    began = clock()
    with torch.no_grad():
        for row in rows:
            plain.model(input_ids=row["input_ids"], use_cache=False)
    forward = clock() - began
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    began = clock()
    oneshot(model=model, recipe=RECIPES[job["method"]](job), dataset=loader)
    seconds = clock() - began
    round_weights(model)
    found = model.state_dict()
    plain.load_state_dict({name: found[name] for name in plain.state_dict()})
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)
    print(json.dumps({"seconds": seconds, "forward": forward}))


if __name__ == "__main__":
    main(*sys.argv[1:])
