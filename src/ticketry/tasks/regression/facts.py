"""The tables of regression as facts, and how their networks are trained. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.tasks.recipe import Recipe

MODEL = "mlp-50"
"""Of Hernández-Lobato & Adams (2015) and those who compare with them."""

RECIPE = Recipe(length="2000it", batch=64, optimizer="adam", lr=1e-2, schedule="cosine")
"""Our own choice, by the validation parts of ten splits of five tables, see docs/domains.md."""

EACH = "each"
"""As the split asked for: replicate r of a search has split r."""

OPTIONS = ("split", "validation")


@dataclass(frozen=True)
class Facts:
    """A published table."""

    title: str
    rows: int
    features: int
    target: str

    def __str__(self) -> str:
        return (
            f"{self.title}: {self.target} from {self.features} numbers, {self.rows:,} rows, 20 splits, one a replicate "
            f"(--option split=0 for one alone); {MODEL} by default"
        )


UCI = {
    "uci-boston": Facts("Boston housing", 506, 13, "median house price in $1,000"),
    "uci-concrete": Facts("Concrete", 1_030, 8, "compressive strength in MPa"),
    "uci-energy": Facts("Energy efficiency", 768, 8, "heating load in kWh/m²"),
    "uci-power": Facts("Combined cycle power plant", 9_568, 4, "electrical output in MW"),
    "uci-wine": Facts("Red wine", 1_599, 11, "quality from 0 to 10"),
    "uci-yacht": Facts("Yacht hydrodynamics", 308, 6, "residuary resistance per unit weight"),
}

TABLE = "table:"
"""What the name of a table of one's own begins with; its file follows."""
