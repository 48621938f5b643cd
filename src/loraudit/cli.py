"""The command line: `loraudit import`, `export` and `crosscheck`.

Commands read their arguments and call one library function, imported when it is needed so that
--help is quick. What a study runs is Snakemake's to do (see README.md).
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from loraudit.errors import UserError, unknown

os.environ["HF_HUB_OFFLINE"] = "1"  # folders only: no look at the hub


class Commands(TyperGroup):
    """Turns a `UserError`, or a file that can't be read or written, into one line and exit 1."""

    def invoke(self, ctx):
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (UserError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _main() -> None:
    """Adapters in and out of loraudit, and the cross-check with PEFT."""


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A loralib state dict (.bin), by torch.save.")],
    model: Annotated[str, typer.Option(help="The base model's name in config/models.yaml.")],
    out: Annotated[Path, typer.Option(help="The PEFT folder to write; must not exist.")],
    alpha: Annotated[
        float | None, typer.Option(help="Numerator of alpha / r in training; not in the file.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of config.json [default: resources/models/MODEL]"),
    ] = None,
) -> None:
    """Turn an adapter saved by loralib (microsoft/LoRA) into a PEFT folder, and say what it holds.

    The file is read without running anything in it. Missing layers, wrong shapes, unknown names
    and values that are not finite are refused, and then nothing is written.

    Example: `loraudit import roberta_base_lora_mnli.bin --alpha 16 --model roberta-base --out mnli`
    """
    from loraudit.study import load_model

    entry = load_model(model)

    from loraudit.loralib_file import import_file

    found = import_file(file, alpha, entry, base or Path("resources/models", model), out)
    rows = [("file", str(file)), *found.rows(), ("alpha", f"{alpha:g} (as told)")]
    _print_table("found", ("what", "value"), rows)
    typer.echo(f"wrote {out}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run: results/STUDY/runs/.../sSEED.")],
    out: Annotated[Path, typer.Option(help="The PEFT folder to write; must not exist.")],
    licence: Annotated[str, typer.Option(help="The adapter's licence.")] = "unknown",
    base_model: Annotated[
        str | None, typer.Option(help="The base model's hub name [default: as the run has it].")
    ] = None,
    base_licence: Annotated[str, typer.Option(help="The base model's.")] = "unknown",
    data_licence: Annotated[str, typer.Option(help="The data's.")] = "unknown",
    study_folder: Annotated[
        Path | None, typer.Option(help="results/STUDY, to show the other seeds' scores too.")
    ] = None,
) -> None:
    """Write a run's adapter and head as a PEFT folder with a model card.

    Example: `loraudit export results/quickstart/runs/snippets/minilm/lora-r8-q+v/s0 --out mine`
    """
    from loraudit.card import export_run

    licences = {"adapter": licence, "base": base_licence, "data": data_licence}
    export_run(run, out, licences, study_folder, base_model)
    typer.echo(f"wrote {out}")


@app.command()
def crosscheck(
    spec: Annotated[
        Path | None, typer.Argument(help="A run's spec.json; or --study and --cell.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="A study's name or file.")] = None,
    cell: Annotated[
        str | None, typer.Option(help="One of its cells: TASK/MODEL/rRANK-TARGETS.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="The task's tokens [default: resources/tokens/TASK/MODEL-LENGTH]"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Fetched model [default: resources/models/MODEL]")
    ] = None,
) -> None:
    """Compare our LoRA with PEFT's on real rows, and its layers with loralib's too.

    Exit code 1 if they differ by more than the tolerance.

    Examples:

    `loraudit crosscheck --study quickstart --cell snippets/minilm/r8-q+v`

    `loraudit crosscheck results/quickstart/runs/snippets/minilm/lora-r8-q+v/s0/spec.json`
    """
    run = _asked_spec(spec, study, cell)
    if not run.adapter:
        raise UserError(f"method {run.method!r} has no adapter (legal: lora, peft)")
    made = Path("resources/tokens", run.task.name, f"{run.model.name}-{run.max_length}")
    tokens = _fetched(tokens or made, "tokens")
    model = _fetched(model or Path("resources/models", run.model.name), "model")

    from loraudit import crosscheck as check

    rows = check.crosscheck(run, tokens, model)
    columns = ("check", "against", "dtype", "difference", "tolerance", "ok")
    shown = [
        tuple(
            f"{row[name]:.3g}" if name in ("difference", "tolerance") else str(row[name])
            for name in columns
        )
        for row in rows
    ]
    _print_table("cross-check", columns, shown)
    check.require_agreement(rows, cell or str(spec))


def _asked_spec(path: Path | None, study: str | None, cell: str | None):
    """Return the spec of a file, or of a study's cell."""
    from loraudit.spec import RunSpec, validated
    from loraudit.study import load_configured
    from loraudit.yaml_file import read_yaml

    if (path is None) == (study is None) or (study is None) != (cell is None):
        raise UserError("give either a spec.json or both --study and --cell")
    if path is not None:
        return validated(RunSpec, _json(path), str(path))
    cells = load_configured({**read_yaml("config/config.yaml"), "study": study}).cells()
    if cell not in cells:
        raise unknown("cell", cell, cells)
    return cells[cell]


def _json(path: Path) -> object:
    from loraudit.files import read_json

    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no JSON file to read: {error}") from None


def _fetched(folder: Path, what: str) -> Path:
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{what}: nothing fetched in {folder} (manifest.json is missing); "
            f"`snakemake --cores 1 {folder}/manifest.json --config ...` fetches it (task=, model= "
            "or study= must name it), or give the folder"
        )
    return folder


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
