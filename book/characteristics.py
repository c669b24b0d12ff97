"""Simulate what the rules for claims can see, and put table and figure into ``book/rules.md``. Takes three minutes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cola_lib import figures
from cola_lib.analysis import World, coverage, simulated_intervals, verdict_chances
from cola_lib.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "rules.md"
PICTURE = ROOT / "book" / "images" / "verdict_chances.png"
BEGIN, END = "<!-- coverage -->", "<!-- end of coverage -->"
DRAWS = (3, 6, 10)
TAILS = {"normal": "normal", "t4": "t, 4 degrees of freedom"}
SPREADS = {"equal": "equal", "chi2": "scaled inverse chi-square, 4 degrees of freedom"}
MARGINS = (0.005, 0.02)
EFFECTS = np.log1p(np.linspace(-0.06, 0.06, 49))


def simulate(n_truths: int) -> tuple[str, pd.DataFrame]:
    """Coverage as a Markdown table, and the chances of each verdict where all is normal."""
    lines = [
        "| draws | tails | variances of the sets | 95 % intervals that hold the truth | 90 % intervals |",
        "|---|---|---|---|---|",
    ]
    chances = []
    for draws, tails, spread in product(DRAWS, TAILS, SPREADS):
        world = World(n_draws=draws, tails=tails, spread=spread)
        intervals = simulated_intervals(world, n_truths, np.random.default_rng([draws, len(tails), len(spread)]))
        held = " | ".join(f"{100 * coverage(intervals, level):.1f} %" for level in (0.95, 0.9))
        lines.append(f"| {draws} | {TAILS[tails]} | {SPREADS[spread]} | {held} |")
        if (tails, spread) == ("normal", "equal"):
            for margin in MARGINS if draws == DRAWS[-1] else MARGINS[:1]:
                chances.append(
                    verdict_chances(intervals, EFFECTS, margin=margin).assign(
                        panel=f"{draws} draws, ±{100 * margin:g} %"
                    )
                )
    return "\n".join(lines), pd.concat(chances, ignore_index=True)


def with_table(page: str, table: str) -> str:
    """Put the table in its place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{PAGE} has no place for the table: put the lines {BEGIN} and {END} where it belongs")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    text, found = simulate(1000)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    figures.use_style()
    figure = figures.verdict_chances(found)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)
