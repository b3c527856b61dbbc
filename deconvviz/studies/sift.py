"""SIFT, what images were compared by before networks: descriptors of keypoints, one Fisher vector per image."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ImageError, ModelError
from ..model.table import Layer
from ..scan.accumulator import Accumulator, Flaw, check_shapes

TITLE = "SIFT"
_LENGTH = 128  # numbers of a descriptor
_COMPONENTS, _MODES = 64, 16
SIZE = _MODES * (2 * _COMPONENTS + 1)  # numbers per image
_MOST = 50_000  # descriptors that the vocabulary is learnt from
_GRAY = (0.2125, 0.7154, 0.0721)  # scikit-image's weights of red, green and blue


def need_sklearn(what: str) -> None:
    """Refuse what scikit-learn is missing for."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ModelError(f'{what} needs scikit-learn. Install it: pip install "deconvviz[studies]".') from error


def describe(pixels: Tensor) -> Tensor:
    """Return scikit-image's SIFT descriptors (keypoints, 128) uint8 of one picture (3, H, W), from 0 to 1."""
    from skimage.feature import SIFT

    gray = (pixels.double() * torch.tensor(_GRAY, dtype=torch.float64)[:, None, None]).sum(0)
    sift = SIFT()
    try:
        sift.detect_and_extract(gray.numpy())
    except RuntimeError as error:
        if "found no features" not in str(error):
            raise
        return torch.zeros(0, _LENGTH, dtype=torch.uint8)
    return torch.from_numpy(np.asarray(sift.descriptors, np.uint8))


@dataclasses.dataclass(frozen=True)
class Descriptors(Accumulator):
    """The descriptors (keypoints, 128) of each image, by its number.

    `invert` takes the model's input back to pixels; `bad` is the first image that was not finite, -1 if there was none.
    """

    one_size = False

    pixels: Layer
    invert: Callable[[Tensor], Tensor]
    found: tuple[tuple[int, Tensor], ...] = ()
    bad: int = -1

    @property
    def layers(self) -> Sequence[Layer]:
        """The images themselves."""
        return (self.pixels,)

    def update(self, first: int, responses: Sequence[Tensor], output: Tensor | None) -> Descriptors:
        """Take in a batch."""
        images = responses[0].detach().float().cpu()
        wrong = (~torch.isfinite(images).flatten(1).all(1)).nonzero()[:, 0].tolist()
        if wrong:
            return dataclasses.replace(self, bad=first + wrong[0])
        new = tuple((first + i, describe(picture)) for i, picture in enumerate(self.invert(images)))
        return dataclasses.replace(self, found=self.found + new)

    def merge(self, other: Descriptors) -> Descriptors:
        """Return the descriptors of both, in the images' order."""
        found = tuple(sorted(self.found + other.found, key=lambda one: one[0]))
        return dataclasses.replace(self, found=found, bad=max(self.bad, other.bad))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return one table."""
        if not self.found:
            return {"bad": self.bad}, {}
        numbers, tables = zip(*self.found, strict=True)
        counts = torch.tensor([len(table) for table in tables])
        return {"bad": self.bad}, {"table": torch.cat(tables), "counts": counts, "images": torch.tensor(numbers)}

    def from_state(self, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Descriptors:
        """Take the table back."""
        if not arrays:
            return dataclasses.replace(self, bad=facts["bad"])
        check_shapes(arrays, {"table": (None, _LENGTH), "counts": (len(arrays["images"]),)})
        parts = arrays["table"].clone().split(arrays["counts"].tolist())
        found = tuple(zip(arrays["images"].tolist(), parts, strict=True))
        return dataclasses.replace(self, found=found, bad=facts["bad"])

    def describe(self) -> str:
        """Say what is measured."""
        return f"sift {_COMPONENTS} {_MODES}"

    def flaw(self) -> Flaw | None:
        """Look whether an image was not finite."""
        return None if self.bad < 0 else Flaw(self.pixels.name, None, self.bad)

    def result(self) -> list[Tensor]:
        """Return the descriptors, image by image."""
        return [table for _, table in self.found]


class Vocabulary:
    """What Fisher vectors are made by: principal components of descriptors and a mixture of Gaussians.

    Source: Perronnin, Sánchez & Mensink, "Improving the Fisher Kernel for Large-Scale Image Classification", ECCV 2010.
    """

    def __init__(self, tables: Sequence[Tensor], seed: int = 0) -> None:
        """Learn it from images' descriptors, of at most 50,000 of them, drawn by `seed`."""
        from skimage.feature import learn_gmm
        from sklearn.decomposition import PCA
        from sklearn.exceptions import ConvergenceWarning

        need = max(_COMPONENTS, _MODES)
        every = torch.cat(list(tables)).numpy() if tables else np.zeros((0, _LENGTH), np.uint8)
        if len(every) < need:
            raise ImageError(
                f"SIFT finds {len(every)} keypoints in {len(tables)} images, expected at least {need}. Give more images, "
                "larger ones, or ones with more contrast; or leave SIFT out."
            )
        if len(every) > _MOST:
            every = every[np.sort(np.random.default_rng(seed).choice(len(every), _MOST, replace=False))]
        self.components = PCA(_COMPONENTS, svd_solver="full").fit(_unit(every))
        options = {"covariance_type": "diag", "random_state": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture that still moves a little is one, too
            self.mixture = learn_gmm(self.components.transform(_unit(every)), n_modes=_MODES, gm_args=options)

    def encode(self, tables: Sequence[Tensor]) -> Tensor:
        """Return Fisher vectors (N, 2064) float64 of length 1, zero for an image without keypoints."""
        from skimage.feature import fisher_vector

        rows = np.zeros((len(tables), SIZE))
        for row, table in zip(rows, tables, strict=True):
            if len(table):
                row[:] = fisher_vector(self.components.transform(_unit(table.numpy())), self.mixture, improved=True)
        return torch.from_numpy(rows)


def _unit(table: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return descriptors of about length 1; scikit-image's are 512 times that."""
    return table.astype(np.float64) / 512
