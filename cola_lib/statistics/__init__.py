"""What the calibration data tells: sums over the inputs of each layer, gathered in one walk."""

from cola_lib.statistics.inputs import ChannelStatistics, InputStatistics, LayerStatistics, gram_matrix
from cola_lib.statistics.walk import PROPAGATE, BlockStep, Propagate, collect_statistics, walk

__all__ = [
    "PROPAGATE",
    "BlockStep",
    "ChannelStatistics",
    "InputStatistics",
    "LayerStatistics",
    "Propagate",
    "collect_statistics",
    "gram_matrix",
    "walk",
]
