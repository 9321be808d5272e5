"""`luthier metrics`, `plot`."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli import exits, messages
from luthier.cli.command import connection_arguments, output_arguments
from luthier.cli.values import positive

if TYPE_CHECKING:
    from luthier.v1 import job_service_pb2

_LOSSES = ("loss", "eval_loss")


def arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """`metrics NAME [SERIES…]`, `plot NAME [-o FILE] [--text]`."""
    parser.add_argument("name", metavar="NAME", help="job")
    parser.add_argument("--points", type=positive, default=0, metavar="N", help="points per series at most (default: 500)")
    if verb == "metrics":
        parser.add_argument("series", nargs="*", metavar="SERIES", help="series to show point by point; without one all are summed up")
        output_arguments(parser)
    else:
        parser.add_argument("series", nargs="*", metavar="SERIES", help="series to draw (default: loss and eval_loss)")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="image to write (default: NAME.png)")
        parser.add_argument("--text", action="store_true", help="draw in the terminal, without matplotlib")
        parser.add_argument("-q", "--quiet", action="store_true", help="nothing to stderr but errors")
    connection_arguments(parser)


def run(verb: str, arguments: argparse.Namespace) -> int:
    """One of the two verbs."""
    from luthier.cli.session import connect

    with connect(arguments) as client:
        job = client.jobs.get(arguments.name)
        wanted = tuple(arguments.series) or (_LOSSES if verb == "plot" else ())
        found = client.jobs.metrics(job.name, wanted, max_points=arguments.points)
        if set(arguments.series) - set(found):
            _refuse_unknown(arguments.series, found, client.jobs.metrics(job.name, max_points=1))
    if not any(series.points for series in found.values()):
        messages.hint(f"job {job.name} has no samples yet; it is {job.state}", quiet=arguments.quiet)
        return exits.OK
    if verb == "metrics":
        return _metrics(arguments, found)
    if arguments.text:
        return _text_plot(found)
    return _plot(job.name, arguments.output or Path(f"{job.name}.png"), found)


def _refuse_unknown(wanted: Sequence[str], found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    from luthier.errors import NotFound
    from luthier.spec.violations import nearest

    missing = next(name for name in wanted if name not in found)
    raise NotFound(f"there is no series {missing!r}", fix=nearest(missing, known) if known else "the job has no samples yet")


def _metrics(arguments: argparse.Namespace, found: Mapping[str, job_service_pb2.Series]) -> int:
    from luthier.cli import output

    if arguments.output in ("json", "yaml"):
        output.print_messages(arguments.output, [output.plain(series) for series in found.values()])
    elif arguments.output == "name" or arguments.quiet:
        for name in found:
            output.write(f"{name}\n")
    elif arguments.series:
        rows = [
            [name, str(p.step), output.number(p.value), output.number(p.min), output.number(p.max)]
            for name, series in found.items()
            for p in series.points
        ]
        output.print_rows(["SERIES", "STEP", "VALUE", "MIN", "MAX"], rows)
    else:
        rows = []
        for name, series in found.items():
            points = series.points
            if points:
                low, high = min(p.min for p in points), max(p.max for p in points)
                rows.append(
                    [name, str(points[-1].step), output.number(points[-1].value), output.number(low), output.number(high), str(len(points))]
                )
        output.print_rows(["SERIES", "STEP", "LAST", "MIN", "MAX", "POINTS"], rows)
    return exits.OK


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as one line of blocks; means over equal stretches when there are more than `width`."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def _text_plot(found: Mapping[str, job_service_pb2.Series]) -> int:
    import math

    from luthier.cli import output

    width = max(10, min(100, shutil.get_terminal_size().columns - 40))
    for name, series in found.items():
        points = [p for p in series.points if math.isfinite(p.value)]
        if not points:
            continue
        try:
            line = sparkline([p.value for p in points], width)
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            line = "(this terminal cannot show blocks; use PYTHONIOENCODING=utf-8)"
        first, last = points[0], points[-1]
        output.write(f"{name:<12} {line}  {output.number(first.value)} -> {output.number(last.value)} at step {last.step}\n")
    return exits.OK


def draw(path: Path, title: str, found: Mapping[str, job_service_pb2.Series]) -> None:
    """Write the series as an image; the format follows the file name. Raises `LuthierError` without matplotlib."""
    from luthier.errors import LuthierError

    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure
    except ImportError:
        raise LuthierError(
            "drawing needs matplotlib, which is not installed", fix="pip install 'luthier[plot]', or use `luthier plot --text`"
        ) from None
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, series in found.items():
        if not series.points:
            continue
        steps = [p.step for p in series.points]
        sparse = name.startswith("eval")
        axes.plot(steps, [p.value for p in series.points], label=name, marker="o" if sparse or len(steps) < 3 else None, linewidth=1.4)
        if not sparse:
            axes.fill_between(steps, [p.min for p in series.points], [p.max for p in series.points], alpha=0.15, linewidth=0)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(" / ".join(found) if len(found) <= 2 else "value")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise LuthierError(f"{path} cannot be written: {error}", fix="use a file name that ends in .png, .svg or .pdf") from None


def _plot(name: str, path: Path, found: Mapping[str, job_service_pb2.Series]) -> int:
    from luthier.cli import output

    draw(path, name, found)
    output.write(f"{path}\n")
    return exits.OK
