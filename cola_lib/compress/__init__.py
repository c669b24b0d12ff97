"""Methods that prune or quantize: each a page of mathematics on one weight, and one way to apply them."""

from cola_lib.compress.api import CompressionReport, compress, restored, settle
from cola_lib.compress.awq import awq, awq_clip, awq_scale
from cola_lib.compress.block import BlockUpdate, LayerReport, Problem, Solution, compress_block, register_method
from cola_lib.compress.checkpoint import check_dense, check_output, checkpoint_folder, save_checkpoint, write_report
from cola_lib.compress.gptq import DAMPS, DampChoice, choose_damp, gptq, held_out_ratio
from cola_lib.compress.lowrank import joint_lowrank
from cola_lib.compress.magnitude import magnitude
from cola_lib.compress.quantized import OnGrid, QuantizedWeight
from cola_lib.compress.ria import ria
from cola_lib.compress.rtn import rtn
from cola_lib.compress.smoothquant import rounding_of, smoothquant, smoothquant_scale
from cola_lib.compress.sparsegpt import sparsegpt
from cola_lib.compress.specs import (
    FACTORIZERS,
    METHODS,
    PRUNERS,
    QUANTIZERS,
    LowRankSpec,
    PruneSpec,
    QuantSpec,
    SmoothQuantSpec,
    Spec,
    method_spec,
    spec_class,
)
from cola_lib.compress.wanda import wanda

__all__ = [
    "DAMPS",
    "FACTORIZERS",
    "METHODS",
    "PRUNERS",
    "QUANTIZERS",
    "BlockUpdate",
    "CompressionReport",
    "DampChoice",
    "LayerReport",
    "LowRankSpec",
    "OnGrid",
    "Problem",
    "PruneSpec",
    "QuantSpec",
    "QuantizedWeight",
    "SmoothQuantSpec",
    "Solution",
    "Spec",
    "awq",
    "awq_clip",
    "awq_scale",
    "check_dense",
    "check_output",
    "choose_damp",
    "checkpoint_folder",
    "compress",
    "compress_block",
    "gptq",
    "held_out_ratio",
    "joint_lowrank",
    "magnitude",
    "method_spec",
    "register_method",
    "spec_class",
    "restored",
    "ria",
    "rounding_of",
    "rtn",
    "save_checkpoint",
    "settle",
    "smoothquant",
    "smoothquant_scale",
    "sparsegpt",
    "wanda",
    "write_report",
]
