"""What each claim of the page comes to: the numbers of its figures in words, and a verdict.

Each claim is one function. The rule of a verdict stands in the function, so that other numbers may give another verdict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parent.parent
HOLDS, PARTLY, NOT = "holds", "partly", "does not hold"
LAYERS = ("1", "2", "3", "4", "5")
TOP = "classifier.4"  # the features before the last linear layer: the paper's layer 7


class Missing(Exception):
    """A figure that a claim needs has not been drawn yet."""


def read(name: str) -> dict[str, Any]:
    """Return the conditions of a figure, with its `results`."""
    path = GALLERY / "records" / f"{name}.json"
    if not path.exists():
        raise Missing(name)
    return json.loads(path.read_text(encoding="utf-8"))


def results(name: str) -> dict[str, Any]:
    return read(name)["results"]


def verdict(*parts: bool) -> str:
    """Return how many parts of a claim came out as it says: all, some or none."""
    return HOLDS if all(parts) else PARTLY if any(parts) else NOT


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


# ---- ZFNet -----------------------------------------------------------------------------------------------------------


def hierarchy() -> tuple[str, str]:
    fields = [results(f"zfnet64-layer-{n}")["receptive field"][0] for n in LAYERS]
    photos = [results(f"zfnet64-layer-{n}")["photos per unit"] for n in LAYERS]
    text = (
        f"Receptive fields of {', '.join(map(str, fields))} pixels of 64. By eye: colours and edges in layer 1, corners "
        "and circles in 2, stripes and textures in 3; in 4 and 5 a cup's rim, a badge, an eye, a star. The nine "
        f"strongest windows of a unit come from {', '.join(f'{p:.1f}' for p in photos)} of 12 photos: upper units "
        "join more different things. Twelve photos cannot show classes."
    )
    # Kinds are judged by eye; what a number can contradict is that the variety grows.
    return text, PARTLY if photos == sorted(photos) else NOT


def settle_in_order() -> tuple[str, str]:
    texts, parts = [], []
    for network in ("zfnet64", "alexnet64"):
        found = results(f"recording-{network}-convergence")
        epochs, half = found["epochs"], found["half of the units settled at"]["0.8"]
        order = [half[n] or epochs[-1] for n in LAYERS]
        shown = ", ".join(str(half[n]) if half[n] else f"after {epochs[-2]}" for n in LAYERS)
        texts.append(f"{network}: half of the units settled at epoch {shown} for layers 1–5")
        parts.append(order == sorted(order) and order[0] < order[-1])
    return f"{'; '.join(texts)} (of {epochs[-1]}).", verdict(*parts)


def settle_soon() -> tuple[str, str]:
    texts, parts = [], []
    for network in ("zfnet64", "alexnet64"):
        found = results(f"recording-{network}-convergence")
        epochs, first = found["epochs"], found["half of the units settled at"]["0.8"]["1"]
        values = [found["convergence"][n][epochs.index(5)] for n in LAYERS]
        texts.append(f"{network} {', '.join(f'{v:.2f}' for v in values)}, layer 1 settled at epoch {first}")
        parts += [values[0] >= 0.8, values[-1] < 0.8]
    text = (
        f"Cosine of the projections at epoch 5 with the last epoch's, layers 1–5: {'; '.join(texts)} of {epochs[-1]}. Our "
        "learning rate rises first and falls to the end, the paper's starts at its highest."
    )
    return text, verdict(*parts)


SETS = {"samples": "sample photos", "tiny-imagenet": "Tiny-ImageNet images"}
KINDS = {"vertical": "translation", "scale": "scale", "rotation": "rotation"}


def sets() -> list[tuple[dict[str, Any], str]]:
    """Return the numbers of both sets of images, and what to call each."""
    found = [(results(f"invariance-{name}"), images) for name, images in SETS.items()]
    return [(one, f"{one['images']} {images}") for one, images in found]


def small_changes() -> tuple[str, str]:
    texts, parts = [], []
    for found, images in sets():
        steps = {kind: found[kind]["relative distance at the smallest change"] for kind in KINDS}
        cells = [f"{KINDS[kind]} {step['1']:.2f} against {step[TOP]:.2f}" for kind, step in steps.items()]
        texts.append(f"{images}: {', '.join(cells)}")
        parts += [step["1"] > step[TOP] for step in steps.values()]
        texts[-1] += f" (half a pixel, a blur: {found['half a pixel']['relative distance'][TOP]:.2f} in the last)"
    first = "Relative distance at the smallest change (1 pixel, factor 1.05, 10°), layer 1 against the last features"
    return f"{first}. {'; '.join(texts)}.", verdict(*parts)


def nearly_linear() -> tuple[str, str]:
    texts, parts = [], []
    for found, images in sets():
        fits = {kind: found[kind]["R² of a line"] for kind in ("vertical", "scale")}
        texts.append(f"{images}: " + ", ".join(f"{KINDS[k]} {v[TOP]:.2f} ({v['1']:.2f})" for k, v in fits.items()))
        parts += [v[TOP] >= 0.9 for v in fits.values()]
    text = "R² of a line through the distance in the last features (in layer 1)"
    return f"{text}. {'; '.join(texts)}. Quasi-linear would be at least 0.9.", verdict(*parts)


LEFT = "share of it left, changes up to half of the range"


def stable_output() -> tuple[str, str]:
    texts, parts = [], []
    for found, images in sets():
        kept = {kind: found[kind][LEFT] for kind in ("vertical", "scale")}
        texts.append(f"{images}: " + ", ".join(f"{KINDS[kind]} {percent(v)}" for kind, v in kept.items()))
        parts += [v >= 0.8 for v in kept.values()]
        left = found["half a pixel"]["left"]
        texts[-1] += f" (after the blur of half a pixel's shift alone {percent(left)})"
    text = "Of the target's probability is left, mean over shifts up to 8 of 64 pixels and enlargements up to 1.4"
    return f"{text}: {'; '.join(texts)}. Stable would be at least 80 %; enlarging 64 pixels blurs them.", verdict(
        *parts
    )


def rotation() -> tuple[str, str]:
    found = results("invariance-tiny-imagenet")
    left = {kind: found[kind]["share of it left, whole range"] for kind in KINDS}
    rounds = found["round objects"]
    text = (
        f"Of the true label's probability is left, mean over all angles: {percent(left['rotation'])} (translation "
        f"{percent(left['vertical'])}, scale {percent(left['scale'])}); with round objects "
        f"({', '.join(rounds['classes'])}; {rounds['images']} images) {percent(rounds['share of it left, whole range'])}."
    )
    others = min(left["vertical"], left["scale"])
    return text, verdict(left["rotation"] < others, rounds["share of it left, whole range"] > 1.25 * left["rotation"])


def filters_of(key: str) -> tuple[float, float]:
    found = results("filters")
    return found["alexnet64"][key], found["zfnet64"][key]


def dead_filters() -> tuple[str, str]:
    (alex, zf), count = filters_of("dead"), filters_of("filters")[0]
    text = f"Dead: {alex * count:.0f} of {count:.0f} with 11×11/4, {zf * count:.0f} of {count:.0f} with 7×7/2."
    return text + (" With this training there are none to get rid of." if alex == 0 else ""), verdict(zf < alex)


def frequencies() -> tuple[str, str]:
    extreme = [
        low + high for low, high in zip(filters_of("low frequencies"), filters_of("high frequencies"), strict=True)
    ]
    covered = filters_of("coverage of the middle")
    text = (
        f"Filters at extreme frequencies: {percent(extreme[0])} with 11×11/4, {percent(extreme[1])} with 7×7/2; of "
        f"the middle ones {percent(covered[0])} and {percent(covered[1])} are covered."
    )
    return text, verdict(extreme[1] < extreme[0], covered[1] > covered[0])


def aliasing() -> tuple[str, str]:
    folded, layer2 = filters_of("folded by the stride"), filters_of("aliasing in layer 2")
    text = (
        f"Of the first layer's response the stride folds {percent(folded[0])} with 11×11/4 and {percent(folded[1])} "
        f"with 7×7/2; of the energy of layer 2's projections {percent(layer2[0])} and {percent(layer2[1])} lie at "
        "such frequencies."
    )
    return text, verdict(folded[1] < folded[0], layer2[1] < layer2[0])


def occlusion_meaning() -> tuple[str, str]:
    path = GALLERY.parent / "benchmarks" / "occlusion_meaning.md"
    if not path.exists():
        raise Missing("occlusion_meaning.md")
    rows = [
        line.strip("| ").split(" | ") for line in path.read_text(encoding="utf-8").splitlines() if "| own |" in line
    ]
    named = {(row[0], row[1], row[2]): row for row in rows}
    large = named["efficientnet-lite0", "pretrained", "top-1 right"]
    small = named["zfnet64", "bundled", "all"]
    texts = [
        f"{what}: {row[5]} inside the object's box, {row[6]} outside, inside larger on {row[8]} photos (p {row[9]})"
        for what, row in (("efficientnet-lite0, 224 px, photos it gets right", large), ("zfnet64, all photos", small))
    ]
    text = f"Mean drop of the probability. {'; '.join(texts)}."
    return text, verdict(*(float(row[5]) > float(row[6]) and float(row[9]) < 0.05 for row in (large, small)))


def correspondence() -> tuple[str, str]:
    texts, parts, spread = [], [], []
    for name, found in results("correspondence").items():
        cells = []
        for part, values in found["trained"]["5"].items():
            cells.append(f"{part} {values['part']:.3f} ({values['random']:.3f})")
            # A third lower in the paper; a tenth would be a difference that the pairs' spread allows to see.
            parts.append(values["part"] < 0.9 * values["random"])
            spread.append(abs(values["part"] - values["random"]) < values["part, std"])
        texts.append(f"{name}, {found['images']} images: {', '.join(cells)}")
    text = "Δ in layer 5 with the part masked (with boxes of its size at random places of the image)"
    end = " No difference exceeds the spread over pairs." if all(spread) else ""
    return f"{text}. {'; '.join(texts)}.{end}", verdict(*parts)


def probe() -> tuple[str, str]:
    found = results("probe")
    trained, random = (found[name]["accuracy"] for name in ("trained", "random weights"))
    shown = [f"{name} {percent(trained[name])} ({percent(random[name])})" for name in trained]
    best = max(trained, key=lambda name: trained[name])
    text = (
        f"CIFAR-10, {found['images']:,} images, trained (random weights): {', '.join(shown).replace(TOP, 'last')}. The "
        f"learnt features are better in every layer, best in {'the last one' if best == TOP else f'layer {best}'}."
    )
    values = list(trained.values())
    return text, verdict(all(trained[name] > random[name] for name in trained), values == sorted(values))


# ---- AlexNet and ResNet ----------------------------------------------------------------------------------------------


def nearest() -> tuple[str, str]:
    found = results("nearest-tiny-imagenet")
    right = {k: found[k]["same class"] for k in ("trained", "random weights", "pixels")}
    share = {k: percent(v, 1) for k, v in right.items()}
    trained, pixels = found["trained"]["pixel distance"], found["pixels"]["pixel distance"]
    text = (
        f"Of {found['neighbours']} neighbours {share['trained']} show the query's class (random weights "
        f"{share['random weights']}, by pixels {share['pixels']}, chance {percent(found['chance'], 1)}); in pixels they "
        f"are as far as {trained:.2f} of any image's distance, the nearest by pixels {pixels:.2f}."
    )
    return text, verdict(right["trained"] > 2 * max(right["random weights"], right["pixels"]), trained > 0.75)


def networks() -> dict[str, Any]:
    return {name: value for name, value in results("responses").items() if name != "same depth"}


def accuracies(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {percent(facts['top1'], 1)}" for name, facts in found.items())


def plain_against_resnet() -> tuple[str, str]:
    found, texts, parts = networks(), [], []
    for depth, counts in results("responses")["same depth"].items():
        plain, residual = found[f"plain-{depth}"]["mean std"], found[f"resnet-{depth}"]["mean std"]
        texts.append(
            f"{depth} layers: mean {residual:.2f} against {plain:.2f}, the ResNet's is the smaller one in "
            f"{counts['resnet smaller']} of {counts['layers']} layers"
        )
        parts.append(counts["resnet smaller"] > counts["layers"] / 2 and residual < plain)
    if not parts:
        raise Missing("plain and residual network of one depth")
    return f"{'; '.join(texts)}. Right on the test images: {accuracies(found)}.", verdict(*parts)


def deeper() -> tuple[str, str]:
    found = {name: facts for name, facts in networks().items() if name.startswith("resnet")}
    if len(found) < 2:
        raise Missing("second ResNet")
    means = [facts["mean std"] for facts in sorted(found.values(), key=lambda facts: facts["layers"])]
    text = "; ".join(
        f"{name}: mean {facts['mean std']:.2f} over {facts['layers']} layers" for name, facts in found.items()
    )
    return f"{text}.", verdict(means == sorted(means, reverse=True))


# ---- what needs no training of its own -------------------------------------------------------------------------------


def zfnet_above_alexnet() -> tuple[str, str]:
    top1 = results("gradients")["top1"]
    text = ", ".join(f"{name} {percent(value, 1)}" for name, value in top1.items())
    return f"Top-1 on Tiny-ImageNet's validation images, trained alike: {text}.", verdict(
        top1["zfnet64"] > top1["alexnet64"]
    )


def towers() -> tuple[str, str]:
    first, second = results("gradients")["halves"]
    text = (
        "Share of the filters' energy that is colour, the two halves of alexnet64's first filters: "
        f"{first['mean']:.2f} ± {first['std']:.2f} and {second['mean']:.2f} ± {second['std']:.2f} (deviation over filters)."
    )
    # Two kinds of filters would lie further apart than the filters of one half among themselves.
    return text, verdict(abs(first["mean"] - second["mean"]) > max(first["std"], second["std"]))


def reductions() -> tuple[str, str]:
    found = results("gradients")["reductions"]
    text = "; ".join(
        f"before the {name}: {percent(one['counted'], 1)}, its own counted, {percent(one['as quoted'], 1)} without"
        for name, one in found.items()
    )
    quoted = {"3×3": 0.5, "5×5": 0.917}
    return f"Weights saved {text}.", verdict(*(abs(found[n]["counted"] - q) < 0.005 for n, q in quoted.items()))


def heads() -> tuple[str, str]:
    found = results("gradients")
    with_heads, without = (found["gradients"][name] for name in ("with both heads", "without them"))
    lifted = sum(a > b for a, b in zip(with_heads, without, strict=True))
    text = (
        f"GoogLeNet with random weights: at the first convolution the loss's gradient is {found['first layer']:.2f} times "
        f"as large with both heads (weight 0.3) as without; it is larger in {lifted} of {len(with_heads)} convolutions."
    )
    return text, verdict(found["first layer"] > 1)


def training_error() -> tuple[str, str]:
    found = results("gradients")["training error"]
    text = ", ".join(f"{name} {percent(value, 1)}" for name, value in found.items())
    return (
        f"Of 2,000 of CIFAR-10's training images are wrong, after 15 epochs: {text}.",
        verdict(found["plain-56"] > found["plain-20"]),
    )
