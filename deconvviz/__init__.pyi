"""The public names: a new one is one line here, and nowhere else. Read by type checkers, editors and `__init__.py`."""

from . import images as images
from . import plotting as plotting
from . import zoo as zoo
from .comparison.compare import compare_methods as compare_methods
from .comparison.result import MethodComparison as MethodComparison
from .errors import DeconvvizError as DeconvvizError
from .errors import ImageError as ImageError
from .errors import LayerError as LayerError
from .errors import ModelError as ModelError
from .errors import OptionError as OptionError
from .errors import StoreError as StoreError
from .errors import UnitError as UnitError
from .errors import UnsupportedOp as UnsupportedOp
from .explorer.report import report as report
from .model.audit import audit as audit
from .model.survey import layers as layers
from .occlusion.occlude import occlude as occlude
from .occlusion.result import Occlusion as Occlusion
from .projection.deconv import deconv as deconv
from .projection.project import project as project
from .projection.result import Projections as Projections
from .studies.correspondence import Correspondence as Correspondence
from .studies.correspondence import correspondence as correspondence
from .studies.filters import FilterComparison as FilterComparison
from .studies.filters import Filters as Filters
from .studies.filters import compare_filters as compare_filters
from .studies.filters import filters as filters
from .studies.invariance import Invariance as Invariance
from .studies.invariance import invariance as invariance
from .studies.neighbours import Neighbours as Neighbours
from .studies.neighbours import nearest as nearest
from .studies.probe import Probe as Probe
from .studies.probe import probe as probe
from .studies.responses import Responses as Responses
from .studies.responses import response_std as response_std
from .topk.scan import TopK as TopK
from .topk.scan import top as top
from .training.recorder import Recorder as Recorder
from .training.recorder import Recording as Recording
from .training.train import train as train

__version__: str
