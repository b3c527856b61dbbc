"""Measures the standard deviation of each layer's responses: the ResNet paper's Fig. 7, responses.png and .json.

    python gallery/scripts/responses.py --data CIFAR

CIFAR holds test/<class>/*. The networks are the shipped ones; `--weights RUNS` reads RUNS/<network>/weights.safetensors
and card.json instead, as `deconvviz train` leaves them. Networks without weights are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from publishing import publish

import deconvviz
from deconvviz import Responses
from deconvviz.errors import ModelError, StoreError

NETWORKS = ("plain-20", "plain-56", "resnet-20", "resnet-56")


def main() -> None:
    """Measure the networks that there are, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="CIFAR")
    parser.add_argument("--weights", type=Path, metavar="RUNS")
    options = parser.parse_args()
    found: dict[str, Responses] = {}
    networks: dict[str, Any] = {}
    for name in NETWORKS:
        weights = "bundled" if options.weights is None else options.weights / name / "weights.safetensors"
        try:
            model = deconvviz.zoo.create(name, weights=weights)
        except (ModelError, StoreError) as error:
            print(f"{name} is left out: {error}")
            continue
        found[name] = deconvviz.response_std(model, options.data / "test", progress=False)
        networks[name] = {**numbers(found[name]), **training(model.card)}
        print(name, {k: v for k, v in networks[name].items() if k != "std"})
    publish(
        "responses",
        styled(drawn({f"{n}: {label(networks[n])}": one for n, one in found.items()})),
        model=list(found),
        weights="bundled" if options.weights is None else "trained",
        layer={name: f"{len(one.names)} convolutions 3×3" for name, one in found.items()},
        units="all",
        images=f"CIFAR-10's {next(iter(found.values())).count:,} test images",
        command="python gallery/scripts/responses.py --data CIFAR",
        results={**networks, **compared(found)},
    )


def drawn(results: dict[str, Responses]) -> Any:
    """Draw all into one figure."""
    name, *others = results
    return results[name].plot(name=name, others={other: results[other] for other in others})


def styled(figure: Any) -> Any:
    """Draw as in the paper: a colour per depth, plain nets dashed."""
    for axis in figure.axes:
        for line in axis.lines:
            family, depth = line.get_label().split(":")[0].split("-")
            line.set(
                color=deconvviz.plotting.style.colour(int(depth) > 20), linestyle="--" if family == "plain" else "-"
            )
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def label(facts: dict[str, Any]) -> str:
    return "random weights" if facts["top1"] is None else f"{facts['top1']:.1%} right"


def training(card: Any) -> dict[str, Any]:
    facts = dict(card.training or {})
    return {key: facts.get(key) for key in ("top1", "recipe", "epochs", "command")}


def numbers(result: Responses) -> dict[str, Any]:
    return {"layers": len(result.names), "mean std": float(result.std.mean()), "std": result.std}


def compared(found: dict[str, Responses]) -> dict[str, Any]:
    """Return, for networks of one depth, in how many layers the ResNet's responses are the smaller ones."""
    smaller = {}
    for depth in (20, 56):
        if not {f"plain-{depth}", f"resnet-{depth}"} <= found.keys():
            continue
        plain, residual = found[f"plain-{depth}"].std, found[f"resnet-{depth}"].std
        smaller[str(depth)] = {"layers": len(plain), "resnet smaller": int((residual < plain).sum())}
    return {"same depth": smaller}


if __name__ == "__main__":
    main()
