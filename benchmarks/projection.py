"""Milliseconds per projection: `deconvviz.project` against captum's `NeuronDeconvolution`, AlexNet at 224 px.

Both get the same list of (image, unit, position); captum gets it in batches that mix units and images, at the batch
size that is best for it, as it is and with model and images in channels_last. The results are compared, too, and the
arithmetic of both is counted: its ratio is what kernels of one speed would reach.

    python benchmarks/projection.py [--device cuda] [--images 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import functools

import torch
import torchvision
from captum.attr import NeuronDeconvolution
from conditions import alternate, conditions, load, report, seconds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import deconvviz
from deconvviz.images import samples
from deconvviz.images.preprocess import preprocess_for


def captum_batch(model, module, images, unit, place, batch):  # the first `batch` projections of the list
    select = torch.arange(batch, device=images.device)

    def neurons(response):
        return response[select, unit[:batch], place[:batch, 0], place[:batch, 1]]

    return NeuronDeconvolution(model, module).attribute(images[:batch].clone().requires_grad_(), neurons)


def best_batch(model, items, sizes, device):
    """Return the batch size with the least time per projection, and the work of one such batch."""
    works = {size: functools.partial(captum_batch, *(*model, *items, size)) for size in sizes}
    per_item: dict[int, float] = {}
    for size, work in works.items():
        work()
        per_item[size] = min(seconds(work, device) for _ in range(3)) / size
    best = min(per_item, key=per_item.__getitem__)
    return best, works[best]


class Arithmetic(TorchDispatchMode):
    """Counts the multiply-adds of convolutions and matrix products."""

    total = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result) / 2
        return result


def operations(work):
    """Return the multiply-adds of one call."""
    with Arithmetic() as counter:
        work()
    return counter.total


def compare(model, plain, layer, scan, images, device, rounds):
    best = scan[layer]
    ids, place = best.image_ids.flatten().to(device), best.positions.flatten(0, 1).to(device)
    unit = torch.arange(len(best.values), device=device).repeat_interleave(best.values.shape[1])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).to(device)
    pixels, run = images.to(device)[ids[order][:128]], {}

    def ours():
        run["ours"] = deconvviz.project(model, images, layer=layer, units="all", top=scan, progress=False)

    works, batches = {"ours": ours}, {}
    for name, memory in (("as it is", torch.contiguous_format), ("channels_last", torch.channels_last)):
        peer = copy.deepcopy(plain).to(memory_format=memory)
        parts = peer, peer.get_submodule({5: "features.11", 2: "features.4"}[layer])
        items = pixels.contiguous(memory_format=memory), unit[order][:128], place[order][:128]
        batches[name], captum = best_batch(parts, items, (4, 8, 16, 32, 64, 128), device)
        works[name] = functools.partial(lambda key, work: run.update({key: work()}), name, captum)
    spent = {"ours": operations(ours) / len(ids), "captum": operations(works["as it is"]) / batches["as it is"]}
    times = alternate(works, rounds, device)
    ms = 1e3 * times["ours"] / len(ids)
    cells = [f"{layer}", f"{len(ids)}", f"{ms:.2f}"]
    for name, batch in batches.items():
        peer_ms = 1e3 * times[name] / batch
        errors = differences(run["ours"], run[name], order[:batch].cpu())
        cells += [
            f"{peer_ms:.2f} (batch {batch})",
            f"**{peer_ms / ms:.1f}×**",
            f"{errors.median():.0e}, {errors.max():.0e}",
        ]
    millions = [f"{1e-6 * spent[name]:.1f}" for name in ("ours", "captum")]
    cells += [*millions, f"{spent['captum'] / spent['ours']:.1f}×"]
    return f"| {' | '.join(cells)} |"


def differences(result, theirs, order):
    """Relative difference on each box; captum's seed is 1, ours the activation."""
    boxes, amount = result.boxes.flatten(0, 1)[order], result.activations.flatten()[order]
    ours, errors = result.projections.flatten(0, 1)[order], []
    for picture, box, scale, full in zip(ours, boxes.tolist(), amount.tolist(), theirs.detach().cpu(), strict=True):
        top, left, bottom, right = box
        expected = full[:, top:bottom, left:right] * scale
        rows = (0, picture.shape[1] - (bottom - top))[top == 0 and bottom < full.shape[1]]
        cols = (0, picture.shape[2] - (right - left))[left == 0 and right < full.shape[2]]
        found = picture[:, rows : rows + bottom - top, cols : cols + right - left]
        if scale:
            errors.append((found - expected).norm() / expected.norm())
    return torch.stack(errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    text = conditions(options.threads, options.device)
    torch.manual_seed(0)
    model = torchvision.models.alexnet(weights=None).eval().to(options.device)
    plain = copy.deepcopy(model)
    for module in plain.modules():  # captum's hooks need results that nothing overwrites
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    photos = samples(224, options.images, preprocess=preprocess_for(model))
    images = photos.take(list(range(min(options.images, len(photos)))))
    scan = deconvviz.top(model, images, layers=[2, 5], progress=False)
    rows = [compare(model, plain, n, scan, images, options.device, options.rounds) for n in (5, 2)]
    details = (
        f"{text}. Top 9 of all units over {len(images)} sample photos, float32; medians of {options.rounds} rounds "
        f"in turn; {load()}. Ours includes the recorded forward passes and the patches. A large "
        "difference is a tie: in flat regions of photos two inputs of a pool agree to the last bits, and rounding picks."
    )
    columns = ["layer", "projections", "deconvviz, ms"]
    for peer in ("captum, ms", "captum in channels_last, ms"):
        columns += [peer, "ratio", "difference: median, largest"]
    columns += ["million multiply-adds, deconvviz", "captum", "ratio"]
    heading = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    report(f"projection{suffix}", "Projections: AlexNet, top 9 of all units", details, heading + rows)


if __name__ == "__main__":
    main()
