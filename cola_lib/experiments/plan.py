"""What a sweep takes: arithmetic, memory and bytes, from the shapes of its models.

Counted are the matrix products, factorizations and triangular solves, a multiplication and an addition as two
operations. What is left out (norms, sorting, rounding, softmax) has fewer operations by a factor of about the width of
the model, but is slow for its size; a rate that was measured on the whole of a step holds it nevertheless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from cola_lib.compress import AWQ, JointLowRank, Spec
from cola_lib.compress.awq import CLIP_LEAST, CLIP_STEPS
from cola_lib.errors import SpecError
from cola_lib.experiments.experiment import as_spec
from cola_lib.experiments.sweep import Sweep
from cola_lib.models import architecture_of

FLOAT32 = 4
"""Bytes of a number in the statistics and the solvers."""

PER_WORKER, PER_SET, PER_CELL = "worker", "set", "cell"
"""What a step is done once for."""


@dataclass(frozen=True)
class InputShape:
    """An input of a block, and the layers that read it."""

    name: str
    d_in: int
    d_outs: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """Weights of its layers."""
        return self.d_in * sum(self.d_outs)


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a model depends on.

    Parameters
    ----------
    n_blocks : int
        Decoder blocks.
    inputs : tuple of InputShape
        Of one block.
    d_model : int
        Width of the residual stream.
    attention_width : int
        Heads times their width.
    vocab_size : int
        Outputs of the language-model head.
    n_parameters : int
        Of the whole model.
    bytes_per_parameter : int
        2 in half precision.
    """

    n_blocks: int
    inputs: tuple[InputShape, ...]
    d_model: int
    attention_width: int
    vocab_size: int
    n_parameters: int
    bytes_per_parameter: int = 2

    @classmethod
    def of(cls, config: PretrainedConfig, bytes_per_parameter: int = 2) -> ModelShape:
        """Read the shape off a configuration; no weight is made.

        Parameters
        ----------
        config : PretrainedConfig
            Of a model type in :data:`cola_lib.models.ARCHITECTURES`.
        bytes_per_parameter : int
            2 in half precision, 4 in float32.
        """
        architecture, text = architecture_of(config), config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        blocks = model.get_decoder().get_submodule(architecture.blocks)
        inputs = []
        for group in architecture.groups:
            layers = [blocks[0].get_submodule(name) for name in group.layers]
            inputs.append(InputShape(group.name, layers[0].in_features, tuple(layer.out_features for layer in layers)))
        return cls(
            n_blocks=len(blocks),
            inputs=tuple(inputs),
            d_model=text.hidden_size,
            attention_width=next(each.d_in for each in inputs if each.name == "attn_out"),
            vocab_size=text.vocab_size,
            n_parameters=sum(parameter.numel() for parameter in model.parameters()),
            bytes_per_parameter=bytes_per_parameter,
        )

    @property
    def n_block_weights(self) -> int:
        """Weights of the linear layers of all blocks: what is compressed."""
        return self.n_blocks * sum(each.n_weights for each in self.inputs)

    @property
    def weight_bytes(self) -> int:
        """Of all parameters."""
        return self.n_parameters * self.bytes_per_parameter

    @property
    def statistics_bytes(self) -> int:
        """Of the statistics of one calibration set: a Gram matrix and two vectors for each input of each block."""
        return FLOAT32 * self.n_blocks * sum(each.d_in * (each.d_in + 2) for each in self.inputs)

    def forward_flops(self, n_tokens: float, seq_len: int) -> float:
        """Operations of the blocks.

        Parameters
        ----------
        n_tokens : float
            In all.
        seq_len : int
            Tokens of a row. Attention is counted over the whole square of a row; kernels that skip the masked half do
            half of it.
        """
        attention = 4 * self.n_blocks * self.attention_width * seq_len
        return n_tokens * (2.0 * self.n_block_weights + attention)

    def two_pass_flops(self, n_tokens: float, seq_len: int) -> float:
        """Operations of a walk that reads compressed blocks: to the input of each block's last layers, and once more.

        Parameters
        ----------
        n_tokens : float
            In all.
        seq_len : int
            Tokens of a row.

        Notes
        -----
        What the last block makes once it is compressed, nobody reads.
        """
        once = self.forward_flops(n_tokens, seq_len)
        skipped = 2.0 * n_tokens * self.n_blocks * self.inputs[-1].n_weights
        return once - skipped + once * (self.n_blocks - 1) / self.n_blocks

    def head_flops(self, n_tokens: float) -> float:
        """Operations of the language-model head.

        Parameters
        ----------
        n_tokens : float
            Whose next one is predicted.
        """
        return 2.0 * n_tokens * self.d_model * self.vocab_size

    def evaluation_flops(self, n_tokens: float, seq_len: int) -> float:
        """Operations of an evaluation: the blocks, and the head twice, for the dense model's predictions too.

        Parameters
        ----------
        n_tokens : float
            In all. Tokens that several answers share are run once, and a context's are not predicted, so this is the
            most that it can take.
        seq_len : int
            Tokens of a row.
        """
        return self.forward_flops(n_tokens, seq_len) + 2 * self.head_flops(n_tokens)

    def gram_flops(self, n_tokens: float) -> float:
        """Operations of the Gram matrices of all inputs: half of each product, since they are symmetric.

        Parameters
        ----------
        n_tokens : float
            That are summed.
        """
        return n_tokens * self.n_blocks * sum(each.d_in * (each.d_in + 1) for each in self.inputs)

    def solve_flops(self, spec: Spec, *, judged: bool = True) -> float:
        """Operations of compressing all blocks, and of the layers' output errors.

        Parameters
        ----------
        spec : Spec
            The method.
        judged : bool
            Whether the errors are measured: on the calibration data, and on however many targets, for which one product
            serves.

        Notes
        -----
        SparseGPT and GPTQ: a Cholesky factor (d³/3), a triangular inverse (taken as a solve, d³), and the sweep, in
        which each column updates those behind it (d_out·d²). The factor is counted for each of them, also where several
        methods share it. AWQ: an error tr(ΔW·G·ΔWᵀ) for each exponent, as half a product, and one in blocks for each
        range that is tried. The other methods have no large product. The search of SmoothQuant and the factorization
        of low rank are not counted.
        """
        total = 0.0
        for each in self.inputs:
            d, d_out = each.d_in, sum(each.d_outs)
            half_product = d_out * d * (d + 1.0)
            total += half_product if judged else 0.0
            if spec.method in ("sparsegpt", "gptq"):
                total += 4 / 3 * d**3 + d_out * d**2
            if isinstance(spec, AWQ):
                total += spec.n_grid * (1 + spec.duo_scaling) * half_product
                size = spec.group_size if spec.group_size and spec.group_size > 0 else min(d, 128)
                total += int(CLIP_STEPS * CLIP_LEAST) * 2.0 * d_out * d * size if spec.clip else 0.0
        return self.n_blocks * total


@dataclass(frozen=True)
class Rates:
    """How fast a worker is.

    Parameters
    ----------
    forward : float
        Operations a second of the forward pass, in the model's own type.
    gram : float
        Operations a second of the Gram matrices, in float32.
    solve : float
        Operations a second of the solvers, in float32, as :meth:`ModelShape.solve_flops` counts them.
    evaluate : float
        Operations a second of the evaluation, as :meth:`ModelShape.evaluation_flops` counts them.
    load : float
        Bytes a second at which weights are read.
    """

    forward: float
    gram: float
    solve: float
    evaluate: float
    load: float = 1e9

    def __post_init__(self) -> None:
        if not min(self.forward, self.gram, self.solve, self.evaluate, self.load) > 0:
            raise SpecError(f"rates must be above 0, and are {self}")


def plan_sweep(sweep: Sweep, shapes: Mapping[str, ModelShape], rates: Rates, *, eval_len: int = 256) -> pd.DataFrame:
    """List the steps of a sweep, how often each is done, and what it takes.

    Parameters
    ----------
    sweep : Sweep
        Whose cells are all missing. What its strategies do to choose is not counted.
    shapes : mapping of str to ModelShape
        For each of its models.
    rates : Rates
        Of one worker.
    eval_len : int
        Tokens of a row of the evaluation; they matter for its attention only.

    Returns
    -------
    pandas.DataFrame
        One row per model and step: ``model``, ``step``, ``per`` (what it is done once for: :data:`PER_WORKER`,
        :data:`PER_SET` or :data:`PER_CELL`), ``times`` (of the workers' steps: 1, to be multiplied by the workers),
        ``flops`` and ``seconds`` of each time.

    Notes
    -----
    Under ``propagate="original"`` one walk over a set serves all methods. Under ``"compressed"`` every method walks by
    itself, and runs each block a second time; see :meth:`ModelShape.two_pass_flops`.
    """
    tasks = sweep.tasks()
    specs = [as_spec(method) for method in sweep.methods]
    calibrated = [spec for spec in specs if spec.calibrated]
    twice = sweep.propagate == "compressed"
    walks = len(calibrated) if twice else 1
    names = len(sweep.evaluate.sources) if sweep.evaluate.sources else len(sweep.evaluate.capabilities)
    eval_tokens = names * sweep.evaluate.tokens_per_capability
    rows = []
    for model in sweep.models:
        shape = shapes[model]
        sets = [task for task in tasks if task.model == model and task.calibrated]
        n_cells = sum(sweep.n_cells(task) for task in tasks if task.model == model)
        sizes = [(task.n_samples * task.seq_len, task.seq_len) for task in sets]
        passes = shape.two_pass_flops if twice else shape.forward_flops
        evaluation = shape.evaluation_flops(eval_tokens, eval_len)
        of_targets = [(len(sweep.targets) * sweep.target_samples * length, length) for length in sweep.seq_len]
        alone = sum(shape.solve_flops(spec, judged=bool(sweep.targets)) for spec in specs if not spec.calibrated)
        n_sets = max(len(sets), 1)

        def step(name: str, per: str, times: int, flops: float, rate: float, model: str = model) -> None:
            rows.append((model, name, per, times, flops, flops / rate))

        rows.append((model, "load the model", PER_WORKER, 1, 0.0, shape.weight_bytes / rates.load))
        step("dense predictions", PER_WORKER, 1, evaluation, rates.evaluate)
        step("targets: forward", PER_WORKER, 1, sum(shape.forward_flops(*size) for size in of_targets), rates.forward)
        step("targets: Gram", PER_WORKER, 1, sum(shape.gram_flops(n) for n, _ in of_targets), rates.gram)
        walked = sum(passes(*size) for size in sizes) / n_sets
        step("walk: forward", PER_SET, len(sets), walks * walked, rates.forward)
        grams = sum(shape.gram_flops(n) for n, _ in sizes) / n_sets
        step("walk: Gram", PER_SET, len(sets), walks * grams, rates.gram)
        step("compress", PER_SET, len(sets), sum(shape.solve_flops(spec) for spec in calibrated), rates.solve)
        step("compress without data", PER_WORKER, 1, alone, rates.solve)
        step("evaluate", PER_CELL, n_cells, evaluation, rates.evaluate)
    table = pd.DataFrame(rows, columns=["model", "step", "per", "times", "flops", "seconds"])
    # methods without data are solved once for a model, whoever does it
    table.loc[table["step"] == "compress without data", "per"] = PER_CELL
    return table[table["seconds"] > 0].reset_index(drop=True)


def worker_hours(plan: pd.DataFrame, n_workers: int) -> float:
    """Hours of all workers together.

    Parameters
    ----------
    plan : pandas.DataFrame
        From :func:`plan_sweep`.
    n_workers : int
        Each of which loads every model, and reads the targets.
    """
    times = plan["times"].where(plan["per"] != PER_WORKER, n_workers)
    return float((times * plan["seconds"]).sum() / 3600)


def wall_hours(plan: pd.DataFrame, n_workers: int) -> float:
    """Hours until the last worker is done, when a worker takes one set at a time.

    Parameters
    ----------
    plan : pandas.DataFrame
        From :func:`plan_sweep`.
    n_workers : int
        At a time.

    Notes
    -----
    The sets of a model are taken to last equally long, and models to come one after the other.
    """
    total = 0.0
    for _, steps in plan.groupby("model"):
        n_sets = max(
            int(steps.loc[steps["per"] == PER_SET, "times"].max()) if (steps["per"] == PER_SET).any() else 1, 1
        )
        own = steps.loc[steps["per"] == PER_WORKER, "seconds"].sum()
        shared = steps[steps["per"] != PER_WORKER]
        of_set = (shared["times"] * shared["seconds"]).sum() / n_sets
        total += own + -(-n_sets // n_workers) * of_set
    return float(total / 3600)


def worker_memory(sweep: Sweep, shape: ModelShape) -> dict[str, int]:
    """Bytes of what a worker holds at the moment at which it holds the most: in the walk, or while it compresses.

    Parameters
    ----------
    sweep : Sweep
        Any.
    shape : ModelShape
        Of one of its models.

    Returns
    -------
    dict of str to int
        By what it is. What PyTorch and the allocator take on top is not in it.

    Notes
    -----
    The original weights stay beside the compressed ones, to be put back. Statistics are kept for a set, and for every
    target and length of row, since all methods and the cells after them read them.
    """
    largest = max(each.n_weights for each in shape.inputs)
    widest = max(each.d_in for each in shape.inputs)
    tokens = max(sweep.n_samples) * max(sweep.seq_len)
    whole = sweep.propagate == "original"
    always = {
        "weights": shape.weight_bytes,
        "statistics of a set": shape.statistics_bytes if whole else shape.statistics_bytes // shape.n_blocks,
        "statistics of targets": len(sweep.targets) * len(sweep.seq_len) * shape.statistics_bytes,
    }
    states = {"states between blocks": tokens * shape.d_model * shape.bytes_per_parameter}
    compressing = {
        "compressed blocks": shape.n_block_weights * shape.bytes_per_parameter,
        # the layers of an input in float32, before and after, and their difference; three matrices of its width
        "solving": FLOAT32 * (3 * largest + 3 * widest**2),
    }
    if not whole:  # blocks are compressed while the walk is on its way
        return always | states | compressing
    return always | max(states, compressing, key=lambda parts: sum(parts.values()))


def compression_memory(
    shape: ModelShape,
    spec: Spec,
    n_samples: int,
    seq_len: int,
    *,
    layer_errors: bool = True,
    hold_out: bool = False,
    streamed: bool = False,
    batch_size: int = 8,
) -> dict[str, int]:
    """Bytes that compressing one model takes on the device that computes, at the moment at which it takes the most.

    Notes
    -----
    A fake CUDA device counts the same for LLaMA-3-8B's shape to within a fifth; never more.
    """
    widest = max(each.d_in for each in shape.inputs)
    block_weights = shape.n_block_weights // shape.n_blocks
    largest = max(each.n_weights for each in shape.inputs)
    number = shape.bytes_per_parameter
    gram = spec.calibrated and (layer_errors or spec.reads_gram)
    always = {"weights": block_weights * number if streamed else shape.weight_bytes}
    if spec.calibrated:
        if not streamed:
            always["states between blocks"] = n_samples * seq_len * shape.d_model * number
        always["statistics of a block"] = (
            FLOAT32 * sum(each.d_in * (each.d_in + 2) for each in shape.inputs) if gram else 0
        )
        if hold_out and spec.method == "gptq":  # both parts of the rows, and their sum for the input at hand
            always["statistics of a block"] = 2 * always["statistics of a block"] + FLOAT32 * widest**2
    tokens = min(batch_size, n_samples) * seq_len
    # a token's states in the block's widest place: as they are, in float32, squared; and what the layers make of them
    walking = {"a batch in the block": tokens * widest * (number + 3 * FLOAT32) + tokens * 4 * shape.d_model * number}
    factors = 0
    if spec.method in ("sparsegpt", "gptq"):  # of every input one is kept, and the widest passes through three more
        factors = FLOAT32 * (sum(each.d_in**2 for each in shape.inputs) + 3 * widest**2)
    # a change's Gram matrix, and its product with that of the inputs
    judging = 3 * FLOAT32 * widest**2 if (gram and layer_errors) or spec.method == "awq" else 0
    doubled = 16 * largest if isinstance(spec, JointLowRank) else 0  # an input's weights in float64, and their factors
    solving = {
        "new weights of a block": FLOAT32 * block_weights,
        "solving": max(factors, judging) + doubled + 3 * FLOAT32 * largest,
    }
    if not spec.calibrated:
        return always | solving
    return always | max(walking, solving, key=lambda parts: sum(parts.values()))


def bytes_moved(sweep: Sweep, shapes: Mapping[str, ModelShape], n_workers: int, cell_bytes: float) -> dict[str, float]:
    """Bytes that pass over a cluster's network.

    Parameters
    ----------
    sweep : Sweep
        Any.
    shapes : mapping of str to ModelShape
        For each of its models.
    n_workers : int
        Each of which loads every model.
    cell_bytes : float
        Of one result in the store.

    Returns
    -------
    dict of str to float
        By what they are. Statistics, activations and compressed weights never leave their worker.
    """
    return {
        "weights to workers": float(n_workers * sum(shapes[model].weight_bytes for model in sweep.models)),
        "results to the store": cell_bytes * sum(map(sweep.n_cells, sweep.tasks())),
    }
