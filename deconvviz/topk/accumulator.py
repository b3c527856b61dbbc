"""The strongest images of one layer's units, as an accumulator of a pass."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.table import Layer
from ..rules.kinds import Kind
from ..scan.accumulator import Accumulator, Flaw, check_shapes
from .merging import NOBODY, Places, absorb, empty, strongest
from .result import LayerTop
from .saturation import Before


@dataclasses.dataclass(frozen=True)
class Strongest(Accumulator):
    """The k strongest images of each unit of a layer; an image counts once, with its strongest position.

    `before` makes of the pass what went into a saturating activation. With `origins`, one number per image of the
    set, each origin counts once per unit, with its strongest image. `within` are the rows and columns of the map that
    count; the places are those in this part of it, until they are given away.
    """

    layer: Layer
    k: int
    before: Before | None = None
    origins: Tensor | None = None
    within: tuple[slice, slice] | None = None
    places: Places | None = None

    @property
    def layers(self) -> Sequence[Layer]:
        """The layer, and what it was before its activation."""
        return (self.layer, *(self.before.layers if self.before is not None else ()))

    def update(self, first: int, responses: Sequence[Tensor], output: Tensor | None) -> Strongest:
        """Take in a batch."""
        response = ranked = responses[0]
        if self.before is not None:
            sources = zip((layer.value for layer in self.before.layers), responses[1:], strict=True)
            ranked = self.before.build(dict(sources)).reshape(response.shape)
        if self.within is not None:
            same = response is ranked
            part = (..., *self.within)
            ranked = ranked[part]
            response = ranked if same else response[part]
        # What was read from a file is on the CPU.
        places = empty(response) if self.places is None else Places(*(x.to(response.device) for x in self.places))
        look = response.device.type == "cpu"
        return dataclasses.replace(self, places=absorb(places, response, ranked, first, self.k, look, self.origins))

    def merge(self, other: Strongest) -> Strongest:
        """Return the strongest of both."""
        if self.places is None or other.places is None:
            return self if other.places is None else other
        both = Places(*(torch.cat(pair, 1) for pair in zip(self.places, other.places, strict=True)))
        return dataclasses.replace(self, places=strongest(both, self.k, self.origins))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the places."""
        return {}, {} if self.places is None else dict(self.places._asdict())

    def from_state(self, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Strongest:
        """Take the places back."""
        if not arrays:
            return self
        count = arrays["ids"].shape[1]
        shapes = dict.fromkeys(("keys", "values", "ids"), (self.layer.units, count))
        check_shapes(arrays, {**shapes, "positions": (self.layer.units, count, 2)})
        # Copies: what is read from the file would otherwise change with it.
        return dataclasses.replace(self, places=Places(**{name: x.clone() for name, x in arrays.items()}))

    def describe(self) -> str:
        """Say which layer, how many, and what else decides."""
        origins = b"" if self.origins is None else self.origins.numpy().tobytes()
        mark = hashlib.blake2b(origins, digest_size=16).hexdigest()
        inside = "" if self.within is None else f" {self.within}"
        return f"strongest {self.layer.name} {self.k} {self.before is not None} {mark}{inside}"

    def flaw(self) -> Flaw | None:
        """Look at the first place of each unit, where NaN and infinity go."""
        if self.places is None:
            return None
        bad = ~torch.isfinite(self.places.keys[:, 0]) & (self.places.ids[:, 0] != NOBODY)
        if not bad.any():
            return None
        unit = int(bad.nonzero()[0])
        return Flaw(self.layer.name, unit, int(self.places.ids[unit, 0]), float(self.places.keys[unit, 0]))

    def result(self) -> LayerTop:
        """Return the places on the CPU; those that no image excites are empty."""
        assert self.places is not None
        places = Places(*(x.cpu() for x in self.places))
        none = places.ids == NOBODY
        if self.layer.kind == Kind.RECTIFIER:
            none |= places.values <= 0
        else:  # zeros that nothing comes after: of a unit that is never excited, or not by so many images
            none |= (places.values == 0) & (places.values[:, -1:] == 0)
        positions = places.positions
        if self.within is not None:
            positions = positions + torch.tensor([part.start for part in self.within])
        return LayerTop(
            self.layer.name,
            self.layer.number,
            places.values.masked_fill(none, 0),
            places.ids.masked_fill(none, NOBODY),
            positions.masked_fill(none[..., None], 0),
            None if self.before is None else places.keys.masked_fill(none, 0),
            tuple(name for name in self.layer.aliases if name != self.layer.name),
        )
