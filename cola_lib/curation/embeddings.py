"""A vector for each text, so that texts can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cola_lib.activations import pooled_probe
from cola_lib.curation.pool import Pool, Rows
from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.models import LanguageModel

Array = NDArray[np.float64]

SENTENCE = "sentence-transformers:"
"""Beginning of the name of a sentence embedding model."""

KINDS = ("model", "tfidf", f"{SENTENCE}NAME")

LSA_WIDTH = 100
"""Dimensions to which TF-IDF vectors are reduced."""


def embed(kind: str, lm: LanguageModel, *sides: tuple[Pool, Rows]) -> list[Array]:
    """Embed the texts of rows, all in one space.

    Notes
    -----
    The mean is taken off the model's states because it is most of each of them: without that all cosines are near 1.
    """
    if kind == "model":
        block = len(lm.blocks) // 2
        probes = {"pooled": pooled_probe([block])}
        found = [pool.features(lm, rows, ("pooled", block), probes)["pooled"][:, 0] for pool, rows in sides]
        centre = torch.cat(found).mean(0)
        vectors = [(one - centre).double().numpy() for one in found]
    elif kind == "tfidf":
        vectors = _lsa([rows.texts for _, rows in sides])
    elif kind.startswith(SENTENCE):
        vectors = _sentences(kind.removeprefix(SENTENCE), [rows.texts for _, rows in sides])
    else:
        raise UnknownNameError("embedding", kind, KINDS)
    return [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), np.finfo(float).tiny) for one in vectors]


def _split(stacked: Array, sizes: Sequence[int]) -> list[Array]:
    return np.split(stacked, np.cumsum(sizes)[:-1])


def _lsa(sides: Sequence[Sequence[str]]) -> list[Array]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text for side in sides for text in side]
    matrix = TfidfVectorizer(max_features=5000, ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    width = min(LSA_WIDTH, min(matrix.shape) - 1)
    if width < 1:
        raise SpecError(f"{len(texts)} texts with {matrix.shape[1]} different words are too few to compare; add some")
    return _split(TruncatedSVD(width, random_state=0).fit_transform(matrix), [len(side) for side in sides])


def _sentences(name: str, sides: Sequence[Sequence[str]]) -> list[Array]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SpecError(
            f"embedding {SENTENCE}{name} needs the package sentence-transformers, which is not installed: install it, "
            "or take the embedding 'model' or 'tfidf'"
        ) from error
    encoder = SentenceTransformer(name)
    texts = [text for side in sides for text in side]
    stacked = np.asarray(encoder.encode(texts, show_progress_bar=False), dtype=np.float64)
    return _split(stacked, [len(side) for side in sides])
