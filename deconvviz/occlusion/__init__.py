"""Cover a part of an image and see what a network's answer depends on: grids, fills, the exact scanner, its result.

May import `projection`, `model`, `rules`, `tape`, `images`, `results`, `guard` and `errors`; no figures are drawn here.
"""
