"""The kinds of operations that there are rules for, and which of them share a property.

A new kind is considered here, once, for everything that asks about kinds.
"""

from __future__ import annotations

import enum


class Kind(str, enum.Enum):
    """What an operation is, as the tables print it."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    RECTIFIER = "rectifier"
    SQUASHING = "squashing"
    MAXOUT = "maxout"
    MAX_POOL = "max-pool"
    AVERAGE_POOL = "average pool"
    NORMALIZATION = "normalization"
    SUM = "sum"
    CONCATENATION = "concatenation"
    PRODUCT = "product"
    IDENTITY = "identity"
    VIEW = "view"
    BORDER = "border"
    GRADIENT = "gradient"

    __str__ = str.__str__


# What may stand between a convolution and the rectifier that makes its response.
BETWEEN_CONV_AND_RELU = frozenset({Kind.NORMALIZATION, Kind.IDENTITY, Kind.PRODUCT, Kind.SUM})
# What may stand between the images and the convolution that reads them.
BEFORE_THE_FIRST_CONV = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.NORMALIZATION, Kind.PRODUCT, Kind.SUM, Kind.BORDER})
# What makes the response of the convolution before it.
ACTIVATIONS = frozenset({Kind.RECTIFIER, Kind.SQUASHING})
# Deep networks are numbered by these; a squashing that makes a gate does not count.
NUMBERED = frozenset({Kind.RECTIFIER, Kind.SQUASHING, Kind.MAXOUT})
# Operations that are layers by themselves, whether or not a module returns what they make.
LAYERS = NUMBERED | {Kind.CONVOLUTION, Kind.MAX_POOL, Kind.AVERAGE_POOL, Kind.SUM}
# What the audit lists.
AUDITED = NUMBERED | {Kind.MAX_POOL, Kind.AVERAGE_POOL, Kind.NORMALIZATION, Kind.PRODUCT}
# Their inputs are what a classifier computes its classes from.
WEIGHTED = frozenset({Kind.CONVOLUTION, Kind.LINEAR})
# Maps that a class activation map can be made of.
MAPS = frozenset({Kind.CONVOLUTION, Kind.NORMALIZATION, Kind.RECTIFIER, Kind.SUM, Kind.CONCATENATION})
