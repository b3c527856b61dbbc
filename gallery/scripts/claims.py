"""Writes the table "what the papers claim, what we measured" into gallery/README.md, every figure from a record.

python gallery/scripts/claims.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import measures
from measures import Missing, read

GALLERY = Path(__file__).parent.parent
BEGIN, END = "<!-- claims: begin, written by claims.py -->", "<!-- claims: end -->"
BENCHMARK = "python benchmarks/occlusion_meaning.py --photos PHOTOS --keep SCANS --random 25"


class Claim(NamedTuple):
    """One row of the table."""

    source: str
    statement: str
    measure: Callable[[], tuple[str, str]]
    figures: tuple[str, ...]  # the first one's JSON names the command


CLAIMS = (
    Claim(
        "ZFNet, Fig. 2",
        "Features form a hierarchy: edges and corners, textures, class-specific parts, whole objects",
        measures.hierarchy,
        ("zfnet64-layer-5", "zfnet64-layer-1"),
    ),
    Claim(
        "ZFNet, Fig. 4",
        "Lower layers converge before upper ones",
        measures.settle_in_order,
        ("recording-zfnet64-convergence", "recording-alexnet64-convergence"),
    ),
    Claim(
        "ZFNet, Fig. 4",
        "The lower layers converge within a few epochs, the upper ones after a considerable number (40–50)",
        measures.settle_soon,
        ("recording-zfnet64-convergence", "recording-alexnet64-convergence"),
    ),
    Claim(
        "ZFNet, Fig. 5",
        "Small transformations change the first layer dramatically, the top feature layer less",
        measures.small_changes,
        ("invariance-tiny-imagenet", "invariance-samples"),
    ),
    Claim(
        "ZFNet, Fig. 5",
        "The top layer's change is quasi-linear for translation and scaling",
        measures.nearly_linear,
        ("invariance-tiny-imagenet", "invariance-samples"),
    ),
    Claim(
        "ZFNet, Fig. 5",
        "The output is stable to translations and scalings",
        measures.stable_output,
        ("invariance-tiny-imagenet", "invariance-samples"),
    ),
    Claim(
        "ZFNet, Fig. 5",
        "The output is not invariant to rotation, except for objects with rotational symmetry",
        measures.rotation,
        ("invariance-tiny-imagenet",),
    ),
    Claim("ZFNet, Fig. 6", "Fewer dead filters with 7×7/2 than with 11×11/4", measures.dead_filters, ("filters",)),
    Claim(
        "ZFNet, Fig. 6",
        "Fewer extremely high and low frequencies with 7×7/2, the middle ones covered",
        measures.frequencies,
        ("filters",),
    ),
    Claim("ZFNet, Fig. 6", "Less aliasing in layer 2 with stride 2 than with 4", measures.aliasing, ("filters",)),
    Claim(
        "ZFNet, Fig. 7",
        "The probability drops when the object is covered: the model localizes it, not its surroundings",
        measures.occlusion_meaning,
        ("occlusion-chelsea",),
    ),
    Claim(
        "ZFNet, Table 1",
        "Masked eyes and noses change layer 5 alike in different images: Δ .067–.079, random parts .107",
        measures.correspondence,
        ("correspondence",),
    ),
    Claim(
        "ZFNet, 5.2, Table 7",
        "Learnt features serve another data set, and the deeper the layer the better",
        measures.probe,
        ("probe",),
    ),
    Claim(
        "AlexNet, Fig. 4",
        "Images near in the last hidden layer are alike in meaning, though not near in pixels",
        measures.nearest,
        ("nearest-tiny-imagenet", "nearest-samples"),
    ),
    Claim(
        "ResNet, Fig. 7",
        "ResNets' responses are generally smaller than plain nets'",
        measures.plain_against_resnet,
        ("responses",),
    ),
    Claim(
        "ZFNet, 4.1, Table 2",
        "The network with 7×7/2 is better than AlexNet: 38.4 against 40.7 % top-1 error",
        measures.zfnet_above_alexnet,
        ("gradients",),
    ),
    Claim(
        "AlexNet, Fig. 3",
        "One of the two towers learns colours, the other none",
        measures.towers,
        ("gradients",),
    ),
    Claim(
        "GoogLeNet, 3(a)",
        "A 1×1 convolution before a 3×3 saves half of its weights, before a 5×5 91.7 % (often quoted)",
        measures.reductions,
        ("gradients",),
    ),
    Claim(
        "GoogLeNet, 5",
        "Auxiliary classifiers increase the gradient that gets propagated back",
        measures.heads,
        ("gradients",),
    ),
    Claim(
        "ResNet, Fig. 1",
        "The 56-layer plain network has the higher training error than the 20-layer one",
        measures.training_error,
        ("gradients",),
    ),
    Claim("ResNet, Fig. 7", "The deeper ResNet has the smaller responses", measures.deeper, ("responses",)),
)


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| paper | what it claims | what we measured | verdict | command |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        try:
            measured, word = claim.measure()
        except Missing as missing:
            measured, word = f"Not measured yet: there is no {missing}.", "–"
        command = BENCHMARK if claim.measure is measures.occlusion_meaning else command_of(claim.figures[0])
        lines.append(f"| {claim.source} | {claim.statement} | {measured} | **{word}** | `{command}` |")
    return "\n".join(lines)


def command_of(figure: str) -> str:
    try:
        return read(figure)["command"]
    except Missing:
        return f"python gallery/scripts/{figure.split('-')[0]}.py"


def written(page: str) -> str:
    """Return the page with the table between its marks renewed."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"gallery/README.md has no {BEGIN} … {END}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    page = GALLERY / "README.md"
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    print("wrote the table of gallery/README.md")
