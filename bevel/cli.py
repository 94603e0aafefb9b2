"""The command line: `optimize`, and `bevel inspect|passes|importances|rules|verify|to-torch|merge-delta|optimize`.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a promise or budget was missed, 2 bad input or
usage, 3 a pass raised, 130 interrupted. What needs onnx, numpy or onnxruntime is imported inside the commands, so that
`--help` answers at once.
"""

import math
import signal
from typing import Any

import click

from bevel.errors import BevelError

INTERRUPTED = 130


class Limit(click.FloatRange):
    """A number from zero on; what is none would be kept by everything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


LIMIT = Limit(min=0)


class Command(click.Command):
    """A command whose errors of Bevel's own become one message on stderr and the error's exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; nothing but a bug ends in a traceback."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job cleans up as Ctrl-C does
        try:
            return super().invoke(ctx)
        except BevelError as error:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            ctx.exit(INTERRUPTED)


class Group(click.Group):
    """A group of `Command`s."""

    command_class = Command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bevel")
def bevel() -> None:
    """Reshape trained networks, and prove that the result is right."""


@bevel.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("-p", "--passes", metavar="TEXT", help="Passes to run, as in 'simplify,prune-channels{ratio=0.5}'.")
@click.option("--recipe", metavar="FILE", help="A TOML file with the passes; else [tool.bevel] of ./pyproject.toml.")
@click.option("-o", "--output", metavar="OUT.onnx", help="Where the result goes; - is stdout.")
@click.option("--calibration", metavar="PATH", help="Inputs: an .npz, an .npy, or a folder. Default: made up.")
@click.option("--report", "reports", multiple=True, metavar="FILE", help="Write the report (.json or .md). Repeatable.")
@click.option("--plan", metavar="FILE", help="Write which places of which tensor were kept (.json).")
@click.option("--budget", "budgets", multiple=True, metavar="LIMIT", help="size=0.5x, error=0.01, latency=0.8x, ...")
@click.option("--max-error", type=LIMIT, help="Largest relative error a lossy pass may make.")
@click.option("--verify/--no-verify", default=True, help="Check every pass's promise in ONNX Runtime.  [default: on]")
@click.option("--latency/--no-latency", default=None, help="Measure latency.  [default: up to 1 GB of weights]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--print-after", multiple=True, metavar="PASS", help="Print the graph after a pass ('all' for each).")
@click.option("--time-passes", is_flag=True, help="Print how long each pass and its check took.")
@click.option("--bisect", type=click.IntRange(min=0), metavar="N", help="Run the first N passes only.")
@click.option("--dry-run", is_flag=True, help="Do everything, write nothing.")
@click.option("--keep-failed", metavar="FOLDER", help="On failure, save what is needed to see it again.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def optimize(**options: Any) -> None:
    """Run passes on MODEL.onnx (- is stdin) and write the result once every promise is kept."""
    from bevel.commands.optimize import run

    run(**options)


@bevel.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("--check", is_flag=True, help="Permute every group at random and compare the outputs.")
@click.option("--calibration", metavar="PATH", help="Inputs for --check. Default: made up.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the permutations.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, check: bool, calibration: str | None, seed: int, as_json: bool) -> None:
    """Print a model's inputs, cost and groups: the dimensions that can be pruned or reordered, and why not more."""
    from bevel.commands.inspect import run

    run(model, check=check, calibration=calibration, seed=seed, as_json=as_json)


@bevel.command()
@click.argument("reference", metavar="A.onnx")
@click.argument("result", metavar="B.onnx")
@click.option("--calibration", metavar="PATH", help="Inputs: an .npz, an .npy, or a folder. Default: made up.")
@click.option("--rtol", type=LIMIT, help="Largest relative error allowed.  [default: 1e-05]")
@click.option("--exact", is_flag=True, help="Demand equality in every element.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of made-up inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(**options: Any) -> None:
    """Compare two models on the same inputs: exit 0 if they agree, 1 if they do not."""
    from bevel.commands.verify import run

    run(**options)


@bevel.command("to-torch")
@click.argument("model", metavar="MODEL.onnx")
@click.option("-o", "--output", metavar="OUT.py", required=True, help="Python source; weights go to OUT.safetensors.")
@click.option("--calibration", metavar="PATH", help="Inputs to compare on. Default: made up.")
@click.option("--verify/--no-verify", default=True, help="Compare with ONNX Runtime first.  [default: on]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of made-up inputs.")
def to_torch(**options: Any) -> None:
    """Write MODEL.onnx as a PyTorch module: Python that needs no Bevel, and its weights."""
    from bevel.commands.to_torch import run

    run(**options)


@bevel.command("merge-delta")
@click.argument("tuned", metavar="TUNED.onnx...", nargs=-1, required=True)
@click.option("--base", metavar="BASE.onnx", required=True, help="What all of them were tuned from.")
@click.option("-o", "--output", metavar="OUT.onnx", required=True, help="Where the result goes.")
@click.option("--drop", type=float, default=0.9, show_default=True, help="Share of each delta's entries to drop.")
@click.option("--rescale", default="dare", show_default=True, help="dare, analytic or label-free.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="What the deltas are multiplied with.")
@click.option("--samples", type=int, default=128, show_default=True, help="Samples to look at when choosing q.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Initializers to thin out. Repeatable.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Initializers to leave as tuned. Repeatable.")
@click.option("--calibration", metavar="PATH", help="Inputs: an .npz, an .npy, or a folder. Default: made up.")
@click.option("--max-error", type=LIMIT, help="Largest relative error against the first model.")
@click.option("--verify/--no-verify", default=True, help="Measure the error in ONNX Runtime.  [default: on]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is dropped.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def merge_delta(**options: Any) -> None:
    """Thin out what fine-tuning added to BASE.onnx, and add it back: one tuned model, or several merged."""
    from bevel.commands.merge_delta import run

    run(**options)


@bevel.command()
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the installed passes, or explain one."""
    from bevel import registry
    from bevel.commands.listing import explained, listed

    known = registry.passes()
    click.echo(explained(known[name]) if name else "\n".join(listed(known)))


@bevel.command()
@click.argument("name", required=False)
def importances(name: str | None) -> None:
    """List what can score channels, or explain one."""
    from bevel import registry
    from bevel.commands.listing import explained_importance, listed

    known = registry.importances()
    click.echo(explained_importance(name, known[name]) if name else "\n".join(listed(known)))


@bevel.command()
@click.argument("name", required=False)
def splitters(name: str | None) -> None:
    """List what can divide a layer among experts, or explain one."""
    from bevel import registry
    from bevel.commands.listing import explained_function, listed

    known = registry.splitters()
    click.echo(explained_function(name, known[name]) if name else "\n".join(listed(known)))


@bevel.command()
@click.argument("name", required=False)
def routers(name: str | None) -> None:
    """List what can score experts, or explain one."""
    from bevel import registry
    from bevel.commands.listing import explained_function, listed

    known = registry.routers()
    click.echo(explained_function(name, known[name]) if name else "\n".join(listed(known)))


@bevel.command()
@click.argument("name", required=False)
def formats(name: str | None) -> None:
    """List the formats of quantized numbers, or explain one."""
    from bevel import registry
    from bevel.commands.listing import explained_format, listed_formats
    from bevel.passes.formats import any_format

    click.echo(explained_format(any_format(name)) if name else "\n".join(listed_formats(registry.formats())))


@bevel.command()
@click.argument("operator", required=False)
def rules(operator: str | None) -> None:
    """List the operators whose axes are understood, or say whether one is."""
    from bevel.commands.listing import operators

    click.echo("\n".join(operators(operator)))


if __name__ == "__main__":
    bevel()
