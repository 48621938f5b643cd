"""The command line: `loraudit plan`, `status`, `verify`, `show` and others.

Each command reads its arguments and calls one library module. It imports that module only when it
runs, so that --help answers quickly. No command trains a study: Snakemake does (see README.md).
scripts/cli_docs.py writes docs/cli.md from this file.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from loraudit.base.errors import Misuse, UserError, unknown
from loraudit.base.pipes import let_the_reader_leave
from loraudit.studies import paths

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; add-task and add-model may ask the hub

EXIT_CODES = (
    "Exit codes: 0, the command did its work and found nothing wrong; 1, an error stopped it, or "
    "verify or crosscheck found a problem; 2, it was called with options that are unknown, "
    "missing, malformed or not fit for each other."
)


class Commands(TyperGroup):
    """Prints a `UserError`, or why a file can't be read or written, on one line; exits with 1 or 2.

    A reader of stdout that leaves early (`loraudit show RUN | head`) is no error.
    """

    def main(self, *args, **kwargs):
        """Run the program."""
        let_the_reader_leave()
        return super().main(*args, **kwargs)

    def invoke(self, ctx):
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Misuse as error:
            asked = f"loraudit {ctx.invoked_subcommand} --help"
            typer.echo(f"error: {error}; see `{asked}`", err=True)
            raise typer.Exit(2) from None
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


Hub = Annotated[str | None, typer.Option(help="OWNER/NAME of a Hugging Face hub repository.")]
Revision = Annotated[str | None, typer.Option(help="The commit on the hub, 40 hex digits.")]
Wheel = Annotated[str | None, typer.Option(help="NAME==VERSION of a wheel to fetch.")]
Sha256 = Annotated[str | None, typer.Option(help="SHA-256 of the wheel.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Try the entry but write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Given = Annotated[
    list[str],
    typer.Option(
        "--config", metavar="KEY=VALUE", help="Set a key of config/config.yaml, as for snakemake."
    ),
]


More = Annotated[
    list[str],
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Further keys, as after --config.", show_default=False
    ),
]

PUBLISHED = "published"
"""What `verify` calls the published numbers that are compared with each other; no study may."""

FOLDER = "A local folder with a Parquet or CSV file per split, in the hub's layout."


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan, watch, inspect and verify studies; import and export adapters; add tasks and models.

    Run it in the repository's folder. It is `snakemake` that starts the runs of a study.
    """


@app.command()
def plan(
    config: Given = [],  # noqa: B006
    more: More = [],  # noqa: B006
    cores: Annotated[
        int, typer.Option(min=1, help="Snakemake's --cores [default: all]", show_default=False)
    ] = os.cpu_count() or 1,
    measure: Annotated[
        bool, typer.Option(help="Time a few steps of each kind of run that never finished here.")
    ] = True,
    again: Annotated[bool, typer.Option("--again", help="Repeat earlier measurements.")] = False,
    spread: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Standard deviation of a score over seeds, in points, to say what the seeds can "
            "show [default: the published one; of pairs of methods that of the finished runs]",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Plan for such a GPU by measured speeds (results/committed/bench/gpu.csv), or by "
            "arithmetic from them for a100 and rtx4090.",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="How many GPUs [default: those here, or one]", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a study will take before anything starts: runs, jobs, time, memory, disk.

    Where the study is compared with published numbers, it also says what its seeds can show: the
    chance of "reproduced" if a cell is exactly equal, the seeds that would make it 80 %, and the
    smallest difference that is found in 80 % of cases. For each pair of methods that it compares
    it says the smallest difference that these seeds find in 80 % of cases, and how many seeds would
    find one as large as the margin. Of the claims that it lists it names those that its runs can't
    test, with the runs that these would need and what they would take.

    A dry run of Snakemake tells which jobs are still to do. Times come from the study's finished
    runs on this machine. For other kinds of run a few optimizer steps are timed now, and the times
    are kept in .loraudit/. With `--gpu` they come from a table of speeds that were measured on such
    a GPU, which need not be here.

    Examples:

    `loraudit plan`

    `loraudit plan --config study=frozen-head --cores 8`

    `loraudit plan --config study=glue-minilm task=mrpc glue=/data/glue --json`

    `loraudit plan --gpu h100 --gpus 2 --config study=poster runs_per_gpu=4`
    """
    from loraudit.tools.plan import plan as make_plan
    from loraudit.tools.plan import sections, sentences

    given = [*config, *more]
    fraction = None if spread is None else spread / 100
    answer = make_plan(_config(given), given, cores, measure, again, fraction, gpu, gpus)
    _print(answer, as_json, sections(answer), sentences(answer))


@app.command()
def status(
    study: Annotated[
        str | None,
        typer.Argument(help="A study's name; none lists the studies.", autocompletion=_studies),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until all runs are done.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=86400, help="Seconds between updates.")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Show how far a study is, or list all studies. Only files are read, wherever jobs run.

    A run is "failed" if its log ends in an error, "silent" if its log has not grown for five
    minutes (the job was killed or is slow), and "waiting" if it has no log yet. Of the runs that
    are done it counts and lists those that collapsed to a constant answer, those with a matrix B
    that never left zero (unmoved), and those that only try a value and diverged.

    Example: `loraudit status quickstart --watch`
    """
    from loraudit.base.terminal import console, print_json, show
    from loraudit.tools import status as module

    if study is None:
        rows = module.overview()
        if watch:
            raise typer.BadParameter("--watch needs the name of a study")
        if as_json:
            print_json(rows)
        else:
            done = [
                "" if row["runs"] is None else f"{row['done']} of {row['runs']}" for row in rows
            ]
            cells = [[row["study"], n, row["question"]] for row, n in zip(rows, done, strict=True)]
            show("studies", ["study", "runs done", "question"], cells)
        return
    study = paths.study_name(study)
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
    """Show one run: its spec, scores, history, confusion counts, parameters, cost and provenance.

    Examples:

    `loraudit show snippets/minilm/lora-r8-q+v/s0`

    `loraudit show results/quickstart/runs/snippets/minilm/full/s1 --json`
    """
    from loraudit.tools.show import describe, sections

    description = describe(paths.run_folder(run))
    _print(description, as_json, sections(description))


@app.command()
def compare(
    left: Annotated[
        str,
        typer.Argument(
            help="A run or a study, by its name or its folder.", autocompletion=_runs_and_studies
        ),
    ],
    right: Annotated[
        str,
        typer.Argument(
            help="The run or study to compare it with.", autocompletion=_runs_and_studies
        ),
    ],
    resamples: Annotated[
        int, typer.Option(min=100, help="Resamples of the paired bootstrap.")
    ] = 2000,
    as_json: Json = False,
) -> None:
    """Compare two runs on the same rows, or two studies on the same runs.

    For two runs it prints the exact McNemar test, a paired bootstrap of the headline metric, and
    where their specs differ. For two studies it pairs each cell's scores by seed and counts the
    runs that predict the same.

    Examples:

    `loraudit compare mrpc/minilm/full/s0 mrpc/minilm/lora-r8-q+v/s0`

    `loraudit compare quickstart quickstart-mrpc`

    `loraudit compare results/quickstart /elsewhere/results/quickstart`

    `loraudit compare quickstart results/committed/quickstart`
    """
    from loraudit.tools import compare as module

    shipped = [module.is_shipped(Path(name)) for name in (left, right)]
    studies = [paths.is_study(left) or shipped[0], paths.is_study(right) or shipped[1]]
    if any(studies):
        if not all(studies) and _is_run(right if studies[0] else left):
            raise Misuse(f"{left!r} and {right!r}: give two runs, or two studies")
        folders = [
            Path(name) if there else paths.study_folder(name)
            for name, there in zip((left, right), shipped, strict=True)
        ]
        comparison = module.compare_studies(*folders)
        parts = module.study_sections(comparison), module.study_sentences(comparison)
    else:
        comparison = module.compare_runs(paths.run_folder(left), paths.run_folder(right), resamples)
        parts = module.run_sections(comparison), module.run_sentences(comparison)
    _print(comparison, as_json, *parts)


def _is_run(name: str) -> bool:
    try:
        paths.run_folder(name)
    except UserError:
        return False
    return True


@app.command()
def claims(
    text: Annotated[
        str | None, typer.Argument(help="Words of a claim [default: all]", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="A file of config/claims, such as hu2022.")
    ] = None,
    quantity: Annotated[
        str | None, typer.Option(help="What the claim speaks of, such as score or learning_rate.")
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(help="supported, contradicted, undecided, or 'not tested' for those without."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Verdicts of this study alone.", autocompletion=_studies)
    ] = None,
    as_json: Json = False,
) -> None:
    """List what papers claim (config/claims), each with the verdicts that are on record.

    A verdict is of one study, task and model, or of a source's published results by seed. "At
    scale" is the setting that the claim was made for; "in small" is another model, task or a
    subset. docs/claims.md has the same, for the committed results.

    Examples:

    `loraudit claims`

    `loraudit claims rank --verdict contradicted`

    `loraudit claims --study quickstart --json`
    """
    from loraudit.tools import claims as module

    found = module.claims(text, source, quantity, verdict, study)
    _print(found, as_json, module.sections(found), module.sentences(found))


@app.command()
def verify(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A study's name or folder, or `published` [default: all that is in results/]",
            autocompletion=_studies,
        ),
    ] = None,
    more: More = [],  # noqa: B006
    config: Given = [],  # noqa: B006
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Skip what is slow to make: section 7's tables, the pictures and the page.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Recompute a study from its evidence and name whatever differs; exit code 1 if something does.

    For every run it recomputes the scores from the predictions and checks the history, the
    hashes, the seal and the adapter. It compares the data and the model in resources/ with
    those of the record, and spec and code with today's: a run of other code is stale. Then it
    makes the tables, the figures and report.html again and compares them with those that are
    there. `published` is the comparison of published numbers with each other, which is made
    again in the same way. The seal shows that a digit of a record was edited or damaged.
    Whoever edits a record and seals it anew is found out by the recomputed scores.

    A note names what could not be checked, such as data that were not fetched. Use --config for
    a study whose file is not in config/studies.

    Examples:

    `loraudit verify quickstart`

    `loraudit verify --config study=path/to/mine.yaml task=mrpc`
    """
    from loraudit.tools.verify import sentences, verify_published
    from loraudit.tools.verify import verify as check

    given = [*config, *more]
    if study and "=" in study:  # the first key after --config, and no name
        given, study = [*given, study], None
    settings = _config(given) if given else None
    names = _to_verify(study, settings)
    by_study = {}
    for name in names:
        if name == PUBLISHED:
            by_study[name] = list(verify_published())
        else:
            by_study[name] = list(check(paths.study_folder(name), settings, not quick))
    rows = {name: [finding._asdict() for finding in found] for name, found in by_study.items()}
    lines = [line for name, findings in by_study.items() for line in sentences(name, findings)]
    _print(rows, as_json, [], lines)
    if any(finding.kind == "problem" for findings in by_study.values() for finding in findings):
        raise typer.Exit(1)


def _to_verify(study: str | None, settings: dict | None) -> list[str]:
    """Return what is asked to be verified: a study, the study of a configuration, or all."""
    if study:
        return [paths.study_name(study)]
    if settings:
        from loraudit.studies.expand import load_configured

        return [load_configured(settings).name]
    names = [path.parent.name for path in sorted(paths.RESULTS.glob("*/study.json"))]
    names += [PUBLISHED] if (paths.RESULTS / PUBLISHED).is_dir() else []
    if not names:
        raise UserError(f"no study has results here ({paths.RESULTS}/*/study.json)")
    return names


@app.command()
def judge(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CSV tables, trainer_state.json files, results of PEFT's method comparison, or "
            "folders of such logs."
        ),
    ],
    against: Annotated[
        list[str],
        typer.Option(metavar="FILE.TABLE", help="A published table, such as hu2022.table2."),
    ],
    given: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A field of all scores that lack it."),
    ] = [],  # noqa: B006
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A file of config/protocols by which they were made."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=50,
            help="Largest difference, in points, that counts as equal [default: the table's own, "
            "or one point]",
            show_default=False,
        ),
    ] = None,
    reading: Annotated[
        str,
        typer.Option(
            help="What a published ± of unstated meaning is: sd, population sd, standard error, "
            "95% interval, half range."
        ),
    ] = "sd",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write [default: judged/NAME]", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge scores that are not ours against published numbers. Nothing is trained.

    A table has a row per score with the columns task, model, method, rank, targets, seed, metric,
    score and epoch_choice (best or last), or epoch, for one row per evaluation. Further columns
    say how the scores were made (alpha, epochs, learning_rate, head, ...), so that the verdict can
    name what differs. It writes a folder with the table of verdicts, the figure and a page.

    Examples:

    `loraudit judge results.csv --against hu2022.table2`

    `loraudit judge runs/ --against hu2022.table2 --set task=mrpc --set model=roberta-base`
    """
    from loraudit.tools import judge as module

    fields = _parsed(given, "set", "task=mrpc")
    points = None if margin is None else margin / 100
    rows, folder = module.judge(
        module.Asked(files, against, fields, protocol, points, reading, out)
    )
    answer = module.as_data(rows, folder, against)
    _print(answer, as_json, module.sections(rows), module.sentences(rows, folder))


@app.command()
def bundle(
    study: Annotated[str, typer.Argument(help="A study's name.", autocompletion=_studies)],
    out: Annotated[Path, typer.Option(help="The zip to write. It must not exist yet.")],
    weights: Annotated[bool, typer.Option("--weights", help="Include the adapters.")] = False,
    as_json: Json = False,
) -> None:
    """Write a study as one RO-Crate (zip): specs, records, tables, figures, report, licence.

    Its metadata have the study's verdicts on claims of papers, which `loraudit merge` reads.

    Call `loraudit verify` first to learn whether the study is sound. Specs that name local folders
    go into the zip as they are.

    Example: `loraudit bundle quickstart --out quickstart.zip`
    """
    from humanize import naturalsize

    from loraudit.tools.bundle import bundle as write_bundle

    held = write_bundle(paths.study_name(study), out, weights)
    lines = [
        f"wrote {out}: {held['files']} files, {naturalsize(held['bytes'])}, {held['runs']} runs"
    ]
    lines += [f"left out, because it is not finished: {name}" for name in held["missing"]]
    _print({"out": str(out), **held}, as_json, [], lines)


@app.command()
def merge(
    left: Annotated[
        Path, typer.Argument(help="A bundle: the zip of `loraudit bundle`, or its folder.")
    ],
    right: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Show where the verdicts on claims in two bundles agree, such as those of two teams.

    Verdicts are set side by side by claim, task and model: both decide and agree or disagree, one
    decides, or only one has tested it. Runs that both bundles have are said.

    Example: `loraudit merge ours.zip theirs.zip`
    """
    from loraudit.tools import merge as module

    merged = module.merge(left, right)
    _print(merged, as_json, module.sections(merged), module.sentences(merged))


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A loralib state dict (.bin) written by torch.save.")
    ],
    model: Annotated[str, typer.Option(help="The base model's name in config/models.yaml.")],
    out: Annotated[Path, typer.Option(help="The PEFT folder to write; must not exist.")],
    alpha: Annotated[
        float | None, typer.Option(help="The alpha of training, which the file does not hold.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder with its config.json [default: resources/models/MODEL]"),
    ] = None,
    fused: Annotated[
        str | None,
        typer.Option(help="Of a fused layer, the matrices with adapters, as in q+v."),
    ] = None,
) -> None:
    """Turn an adapter saved by loralib (microsoft/LoRA) into a PEFT folder, and say what it holds.

    The file is read without running any code in it. A file with missing layers, wrong shapes,
    unknown names or values that are not finite is refused, and nothing is written. If loralib's
    MergedLinear made it, as in GPT-2, `--fused` says which matrices have adapters; the shapes say
    it if all have.

    Example: `loraudit import roberta_base_lora_mnli.bin --alpha 16 --model roberta-base --out mnli`
    """
    from loraudit.studies.entry_files import load_model
    from loraudit.studies.expand import parse_targets

    entry = load_model(model)
    asked = parse_targets(fused, entry) if fused else ()

    from loraudit.adapters.loralib_file import import_file

    adapter = import_file(file, alpha, entry, base or Path("resources/models", model), out, asked)
    rows = [("file", str(file)), *adapter.rows(), ("alpha", f"{alpha:g} (as given)")]
    _print({}, False, [("found", ["what", "value"], rows)])
    typer.echo(f"wrote {out}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run: results/STUDY/runs/.../sSEED.")],
    out: Annotated[Path, typer.Option(help="The PEFT folder to write; must not exist.")],
    licence: Annotated[str, typer.Option(help="The adapter's licence.")] = "unknown",
    base_model: Annotated[
        str | None, typer.Option(help="The base model's hub name [default: the run's]")
    ] = None,
    base_licence: Annotated[str, typer.Option(help="The base model's licence.")] = "unknown",
    data_licence: Annotated[str, typer.Option(help="The data's licence.")] = "unknown",
    study_folder: Annotated[
        Path | None, typer.Option(help="results/STUDY; the card then shows all seeds' scores.")
    ] = None,
) -> None:
    """Write a run's adapter and head as a PEFT folder with a model card and the run's spec.

    Example: `loraudit export results/quickstart/runs/snippets/minilm/lora-r8-q+v/s0 --out mine`
    """
    from loraudit.report.model_card import export_run

    licences = {"adapter": licence, "base": base_licence, "data": data_licence}
    spec = export_run(run, out, licences, study_folder, base_model).spec
    typer.echo(f"wrote {out}")
    if spec.base_bits:
        typer.echo(
            f"note: the adapter is right only on its base in {spec.base_bits} bits, which "
            f"{out}/README.md says how to make; on the unquantised model it gives other outputs"
        )


@app.command()
def crosscheck(
    spec: Annotated[
        Path | None, typer.Argument(help="A run's spec.json; otherwise give --study and --cell.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="A study's name or file.")] = None,
    cell: Annotated[
        str | None, typer.Option(help="A cell of the study: TASK/MODEL/rRANK-TARGETS.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Folder of tokens [default: resources/tokens/TASK/MODEL-LENGTH]"),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the model [default: resources/models/MODEL]")
    ] = None,
) -> None:
    """Compare our LoRA with PEFT's on real rows, and single layers with loralib's too.

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
    cells = [
        tuple(
            f"{row[name]:.3g}" if name in ("difference", "tolerance") else str(row[name])
            for name in columns
        )
        for row in rows
    ]
    _print({}, False, [("cross-check", columns, cells)])
    check.require_agreement(rows, cell or str(spec))


@app.command("add-task")
def add_task(
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    folder: Annotated[str | None, typer.Option(help=FOLDER)] = None,
    hub: Hub = None,
    revision: Revision = None,
    wheel: Wheel = None,
    sha256: Sha256 = None,
    path: Annotated[str | None, typer.Option(help="Path of the table in the wheel.")] = None,
    config: Annotated[
        str | None, typer.Option(help="The configuration, if the data have several.")
    ] = None,
    text: Annotated[
        list[str], typer.Option(help="A text column. Give the option twice for pairs.")
    ] = [],  # noqa: B006
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    rating: Annotated[
        str | None,
        typer.Option(help="Make labels and splits: COLUMN,NEUTRAL_BELOW,VALIDATION_ROWS"),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names in label order, by commas; empty for numbers.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="By commas: accuracy, f1, matthews, pearson, spearman.")
    ] = None,
    headline: Annotated[
        str | None, typer.Option(help="The main metric [default: the first]")
    ] = None,
    train_split: Annotated[str, typer.Option(help="Its name in the source.")] = "train",
    validation_split: Annotated[str, typer.Option(help="Its name in the source.")] = "validation",
    dry_run: DryRun = False,
) -> None:
    """Add a task to config/tasks.yaml after reading some rows and checking labels and metrics.

    On a terminal it asks for what no option says. Comments in the file stay. If anything is wrong,
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
    if not all(fields["text"]):
        raise Misuse(f"text: {fields['text']}: expected names of columns, got an empty one")
    if len(set(fields["text"])) < len(fields["text"]):
        raise Misuse(f"text: {fields['text']}: the same column twice")
    if rating is None:
        fields["label"] = _asked(label, "label", "The label's column", "label")
    else:
        fields["rating"] = wizard.rating(rating)
    named = _listed(_asked(classes, "classes", "Classes in label order (empty: a number)", ""))
    if len(set(named)) < len(named):
        raise Misuse(f"classes: {named}: the same name twice")
    fields |= {"classes": named} if named else {}
    fields["metrics"] = _listed(
        _asked(metrics, "metrics", "Metrics, by commas", "accuracy" if named else "pearson")
    )
    if not fields["metrics"]:
        raise Misuse(f"metrics: {metrics!r}: expected one or more names, by commas")
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
        str | None, typer.Option(help="With config.json, model.safetensors and tokenizer files.")
    ] = None,
    hub: Hub = None,
    revision: Revision = None,
    wheel: Wheel = None,
    sha256: Sha256 = None,
    path: Annotated[
        str | None, typer.Option(help="Path of the model's folder in the wheel.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="A family of config/models.yaml [default: by model type]")
    ] = None,
    module: Annotated[
        list[str], typer.Option(metavar="MATRIX=NAME", help="Without --family: q=encoder.*.query")
    ] = [],  # noqa: B006
    head: Annotated[list[str], typer.Option(help="Without --family: a module of the head.")] = [],  # noqa: B006
    output: Annotated[
        str | None, typer.Option(help="The output layer, if not the last --head.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Add a model to config/models.yaml after training one step with LoRA on all its matrices.

    The step is made by our code and by PEFT. A model whose type has no family is looked at: its
    linear layers are told by their names, and shown.

    On a terminal it asks for what no option says. Comments in the file stay. If anything is wrong,
    nothing is written.

    Example: `loraudit add-model --name my-bert --folder /models/my-bert`
    """
    from loraudit.tools import wizard

    name = _asked(name, "name", "The model's name")
    folder = folder if hub or wheel else _asked(folder, "folder", "Folder of the model")
    more = {"sha256": sha256, "path": path, "revision": revision}
    fields: dict = {"source": wizard.source(wheel, folder, hub, **more)}
    modules = _parsed(module, "module", "q=encoder.*.query")
    given = {"family": family, "modules": modules or None, "head": head or None}
    given["output"] = output
    fields |= {key: value for key, value in given.items() if value is not None}
    _online(hub)
    _written(wizard.try_model(name, fields), f"model={name}", dry_run)


def _asked(value: str | None, option: str, question: str, usual: str | None = None) -> str:
    """Return an option's value. If it was not given, ask on a terminal, else take the usual one."""
    if value is not None:
        return value
    if sys.stdin.isatty():
        return typer.prompt(question, default=usual)
    if usual is not None:
        return usual
    raise Misuse(f"--{option} is missing (on a terminal you would be asked for it)")


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _online(hub: str | None) -> None:
    if hub is not None:
        os.environ.pop("HF_HUB_OFFLINE", None)  # before the hub's library is imported


def _written(tried, key: str, dry_run: bool) -> None:
    """Show what a trial saw, and write its entry unless this is a dry run."""
    _print({}, False, [("tried", ["what", "found"], tried.seen)])
    typer.echo(tried.entry)
    if dry_run:
        typer.echo(f"nothing written to {tried.path} (--dry-run)")
        return
    tried.write()
    typer.echo(f"added to {tried.path}; run it with `snakemake --cores 2 --config {key}`")


def _asked_spec(path: Path | None, study: str | None, cell: str | None):
    """Return the spec of a file, or of a study's cell."""
    from loraudit.studies.expand import load_configured
    from loraudit.studies.spec import RunSpec
    from loraudit.studies.values import validated

    if (path is None) == (study is None) or (study is None) != (cell is None):
        raise Misuse("give either a spec.json or both --study and --cell")
    if path is not None:
        return validated(RunSpec, _json(path), str(path))
    cells = load_configured({**paths.configuration(), "study": study}).cells()
    if cell not in cells:
        raise unknown("cell", cell, cells)
    return cells[cell]


def _json(path: Path) -> dict:
    from loraudit.base.files import read_json

    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from None


def _fetched(folder: Path, what: str) -> Path:
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{what}: nothing fetched in {folder} (manifest.json is missing); "
            f"`snakemake --cores 1 {folder}/manifest.json --config ...` fetches it (task=, model= "
            "or study= must name it), or give the folder"
        )
    return folder


def _config(given: list[str]) -> dict:
    """Return the keys of config/config.yaml, overridden by the KEY=VALUE that were given."""
    from loraudit.studies.study_file import Config

    values = _parsed(given)
    for key in values:
        if key not in Config.model_fields:
            raise Misuse(str(unknown("config", key, Config.model_fields)))
    return {**paths.configuration(), **values}


def _parsed(given: list[str], option: str = "config", example: str = "task=mrpc") -> dict:
    """Return what an option says as KEY=VALUE, several times."""
    import yaml

    values = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise Misuse(f"{option}: {item!r}: expected KEY=VALUE, such as {example}")
        if key in values:
            raise Misuse(f"{option}: {item!r}: {key} is given twice")
        try:
            values[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a day that no month has
            why = getattr(error, "problem", None) or error
            raise Misuse(f"{option}: {item!r}: the value can't be read as YAML: {why}") from None
    return values


def _print(answer: object, as_json: bool, sections=(), sentences=()) -> None:
    """Print an answer as JSON, or else its tables and then its sentences."""
    from loraudit.base.terminal import print_json, say, show

    if as_json:
        print_json(answer)
        return
    for title, columns, rows in sections:
        show(title, columns, rows)
    say(sentences)
