"""Metadata tables for tests: small random ones, and large ones with the cardinalities of the published data set."""

import numpy as np
import pandas as pd


def small_table(num: int, seed: int) -> pd.DataFrame:
    """Make a table with few values, so that labels compete for rows; some cells have several values, and some are missing."""
    rng = np.random.default_rng(seed)

    def cells(values: list[str], several: float = 0.0) -> list[str]:
        first, second = rng.choice(values, num), rng.choice(values, num)
        both = rng.random(num) < several
        return [
            "|".join(dict.fromkeys((a, b))) if two and a and b else a for a, b, two in zip(first, second, both, strict=True)
        ]

    return pd.DataFrame(
        {
            "name": cells(["alpha", "beta", "gamma"]),
            "idx": [f"set-{number}" for number in rng.permutation(num)],
            "organism": cells(["human", "human", "mouse", ""]),
            "cell_type": cells(["u2os", "hela", "a549", "actin"]),
            "cell_visible": cells(["nucleus", "actin", "alpha-actinin", "er"], 0.5),
            "phenotype": cells(["", "", "mitosis", "dead"]),
            "compound": cells(["", "dmso", "taxol", "mitosis", *[f"c{n}" for n in range(6)]]),
            "gene": cells(["", "", "", "plk1 targeted", "kif11 targeted"], 0.2),
            "sirna": cells(["", "", "s1", "s2"]),
        }
    )


def large_table(num: int, seed: int) -> pd.DataFrame:
    """Make a table with the shares and cardinalities of CytoImageNet's 2.7 million rows: few big sources, many compounds."""
    rng = np.random.default_rng(seed)
    source = rng.zipf(1.3, num) % 40
    organisms = np.array(["human"] * 32 + ["mouse"] * 3 + ["yeast"] * 4 + ["nematode"])
    types = np.array([f"cell line {n}" for n in range(60)])
    visible = np.array(
        ["nucleus|actin", "nucleus|endoplasmic reticulum|actin|nucleoli|mitochondria|golgi apparatus", "nucleus"]
    )

    def rare(prefix: str, many: int, share: float, exponent: float) -> np.ndarray:
        values = np.array([f"{prefix}{n}" for n in range(many)], dtype=object)
        chosen = values[np.minimum(rng.zipf(exponent, num), many) - 1 if exponent > 1 else rng.integers(0, many, num)]
        return np.where(rng.random(num) < share, chosen, "")

    compounds = np.where(rng.random(num) < 0.3, rare("drug ", 4000, 0.7, 1.15), rare("drug ", 2500, 0.55, 0))
    return pd.DataFrame(
        {
            "name": pd.Series([f"source {n}" for n in range(40)])[source].to_numpy(),
            "idx": [f"s{a}-{b}" for a, b in zip(source.tolist(), range(num), strict=True)],
            "organism": organisms[source],
            "cell_type": types[(source * 7 + rng.integers(0, 3, num)) % 60],
            "cell_visible": visible[(source + rng.integers(0, 2, num)) % 3],
            "phenotype": rare("phenotype ", 400, 0.08, 1.3),
            "compound": compounds,
            "gene": rare("gene ", 20_000, 0.12, 0),
            "sirna": rare("s", 40_000, 0.1, 0),
        }
    )
