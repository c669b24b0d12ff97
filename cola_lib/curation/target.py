"""What a compressed model will be used for: capabilities, texts that stand for them, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from cola_lib.calibration import draw_samples, source_samples
from cola_lib.curation.pool import Pool
from cola_lib.data import TARGETS, Sample
from cola_lib.errors import DataError, SpecError, UnknownNameError

GENERAL = "general"
"""Name of the target in which all capabilities count alike."""

OFF_TARGET = 0.2
"""Weight of every other capability when one is targeted (COLA)."""


@dataclass(frozen=True)
class Target:
    """A deployment.

    Parameters
    ----------
    name : str
        ``"general"``, or the capability that is targeted.
    texts : mapping of str to sequence of Sample
        For each capability, texts of its kind. Never evaluation items.
    weights : mapping of str to float
        How much each capability counts; they sum to 1.

    Raises
    ------
    SpecError
        If names disagree, or a weight is negative or all are zero.
    DataError
        If a capability has no text.

    Examples
    --------
    >>> from cola_lib.curation import deployment
    >>> from cola_lib.data import Sample
    >>> texts = {"math": [Sample("1", "2 + 2 = 4", "sums")], "language": [Sample("2", "Less is more.", "proverbs")]}
    >>> target = deployment(texts, "math")
    >>> target.name, {name: round(weight, 2) for name, weight in target.weights.items()}
    ('math', {'math': 0.83, 'language': 0.17})
    """

    name: str
    texts: Mapping[str, Sequence[Sample]]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.texts or set(self.texts) != set(self.weights):
            raise SpecError(
                f"target {self.name!r}: every capability needs texts and a weight, and there are texts for "
                f"{', '.join(self.texts) or 'none'} and weights for {', '.join(self.weights) or 'none'}"
            )
        for capability, texts in self.texts.items():
            if not texts:
                raise DataError(f"target {self.name!r}: capability {capability!r} has no texts")
        total = sum(self.weights.values())
        if min(self.weights.values()) < 0 or total <= 0:
            raise SpecError(f"target {self.name!r}: weights must be positive, and are {dict(self.weights)}")
        object.__setattr__(self, "weights", {name: weight / total for name, weight in self.weights.items()})

    @property
    def sample_ids(self) -> frozenset[str]:
        """Ids of all its texts; a pool leaves them out, so that no text is chosen for being the target's own."""
        return frozenset(sample.id for texts in self.texts.values() for sample in texts)

    @cached_property
    def pool(self) -> Pool:
        """The texts as a pool whose sources are the capabilities: it keeps what is measured on them."""
        return Pool(self.texts)

    def towards(self, capability: str) -> Target:
        """Target one of the capabilities with the same texts, and with all that is measured on them.

        Parameters
        ----------
        capability : str
            As in :func:`deployment`.
        """
        found = deployment(self.texts, capability)
        vars(found)["pool"] = self.pool
        return found


def deployment(
    texts: Mapping[str, Sequence[Sample]], capability: str | None = None, *, off_target: float = OFF_TARGET
) -> Target:
    """Make the target of a deployment.

    References
    ----------
    He et al., arXiv 2510.10618: general and targeted deployment, off-target weight 0.2.
    """
    if capability is None:
        return Target(GENERAL, texts, dict.fromkeys(texts, 1.0))
    if capability not in texts:
        raise UnknownNameError("capability", capability, texts)
    return Target(capability, texts, {name: 1.0 if name == capability else off_target for name in texts})


TARGET_SAMPLES = 48
"""Samples of each source that stand for a capability."""


def load_target(
    name: str = GENERAL,
    *,
    capabilities: Sequence[str] = tuple(TARGETS),
    sources: Mapping[str, Sequence[str]] = TARGETS,
    seed: int = 0,
    draw: int = 0,
    n_draws: int = 1,
    limit: int = TARGET_SAMPLES,
) -> Target:
    """Make a target of what comes with the library, or of texts of your own."""

    def some(source: str) -> list[Sample]:
        return draw_samples(source_samples(source), seed=seed, draw=draw, n_draws=n_draws)[:limit]

    if name != GENERAL and name not in sources:
        return Target(name, {name: some(name)}, {name: 1.0})
    texts = {
        capability: [sample for pair in zip_longest(*map(some, sources[capability])) for sample in pair if sample]
        for capability in capabilities
    }
    return deployment(texts, None if name == GENERAL else name)
