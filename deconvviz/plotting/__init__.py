"""Results as matplotlib figures, which are returned and never shown; the only folder that imports matplotlib.

One file per kind of result, whose `draw(result, figure=None, ...)` is what `result.plot()` calls; a file is loaded when
it is named: `deconvviz.plotting.projections.sheet`. May import everything but `cli`.
"""

import lazy_loader

_FILES = (
    "accentuated",
    "animation",
    "comparison",
    "correspondence",
    "evidence",
    "filters",
    "invariance",
    "inversion",
    "maximized",
    "neighbours",
    "occlusion",
    "probe",
    "projections",
    "recording",
    "responses",
    "style",
    "topk",
    "training",
)
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_FILES)
