"""One pass over images: the engine that walks them, and the accumulators that measure on the way.

May import model and everything below it; see the layer order in CONTRIBUTING.md.
"""
