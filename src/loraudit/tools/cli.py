"""The command line: `loraudit plan`, `status`, `verify`, `show` and others.

Commands read their arguments and call one library module, imported when it is needed so that
--help is quick. What a study runs is Snakemake's to do (see README.md). docs/cli.md is written from
this file by scripts/cli_docs.py.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from loraudit.base.errors import UserError, unknown
from loraudit.studies import paths

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; add-task and add-model may ask the hub

EXIT_CODES = (
    "Exit codes: 0 done, and nothing wrong was found; 1 an error, or (verify, crosscheck) a "
    "problem found; 2 the command was misused."
)


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
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=EXIT_CODES,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"loraudit {version('loraudit')}")
        raise typer.Exit


def _studies(incomplete: str) -> list[str]:
    return [name for name in paths.study_names() if name.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    return [name for name in paths.run_names() if name.startswith(incomplete)]


def _runs_and_studies(incomplete: str) -> list[str]:
    return _studies(incomplete) + _runs(incomplete)


Hub = Annotated[str | None, typer.Option(help="OWNER/NAME on the Hugging Face hub.")]
Revision = Annotated[str | None, typer.Option(help="The hub's commit: 40 hex digits.")]
Wheel = Annotated[str | None, typer.Option(help="NAME==VERSION on the package index.")]
Sha256 = Annotated[str | None, typer.Option(help="The wheel's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Try it, and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Given = Annotated[
    list[str],
    typer.Option(
        "--config", metavar="KEY=VALUE", help="A key of config/config.yaml, as for snakemake."
    ),
]


FOLDER = "A local folder in the hub's layout: README.md with configs, a Parquet or CSV per split."


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan, watch, look into and verify studies; move adapters in and out; add tasks and models.

    To be run in the repository's folder. What a study computes is started by `snakemake`.
    """


@app.command()
def plan(
    config: Given = [],  # noqa: B006
    more: Annotated[
        list[str],
        typer.Argument(metavar="[KEY=VALUE]...", help="More of them.", show_default=False),
    ] = [],  # noqa: B006
    cores: Annotated[
        int, typer.Option(min=1, help="As snakemake's --cores [default: all]", show_default=False)
    ] = os.cpu_count() or 1,
    measure: Annotated[
        bool, typer.Option(help="Time a few steps of what no finished run tells.")
    ] = True,
    again: Annotated[bool, typer.Option("--again", help="Forget earlier calibrations.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a study will take before anything starts: runs, jobs, time, memory, disk.

    What is done already, Snakemake says (a dry run). Times are those of the study's finished runs
    on this machine, else of a few optimizer steps that are run now and kept in .loraudit/.

    Examples:

    `loraudit plan`

    `loraudit plan --config study=frozen-head --cores 8`

    `loraudit plan --config study=glue-minilm task=mrpc glue=/data/glue --json`
    """
    from loraudit.tools.plan import plan as made
    from loraudit.tools.plan import sentences, shown

    given = [*config, *more]
    found = made(_config(given), given, cores, measure, again)
    _print(found, as_json, shown(found), sentences(found))


@app.command()
def status(
    study: Annotated[str, typer.Argument(help="A study's name.", autocompletion=_studies)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again until all are done.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Show how far a study is, from its files only: also while jobs run on a cluster.

    "failed" is a run whose log ends in an error, "silent" one whose log has not grown for five
    minutes (killed, or slow), "waiting" one that has no log. --watch ends when all runs are done.

    Example: `loraudit status quickstart --watch`
    """
    from loraudit.base.terminal import console, print_json
    from loraudit.tools import status as module

    runs = module.places(study)
    if as_json:
        print_json(module.summary(study, runs))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            module.watch(study, runs, every)
    else:
        console().print(module.renderable(module.summary(study, runs)))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name.", autocompletion=_runs)],
    as_json: Json = False,
) -> None:
    """Show one run: spec, scores, history, confusion counts, parameters, cost, provenance.

    Examples:

    `loraudit show snippets/minilm/lora-r8-q+v/s0`

    `loraudit show results/quickstart/runs/snippets/minilm/full/s1 --json`
    """
    from loraudit.tools.show import describe, sections

    found = describe(paths.run_folder(run))
    _print(found, as_json, sections(found))


@app.command()
def compare(
    left: Annotated[
        str, typer.Argument(help="A run, or a study.", autocompletion=_runs_and_studies)
    ],
    right: Annotated[str, typer.Argument(help="Another.", autocompletion=_runs_and_studies)],
    resamples: Annotated[int, typer.Option(min=100, help="Of the paired bootstrap.")] = 2000,
    as_json: Json = False,
) -> None:
    """Compare two runs on the same rows, or two studies on the same runs.

    Runs: exact McNemar test, paired bootstrap of the headline metric, and how their specs differ.
    Studies: each cell's scores paired by seed, and how many runs predict the same.

    Examples:

    `loraudit compare mrpc/minilm/full/s0 mrpc/minilm/lora-r8-q+v/s0`

    `loraudit compare quickstart quickstart-mrpc`
    """
    from loraudit.tools import show as module

    studies = [(paths.RESULTS / name / "study.json").is_file() for name in (left, right)]
    if all(studies):
        found = module.compare_studies(*map(paths.study_folder, (left, right)))
        parts = module.study_sections(found), module.study_sentences(found)
    elif any(studies):
        raise UserError(f"{left!r} and {right!r}: give two runs, or two studies")
    else:
        found = module.compare_runs(paths.run_folder(left), paths.run_folder(right), resamples)
        parts = module.run_sections(found), module.run_sentences(found)
    _print(found, as_json, *parts)


@app.command()
def verify(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A study's name [default: every study in results/]", autocompletion=_studies
        ),
    ] = None,
    config: Given = [],  # noqa: B006
    quick: Annotated[
        bool, typer.Option("--quick", help="Don't make section 7's tables again (slow).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recompute a study from its evidence and name whatever differs; exit code 1 if something does.

    Scores from predictions, history, hashes and seals of every run; adapters; fingerprints of the
    data and model here; spec and code of today (stale runs); then tidy tables, tables, and the CSV
    behind each figure. A seal shows an edit of any digit of a record, and bit rot. It can't show
    a forger who seals anew; recomputing the scores can.

    Notes are what could not be checked, such as data that are not fetched. --config is needed for a
    study whose file is not in config/studies.

    Examples:

    `loraudit verify quickstart`

    `loraudit verify mine --config study=path/to/mine.yaml`
    """
    from loraudit.tools.verify import sentences
    from loraudit.tools.verify import verify as check

    if study is None and config:
        raise UserError("config: name the study that it is of")
    names = (
        [study]
        if study
        else [path.parent.name for path in sorted(paths.RESULTS.glob("*/study.json"))]
    )
    if not names:
        raise UserError(f"no study has results here ({paths.RESULTS}/*/study.json)")
    found = {}
    for name in names:
        folder = paths.study_folder(name)
        found[name] = list(check(folder, _config(config) if config else None, not quick))
    rows = {name: [finding._asdict() for finding in findings] for name, findings in found.items()}
    said = [line for name, findings in found.items() for line in sentences(name, findings)]
    _print(rows, as_json, [], said)
    if any(finding.kind == "problem" for findings in found.values() for finding in findings):
        raise typer.Exit(1)


@app.command()
def bundle(
    study: Annotated[str, typer.Argument(help="A study's name.", autocompletion=_studies)],
    out: Annotated[Path, typer.Option(help="The zip to write; must not exist.")],
    weights: Annotated[bool, typer.Option("--weights", help="Put the adapters in too.")] = False,
    as_json: Json = False,
) -> None:
    """Write a study as one RO-Crate (zip): specs, records, tables, figures, report, licence.

    What the runs' specs say of local folders is in it. `loraudit verify` first tells whether the
    study is sound.

    Example: `loraudit bundle quickstart --out quickstart.zip`
    """
    from humanize import naturalsize

    from loraudit.tools.bundle import bundle as made

    found = made(study, out, weights)
    said = [
        f"wrote {out}: {found['files']} files, {naturalsize(found['bytes'])}, {found['runs']} runs"
    ]
    said += [f"not finished, so not in it: {name}" for name in found["missing"]]
    _print({"out": str(out), **found}, as_json, [], said)


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
    from loraudit.studies.entry_files import load_model

    entry = load_model(model)

    from loraudit.adapters.loralib_file import import_file

    found = import_file(file, alpha, entry, base or Path("resources/models", model), out)
    rows = [("file", str(file)), *found.rows(), ("alpha", f"{alpha:g} (as told)")]
    _print({}, False, [("found", ["what", "value"], rows)])
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
    from loraudit.report.model_card import export_run

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
    if not run.crosschecked:
        legal = "lora, peft without fields of its own, alora"
        raise UserError(f"method {run.method!r} has no cross-check (legal: {legal})")
    tokens = _fetched(tokens or paths.tokens_folder(run), "tokens")
    model = _fetched(model or Path("resources/models", run.model.name), "model")

    from loraudit.crosscheck import whole_model as check

    rows = check.crosscheck(run, tokens, model)
    columns = ("check", "against", "dtype", "difference", "tolerance", "ok")
    shown = [
        tuple(
            f"{row[name]:.3g}" if name in ("difference", "tolerance") else str(row[name])
            for name in columns
        )
        for row in rows
    ]
    _print({}, False, [("cross-check", columns, shown)])
    check.require_agreement(rows, cell or str(spec))


@app.command("add-task")
def add_task(
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    folder: Annotated[str | None, typer.Option(help=FOLDER)] = None,
    hub: Hub = None,
    revision: Revision = None,
    wheel: Wheel = None,
    sha256: Sha256 = None,
    path: Annotated[str | None, typer.Option(help="Of the table in the wheel.")] = None,
    config: Annotated[
        str | None, typer.Option(help="The data's configuration, if several.")
    ] = None,
    text: Annotated[list[str], typer.Option(help="A text column; twice for pairs.")] = [],  # noqa: B006
    label: Annotated[str | None, typer.Option(help="The label's column.")] = None,
    rating: Annotated[
        str | None,
        typer.Option(help="Instead, for a table to be split: COLUMN,NEUTRAL_BELOW,VALIDATION_ROWS"),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names in label order, by commas; empty for a number.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="accuracy, f1, matthews, pearson, spearman, by commas.")
    ] = None,
    headline: Annotated[str | None, typer.Option(help="One of them [default: the first]")] = None,
    train_split: Annotated[str, typer.Option(help="The source's name for it.")] = "train",
    validation_split: Annotated[str, typer.Option(help="Likewise.")] = "validation",
    dry_run: DryRun = False,
) -> None:
    """Add a task to config/tasks.yaml, once its data were read and its labels and metrics fit.

    What no option says is asked on a terminal. Comments in the file stay. If anything is wrong,
    nothing is written.

    Example: `loraudit add-task --name boolq --folder /data/superglue --config boolq --text question
    --text passage --label label --classes no,yes --metrics accuracy,f1`
    """
    from loraudit.tools import wizard

    name = _asked(name, "name", "The task's name")
    folder = (
        folder if hub or wheel else _asked(folder, "folder", "Folder of the data (hub's layout)")
    )
    more = {"sha256": sha256, "path": path, "revision": revision, "config": config}
    fields: dict = {"source": wizard.source(wheel, folder, hub, **more)}
    fields["text"] = text or _listed(_asked(None, "text", "Text columns, by commas"))
    if rating is None:
        fields["label"] = _asked(label, "label", "The label's column", "label")
    else:
        fields["rating"] = wizard.rating(rating)
    named = _listed(_asked(classes, "classes", "Classes in label order (empty: a number)", ""))
    fields |= {"classes": named} if named else {}
    fields["metrics"] = _listed(
        _asked(metrics, "metrics", "Metrics, by commas", "accuracy" if named else "pearson")
    )
    fields["headline"] = headline or fields["metrics"][0]
    for key, value, usual in (
        ("train_split", train_split, "train"),
        ("validation_split", validation_split, "validation"),
    ):
        fields |= {key: value} if value != usual else {}
    _online(hub)
    model = next(iter(wizard.fetched_models()), None)
    _written(wizard.try_task(name, fields, model), f"task={name}", dry_run)


@app.command("add-model")
def add_model(
    name: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    folder: Annotated[
        str | None, typer.Option(help="With config.json, model.safetensors, tokenizer files.")
    ] = None,
    hub: Hub = None,
    revision: Revision = None,
    wheel: Wheel = None,
    sha256: Sha256 = None,
    path: Annotated[str | None, typer.Option(help="Of the model's folder in the wheel.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Of config/models.yaml [default: by the model's type]")
    ] = None,
    module: Annotated[
        list[str], typer.Option(metavar="MATRIX=NAME", help="Without a family: q=encoder.*.query")
    ] = [],  # noqa: B006
    head: Annotated[list[str], typer.Option(help="Without a family: a head module.")] = [],  # noqa: B006
    output: Annotated[str | None, typer.Option(help="The head's last layer, if not last.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Add a model to config/models.yaml, once it was loaded, matched, and run with LoRA on it.

    What no option says is asked on a terminal. Comments in the file stay. If anything is wrong,
    nothing is written.

    Example: `loraudit add-model --name my-bert --folder /models/my-bert`
    """
    from loraudit.tools import wizard

    name = _asked(name, "name", "The model's name")
    folder = folder if hub or wheel else _asked(folder, "folder", "Folder of the model")
    more = {"sha256": sha256, "path": path, "revision": revision}
    fields: dict = {"source": wizard.source(wheel, folder, hub, **more)}
    given = {"family": family, "modules": _parsed(module) or None, "head": head or None}
    given["output"] = output
    fields |= {key: value for key, value in given.items() if value is not None}
    _online(hub)
    _written(wizard.try_model(name, fields), f"model={name}", dry_run)


def _asked(value: str | None, option: str, question: str, usual: str | None = None) -> str:
    """Return an option's value; ask for it on a terminal."""
    if value is not None:
        return value
    if sys.stdin.isatty():
        return typer.prompt(question, default=usual)
    if usual is not None:
        return usual
    raise UserError(f"--{option} is missing (on a terminal it would be asked)")


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _online(hub: str | None) -> None:
    if hub is not None:
        os.environ.pop("HF_HUB_OFFLINE", None)  # before the hub's library is imported


def _written(tried, key: str, dry_run: bool) -> None:
    """Show what a trial saw, and write its entry."""
    _print({}, False, [("tried", ["what", "found"], tried.seen)])
    typer.echo(tried.entry)
    if dry_run:
        typer.echo(f"nothing written to {tried.path} (--dry-run)")
        return
    tried.write()
    typer.echo(f"added to {tried.path}; run it with `snakemake --cores 2 --config {key}`")


def _asked_spec(path: Path | None, study: str | None, cell: str | None):
    """Return the spec of a file, or of a study's cell."""
    from loraudit.base.yaml_file import read_yaml
    from loraudit.studies.expand import load_configured
    from loraudit.studies.spec import RunSpec
    from loraudit.studies.values import validated

    if (path is None) == (study is None) or (study is None) != (cell is None):
        raise UserError("give either a spec.json or both --study and --cell")
    if path is not None:
        return validated(RunSpec, _json(path), str(path))
    cells = load_configured({**read_yaml("config/config.yaml"), "study": study}).cells()
    if cell not in cells:
        raise unknown("cell", cell, cells)
    return cells[cell]


def _json(path: Path) -> dict:
    from loraudit.base.files import read_json

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


def _config(given: list[str]) -> dict:
    """Return config/config.yaml with the KEY=VALUE that were given."""
    from loraudit.base.yaml_file import read_yaml

    return {**read_yaml(paths.CONFIG / "config.yaml"), **_parsed(given)}


def _parsed(given: list[str]) -> dict:
    import yaml

    found = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"config: {item!r}: expected KEY=VALUE, such as task=mrpc")
        found[key] = yaml.safe_load(value)
    return found


def _print(found: object, as_json: bool, sections=(), sentences=()) -> None:
    """Print an answer: as JSON, or its tables and then its sentences."""
    from loraudit.base.terminal import print_json, show

    if as_json:
        print_json(found)
        return
    for title, columns, rows in sections:
        show(title, columns, rows)
    for line in sentences:
        typer.echo(line)
