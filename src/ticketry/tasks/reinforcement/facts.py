"""Environments as facts, and how networks learn to act in them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ticketry.errors import TaskError
from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Settings of deep Q-learning. An update is a step of the recipe: one batch out of the memory, one gradient."""

    copies: int = 8
    """Copies of the environment that are stepped together."""
    moves: int = 1
    """Actions of each copy before an update."""
    repeat: int = 1
    """Steps of the environment for which an action is taken, also when the network is measured (frame skip)."""
    memory: int = 10_000
    """Transitions that are remembered; the oldest go first. A multiple of copies."""
    warmup: int = 1_000
    """Transitions by random actions that are in the memory before the first update. A multiple of copies."""
    gamma: float = 0.99
    """Discount of what comes a step later."""
    explore: float = 0.05
    """Share of random actions in the end; it falls from 1 in a straight line."""
    explore_for: float = 0.5
    """Share of the training in which it falls."""
    period: int = 100
    """Updates after which the target network becomes what the network is then."""
    blend: float = 1.0
    """How far it moves towards the network then: 1 is all the way."""
    double: bool = False
    """Whether the network chooses the next action that the target network judges (van Hasselt et al. 2016)."""
    loss: str = "huber"
    """Of the difference to the target: huber (squared up to 1, then linear), or squared."""

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise TaskError(f"the option {name} lies in [{low:g}, {high:g}], not {value:g}")
        for name in ("memory", "warmup"):
            if (value := getattr(self, name)) % self.copies:
                raise TaskError(
                    f"the option {name} is a multiple of the number of copies, {self.copies}, not {value:,}"
                )
        if self.warmup > self.memory:
            raise TaskError(f"a warmup of {self.warmup:,} transitions does not fit into a memory of {self.memory:,}")
        if self.loss not in ("huber", "squared"):
            raise TaskError(f"the option loss is huber or squared, not {self.loss!r}")

    def changed(self, options: Mapping[str, str]) -> Learning:
        """A copy with the options that are written there, as text.

        Raises:
            TaskError: for a name or a value that cannot be.
        """
        known = {field.name: field.type for field in fields(self)}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, text in options.items():
            if name not in known:
                raise TaskError(f"there is no option {name}: choose from {', '.join(known)}")
            values[name] = _read(name, text, str(known[name]))
        return Learning(**values)


_BOUNDS = (
    ("copies", 1, 1024),
    ("moves", 1, 10_000),
    ("repeat", 1, 1_000),
    ("memory", 1, 10_000_000),
    ("warmup", 1, 10_000_000),
    ("gamma", 0.0, 1.0),
    ("explore", 0.0, 1.0),
    ("explore_for", 0.0, 1.0),
    ("period", 1, 1_000_000),
    ("blend", 1e-6, 1.0),
)


def _read(name: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise TaskError(f"the option {name} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return {"int": int, "float": float}[kind](text)
    except ValueError:
        raise TaskError(f"the option {name} is a {'whole ' * (kind == 'int')}number, not {text!r}") from None


@dataclass(frozen=True)
class Facts:
    """An environment."""

    title: str
    environment: str
    """Its name in Gymnasium."""
    model: str
    recipe: Recipe
    learning: Learning = field(default_factory=Learning)

    def __str__(self) -> str:
        return f"{self.title}: {self.environment} of Gymnasium, by deep Q-learning; {self.model} by default"


_RECIPE = Recipe(length="20000it", batch=128, optimizer="adam", lr=1e-3, schedule="linear", clip=10.0)

# A cart that drifts out of sight after hundreds of steps is what is hard here. A discount of 200 steps makes ends so
# far away tell; many copies and a short memory show what the network does now; the squared loss gives the rare ends
# their weight, without which a target network that follows this fast diverges. A network that balances ends no episode
# any more, and forgets what an end is: every fifth action stays random, so that the memory goes on to have some.
_POLE = Learning(
    copies=64,
    memory=10_240,
    warmup=1_024,
    gamma=0.995,
    explore=0.2,
    explore_for=0.4,
    period=10,
    double=True,
    loss="squared",
)
_POLE_RECIPE = _RECIPE.changed(length="6000it", batch=64, lr=4e-3, clip=0.0)

# With the Huber loss, or a higher rate, some trainings end where no swing reaches the height: all episodes then last
# their 500 steps.
_SWING = Learning(memory=20_000, explore_for=0.3, period=50, double=True, loss="squared")
_SWING_RECIPE = _RECIPE.changed(length="8000it", lr=5e-4)

# Decisions 20 ms apart are too close to one another for their values to differ by more than noise, and what is learned
# is to hover: an action is taken for four steps.
_LAND = Learning(
    repeat=4,
    memory=50_000,
    warmup=2_000,
    gamma=0.98,
    explore_for=0.3,
    double=True,
    loss="squared",
)
_LAND_RECIPE = _RECIPE.changed(clip=0.0)

ENVIRONMENTS = {
    "cartpole": Facts("A pole is balanced on a cart", "CartPole-v1", "mlp-120-84", _POLE_RECIPE, _POLE),
    "acrobot": Facts("A double pendulum swings itself up", "Acrobot-v1", "mlp-120-84", _SWING_RECIPE, _SWING),
    "lunarlander": Facts("A spacecraft lands", "LunarLander-v3", "mlp-120-84", _LAND_RECIPE, _LAND),
}

GYM = "gym:"
"""What the name of any other environment of Gymnasium begins with; its own name follows."""
OTHER = Facts("", "", "mlp-120-84", _RECIPE)
EXTRA = "control"
"""What is installed for these tasks."""
EPISODES = 100
"""By which a network is measured."""
