"""Results as matplotlib figures, which are returned and never shown; the only folder that imports matplotlib.

A file is loaded when it is named: `deconvviz.plotting.projections.sheet`. May import everything but `cli`.
"""

import lazy_loader

_FILES = ("animation", "comparison", "filters", "occlusion", "projections", "recording", "studies")
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_FILES)
