"""Runs the test suite, without the notebooks, as other processors, orders and versions would; writes the table.

    python benchmarks/compatibility.py [SETTING ...] [--workers 2] [--work FOLDER]

A setting is one of the names below; none: all of them. The rows of settings that do not run stay as they are in
compatibility.md. `lowest` and `newest` make a virtual environment in FOLDER and install the package with its tests
there: the lowest versions that pyproject.toml allows, or what pip takes by itself.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import tomllib

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".md")
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "this one": ({}, "one thread in each process"),
    "of 2008": (
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        "no AVX in torch, oneDNN and MKL",
    ),
    "of 2013": (
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
        "AVX2; two threads; the files in another order",
    ),
    "of 2017": (
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        "AVX-512, where the chip has it, without its later parts",
    ),
    "lowest": ({}, "the lowest versions that pyproject.toml allows, in an environment of their own"),
    "newest": ({}, "the newest versions that pip finds, in an environment of their own"),
}
SHUFFLED = {"of 2013"}
# What the lowest versions bring along names no upper bound: later ones refuse the lowest numpy.
OF_THEIR_TIME = ["pyarrow==17.0.0"]
VERSIONS = "import sys, torch, torchvision, numpy; print(sys.version.split()[0], torch.__version__, torchvision.__version__, numpy.__version__)"  # noqa: E501
HEADER = """# The suite on other machines

`{command}`, on {chip}. Each row is one run of `pytest tests` with one or two workers and the variables
beside it, on one machine that pretends to be others: the variables bound which instructions the libraries use, and with
them the order in which sums are added up. A test fails there if it depends on one processor's rounding.

| processor or versions | what is different | variables | Python, torch, torchvision, numpy | result | date |
|---|---|---|---|---|---|
"""


def lowest() -> Iterator[str]:
    """Yield each requirement of pyproject.toml at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        yield requirement.replace(">=", "==")


def environment(name: str, work: Path) -> str:
    """Make a virtual environment with the lowest or the newest versions, unless it is there; return its Python."""
    folder = work / name
    python = str(folder / "bin" / "python")
    if Path(python).exists():  # of an earlier run
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = [*lowest(), *OF_THEIR_TIME] if name == "lowest" else []
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted, "-e", f"{ROOT}[test]"], check=True)
    return python


def run(name: str, work: Path, workers: int) -> tuple[str, bool]:
    """Run the suite under one setting: its row, and whether it passed."""
    variables, change = SETTINGS[name]
    python = environment(name, work) if name in ("lowest", "newest") else sys.executable
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    if name in SHUFFLED:
        random.Random(1).shuffle(files)
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    clean["PYTHONPATH"] = str(ROOT)
    workers = max(1, workers // int(variables.get("OMP_NUM_THREADS", 1)))  # two threads on two cores: one process
    command = [python, "-m", "pytest", *files, "-n", str(workers), "-q", "-p", "no:cacheprovider"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True)
    (work / f"{name.replace(' ', '-')}.log").write_text(done.stdout + done.stderr)
    versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()
    counts = re.findall(r"\d+ (?:failed|passed|skipped|errors?)", done.stdout.rsplit("\n", 2)[-2])
    told = ", ".join(counts) or "no result"
    spelled = " ".join(f"`{key}={value}`" for key, value in variables.items()) or "–"
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    told = f"{told} in {minutes}:{seconds:02}"
    cells = [name, change, spelled, ", ".join(versions.split()), told, str(date.today())]
    return f"| {' | '.join(cells)} |", done.returncode == 0


def main() -> int:
    """Run the settings that were asked for and write their rows; exit with 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS], metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for logs and environments; a temporary one unless given")
    options = parser.parse_args()
    rows = dict(re.findall(r"^(?=\| ([^|]+) \|)(.*)$", TABLE.read_text(), re.MULTILINE)) if TABLE.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.settings or SETTINGS:
            rows[name], passed = run(name, work, options.workers)
            failed |= not passed
            print(rows[name], flush=True)
            header = HEADER.format(command="python benchmarks/compatibility.py", chip=chip())
            TABLE.write_text(header + "".join(f"{rows[n]}\n" for n in SETTINGS if n in rows))
    return failed


def chip() -> str:
    """Return the processor's name and number of cores."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0]}, {len(names)} cores"


if __name__ == "__main__":
    sys.exit(main())
