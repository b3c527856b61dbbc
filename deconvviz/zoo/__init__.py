"""The papers' networks: one paper per file in `networks`, each network with its card.

Imports `errors` and `results`, nothing else of the package.
"""

from .card import Card as Card
from .create import create as create
from .create import knows as knows
from .create import names as names

__all__ = ["Card", "create", "knows", "names"]
