"""How a network is called with a batch of images, where that is not `model(images)`, and what is asked of its answer.

Imports `errors` alone.
"""

from .called import Call as Call
from .called import Called as Called
from .called import Target as Target
from .called import called as called
