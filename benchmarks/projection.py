"""Milliseconds per projection: `deconvviz.project` against captum's `NeuronDeconvolution`, AlexNet at 224 px.

Both get the same list of (image, unit, position); captum gets it in batches that mix units and images, at the batch
size that is best for it. The two results are compared, too.

    python benchmarks/projection.py [--device cuda] [--images 64] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy

import torch
import torchvision
from captum.attr import NeuronDeconvolution
from conditions import alternate, conditions, load, report, seconds

import deconvviz
from deconvviz.samples import samples


def captum_batch(model, module, images, unit, place, batch):  # the first `batch` projections of the list
    select = torch.arange(batch, device=images.device)

    def neurons(response):
        return response[select, unit[:batch], place[:batch, 0], place[:batch, 1]]

    return NeuronDeconvolution(model, module).attribute(images[:batch].clone().requires_grad_(), neurons)


def best_batch(model, module, items, sizes, device):
    images, unit, place = items
    per_item = {}
    for size in sizes:
        captum_batch(model, module, images, unit, place, size)
        per_item[size] = seconds(lambda n=size: captum_batch(model, module, images, unit, place, n), device) / size
    return min(per_item, key=per_item.get)


def compare(model, plain, layer, scan, images, device, rounds):
    module = plain.features[{5: 11, 2: 4}[layer]]
    best = scan[layer]
    ids, place = best.image_ids.flatten().to(device), best.positions.flatten(0, 1).to(device)
    unit = torch.arange(len(best.values), device=device).repeat_interleave(best.values.shape[1])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).to(device)
    items = images.to(device)[ids[order][:128]], unit[order][:128], place[order][:128]
    batch = best_batch(plain, module, items, (4, 8, 16, 32, 64, 128), device)
    run = {}

    def ours():
        run["ours"] = deconvviz.project(model, images, layer=layer, units="all", top=scan, progress=False)

    def theirs():
        run["theirs"] = captum_batch(plain, module, *items, batch)

    times = alternate({"ours": ours, "captum": theirs}, rounds, device)
    ours_ms, captum_ms = 1e3 * times["ours"] / len(ids), 1e3 * times["captum"] / batch
    error = difference(run["ours"], run["theirs"], order[:batch].cpu())
    return (
        f"| {layer} | {len(ids)} | {ours_ms:.2f} | {captum_ms:.2f} (batch {batch}) | "
        f"**{captum_ms / ours_ms:.1f}×** | {error:.1e} |"
    )


def difference(result, theirs, order):
    """Largest relative difference on the boxes; captum's seed is 1, ours the activation."""
    boxes, amount = result.boxes.flatten(0, 1)[order], result.activations.flatten()[order]
    ours, worst = result.projections.flatten(0, 1)[order], 0.0
    for picture, box, scale, full in zip(ours, boxes.tolist(), amount.tolist(), theirs.detach().cpu(), strict=True):
        top, left, bottom, right = box
        expected = full[:, top:bottom, left:right] * scale
        rows = (0, picture.shape[1] - (bottom - top))[top == 0 and bottom < full.shape[1]]
        cols = (0, picture.shape[2] - (right - left))[left == 0 and right < full.shape[2]]
        found = picture[:, rows : rows + bottom - top, cols : cols + right - left]
        if scale:
            worst = max(worst, float((found - expected).norm() / expected.norm()))
    return worst


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
    photos = samples(224, options.images, preprocess=deconvviz.preprocess.preprocess_for(model))
    images = photos.take(list(range(min(options.images, len(photos)))))
    scan = deconvviz.top(model, images, layers=[2, 5], progress=False)
    rows = [compare(model, plain, n, scan, images, options.device, options.rounds) for n in (5, 2)]
    details = (
        f"{text}. Top 9 of all units over {len(images)} sample photos, float32; medians of {options.rounds} rounds "
        f"in turn; {load()}. Ours includes the recorded forward passes and the patches."
    )
    heading = ["| layer | projections | deconvviz, ms | captum, ms | ratio | difference |", "|---|---|---|---|---|---|"]
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    report(f"projection{suffix}", "Projections: AlexNet, top 9 of all units", details, heading + rows)


if __name__ == "__main__":
    main()
