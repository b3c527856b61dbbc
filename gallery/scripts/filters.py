"""Compares the first layers of AlexNet and ZFNet, 11×11/4 and 7×7/2: filters.png and .json.

    python gallery/scripts/filters.py

Fig. 6 of the ZFNet paper, on alexnet64 and zfnet64, which had the same training. The aliasing score projects the nine
strongest activations of every unit of layer 2 over the sample photos (gallery/SOURCES.md).
"""

from __future__ import annotations

from publishing import publish

import deconvviz

NETWORKS = ("alexnet64", "zfnet64")


def main() -> None:
    models = {name: deconvviz.zoo.create(name, weights="bundled") for name in NETWORKS}
    found = deconvviz.compare_filters(models, aliasing=True, units="all", progress=False)
    print(found.table())
    publish(
        "filters",
        found.plot(),
        model=list(NETWORKS),
        weights="bundled",
        layer=[one.name for one in found.filters],
        units="all; aliasing: all units of layer 2",
        images="sample photos",
        command="python gallery/scripts/filters.py",
        results={**found.summary(), "band": list(found.filters[0].band)},
    )


if __name__ == "__main__":
    main()
