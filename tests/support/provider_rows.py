"""Providers that only tests have."""

from __future__ import annotations

from edgetie.providers.environments import RECIPES, Recipe
from edgetie.providers.registry import PROVIDERS, Provider


def register_provider(row: Provider, recipe: Recipe) -> None:
    """Add a provider to the table, with the recipe of the environment that it names."""
    PROVIDERS[row.name] = row
    RECIPES[row.environment] = recipe
