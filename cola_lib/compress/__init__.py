"""Methods that prune or quantize: each a page of mathematics on one weight, and one way to apply them."""

from cola_lib.compress.api import CompressionReport, compress, restored, settle
from cola_lib.compress.awq import AWQ, awq
from cola_lib.compress.block import BlockUpdate, LayerReport, compress_block
from cola_lib.compress.checkpoint import check_dense, check_output, checkpoint_folder, save_checkpoint, write_report
from cola_lib.compress.gptq import DAMPS, GPTQ, choose_damp, gptq, held_out_ratio
from cola_lib.compress.lowrank import JointLowRank, joint_lowrank
from cola_lib.compress.magnitude import Magnitude, magnitude
from cola_lib.compress.quantized import QuantizedWeight
from cola_lib.compress.ria import RIA, ria
from cola_lib.compress.rtn import RTN, rtn
from cola_lib.compress.smoothquant import SmoothQuant, smoothquant
from cola_lib.compress.sparsegpt import SparseGPT, sparsegpt
from cola_lib.compress.specs import METHODS, Problem, PruneSpec, QuantSpec, Solution, Spec, method_spec
from cola_lib.compress.wanda import Wanda, wanda

PRUNERS = tuple(name for name, kind in METHODS.items() if issubclass(kind, PruneSpec))
QUANTIZERS = tuple(name for name, kind in METHODS.items() if issubclass(kind, QuantSpec))

__all__ = [
    "DAMPS",
    "AWQ",
    "GPTQ",
    "RIA",
    "RTN",
    "JointLowRank",
    "Magnitude",
    "SmoothQuant",
    "SparseGPT",
    "Wanda",
    "METHODS",
    "PRUNERS",
    "QUANTIZERS",
    "BlockUpdate",
    "CompressionReport",
    "LayerReport",
    "Problem",
    "PruneSpec",
    "QuantSpec",
    "QuantizedWeight",
    "Solution",
    "Spec",
    "awq",
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
    "restored",
    "ria",
    "rtn",
    "save_checkpoint",
    "settle",
    "smoothquant",
    "sparsegpt",
    "wanda",
    "write_report",
]
