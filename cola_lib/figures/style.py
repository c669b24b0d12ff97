"""One look for all figures: readable at page width, in grey, and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import seaborn as sns

METHOD_ORDER = ("dense", "joint_lowrank", "magnitude", "wanda", "ria", "sparsegpt", "rtn", "gptq", "awq", "smoothquant")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
"""Shape goes with colour everywhere, so that neither carries meaning alone."""


def use_style() -> None:
    """Set matplotlib and seaborn for a notebook.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from cola_lib.figures import use_style
    >>> with plt.rc_context():  # what it sets stays set otherwise
    ...     use_style()
    """
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "legend.frameon": False,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
        },
    )
    plt.rcParams["svg.fonttype"] = "none"


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort method labels: dense first, then pruning, then quantization, each from its control up.

    Parameters
    ----------
    labels : iterable of str
        Such as ``"wanda 50%"``. Unknown ones come last, by name.

    Returns
    -------
    list of str
        Sorted.

    Examples
    --------
    >>> from cola_lib.figures import in_order
    >>> in_order(["gptq 3-bit", "wanda 50%", "dense"])
    ['dense', 'wanda 50%', 'gptq 3-bit']
    """

    def rank(label: str) -> tuple[int, str]:
        method = label.split()[0]
        return (METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), label)

    return sorted(set(labels), key=rank)
