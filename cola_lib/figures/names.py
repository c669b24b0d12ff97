"""What readers see in place of the names that commands take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "c4": "web text",
        "wikipedia": "Wikipedia",
        "technical": "manuals",
        "stories": "stories",
        "code": "source code",
        "mbpp:language=all": "programming tasks",
        "gsm8k": "word problems",
        "math": "competition problems",
        "commonsense": "commonsense questions",
        "random tokens": "random tokens",
        "random_tokens": "random tokens",
        "no data": "no data",
        "random(source=c4)": "web text",
        "random(source=wikipedia)": "Wikipedia",
        "random(source=code)": "source code",
        "uniform_mix": "even mixture",
        "self_generated": "the model's own text",
        "self_calibrated": "the model's own text, from nothing",
        "shuffled_words": "shuffled words",
        "perplexity": "lowest perplexity",
        "zipcal": "ZipCal",
        "tfidf_clusters": "TF-IDF clusters",
        "information_mix": "information mix",
        "length_mixture": "mixed lengths",
        "centroid_distance": "nearest to the use",
        "outlier_cover": "outlier cover",
        "spectral_volume": "spectral volume",
        "cola": "COLA",
        "proxy": "expected error",
    }
)
"""For sources and strategies, what a reader calls them."""

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "wanda": "Wanda",
        "ria": "RIA",
        "sparsegpt": "SparseGPT",
        "gptq": "GPTQ",
        "awq": "AWQ",
        "smoothquant": "SmoothQuant",
        "rtn": "rounding to nearest",
        "magnitude": "magnitude",
    }
)


def readable(name: str) -> str:
    """Write the name of a source, strategy or method as a reader knows it.

    Parameters
    ----------
    name : str
        Such as ``"mbpp:language=all"`` or ``"gptq 3-bit act-order"``. Other names stay as they are.

    Returns
    -------
    str

    Examples
    --------
    >>> from cola_lib.figures import readable
    >>> readable("mbpp:language=all"), readable("gptq 3-bit act-order")
    ('programming tasks', 'GPTQ 3-bit')
    """
    if name in NAMES:
        return NAMES[name]
    method, space, strength = name.partition(" ")
    if space and method in METHODS:
        return f"{METHODS[method]} {re.sub(r' act-order| no-clip', '', strength)}"
    return METHODS.get(name, name)
