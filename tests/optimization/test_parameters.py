"""The numbers behind an image: colours, spectra, phases."""

import pytest
import torch

from deconvviz.optimization import natural as module
from deconvviz.optimization.natural import natural
from deconvviz.optimization.parameters import Fourier, Maco, Pixels, frequencies

EPS = torch.finfo(torch.float32).eps


def starts(count=2):
    return [torch.Generator().manual_seed(n) for n in range(count)]


def make(kind, shape):
    return Pixels(starts(), shape) if kind is Pixels else kind(starts(), shape, natural())


@pytest.mark.parametrize("kind", [Pixels, Fourier, Maco])
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 22), (1, 17, 9), (4, 12, 12)])
def test_images_are_pixels_and_each_number_is_used(kind, shape):
    parameters = make(kind, shape)
    parameters.values.requires_grad_()
    images = parameters.images()
    assert images.shape == (2, *shape) and 0 < images.min() and images.max() < 1
    images.square().sum().backward()
    assert parameters.values.grad.isfinite().all()


def test_colours_come_back():
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    known = natural()
    again = known.decorrelate(known.correlate(logits))
    assert (again - logits).abs().max() < 1e-5  # the matrix is stored in float32


def test_the_colours_of_photographs_become_independent():
    values = torch.randn(3, 100_000, dtype=torch.float64)
    mixed = natural().colours.double() @ values
    covariance = mixed @ mixed.T / values.shape[1]
    expected = natural().colours.double() @ natural().colours.double().T
    assert (covariance - expected).abs().max() < 0.03 * expected.abs().max()
    assert (natural().colours - natural().colours.T).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 22), (1, 17, 9), (3, 20, 31)])
def test_maco_has_the_fixed_magnitude_in_every_bin(shape):
    parameters = Maco(starts(), shape, natural())
    parameters.values = torch.randn_like(parameters.values) * 7  # wherever an optimizer takes them
    magnitude = torch.fft.rfft2(parameters.buffer().double()).abs()
    error = (magnitude - parameters.magnitude).abs().amax()
    assert error < 50 * EPS * parameters.magnitude.max()


def test_maco_keeps_its_magnitude_while_its_phases_move():
    parameters = Maco(starts(), (3, 16, 16), natural())
    parameters.values.requires_grad_()
    adam = torch.optim.Adam([parameters.values], 0.3)
    before = parameters.images().detach()
    for _ in range(5):
        adam.zero_grad()
        parameters.images()[:, 0, :8].sum().backward()
        adam.step()
    assert (parameters.images() - before).abs().max() > 0.05
    magnitude = torch.fft.rfft2(parameters.buffer().detach().double()).abs()
    assert (magnitude - parameters.magnitude).abs().amax() < 50 * EPS * parameters.magnitude.max()


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 22), (1, 17, 9)])
def test_an_image_becomes_its_spectrum_and_comes_back(shape):
    image = torch.rand(2, *shape) * 0.8 + 0.1
    parameters = Fourier(starts(), shape, natural())
    parameters.invert(image)
    assert (parameters.images() - image).abs().max() < 1e-4


def test_the_magnitudes_are_those_of_an_image_of_any_size():
    known = natural()
    for shape in ((3, 64, 64), (3, 227, 227), (3, 100, 160)):
        magnitude = known.magnitude(shape)
        assert magnitude.shape == (3, shape[1], shape[2] // 2 + 1)
        assert torch.allclose(magnitude, magnitude.flip(-2).roll(1, -2), rtol=1e-5)
        # Photographs: the amplitude falls about with the frequency.
        found = frequencies(*shape[1:])
        low = magnitude[:, (found > 0.03) & (found < 0.06)].mean()
        high = magnitude[:, (found > 0.3) & (found < 0.5)].mean()
        assert 4 < low / high < 60


def test_the_shipped_statistics_are_those_of_the_shipped_photographs():
    measured, shipped = module.measure(module.photographs()), natural()
    assert torch.allclose(measured.colours, shipped.colours, rtol=2e-3, atol=2e-3)
    assert torch.allclose(measured.spectrum.log(), shipped.spectrum.log(), atol=5e-3)
    assert torch.allclose(measured.gray.log(), shipped.gray.log(), atol=5e-3)
