"""Pictures in, pixels out: whatever a user calls images becomes one numbered `ImageSet`, and pixels again for display.

May import results, tape and guard at most; see the layer order in CONTRIBUTING.md.
"""

from .image_set import ImageSet as ImageSet
from .opening import Images as Images
from .opening import open_images as open_images
from .opening import open_one as open_one
from .opening import samples as samples
from .parts import Keyed as Keyed
from .photos import PHOTOS as PHOTOS
from .preprocess import Preprocess as Preprocess
from .preprocess import preprocess_for as preprocess_for
