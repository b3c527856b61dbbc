"""Pictures in, pixels out. See the layer order in CONTRIBUTING.md."""

from .opening import ImageSet as ImageSet
from .opening import open_images as open_images
