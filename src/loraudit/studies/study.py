"""What a study is: a question, the named runs that answer it, and what they are compared with."""

from collections import Counter
from pathlib import Path

from loraudit.base.errors import UserError
from loraudit.base.files import read_json
from loraudit.studies.known import Contamination, SharedTexts
from loraudit.studies.names import cell_id
from loraudit.studies.spec import RunSpec
from loraudit.studies.study_file import Asks, Contrast, Margin, Reading
from loraudit.studies.values import Count, Frozen, validated


class Run(Frozen):
    """A named run: `id` is its folder below results/<study>/runs/."""

    id: str
    label: str
    spec: RunSpec


class Switch(Frozen):
    """One switch of an ablation: the label of its runs, its name, and the fields it changes.

    `asks` says whether a difference to the base is to be shown, or that there is none that counts.
    """

    label: str
    name: str
    changes: dict
    asks: Asks = "difference"


BASE = "base"
"""Label of the runs that an ablation's switches are compared with."""


class Study(Frozen):
    """A question and the runs that answer it.

    `tuning` are runs that are not reported: the values of other runs' tuned fields are chosen from
    them. `protocol` says where the settings are from, `not_run` what that source did and no run
    does. `compare` names published tables (config/reference). `margin` is the largest difference,
    as a fraction, that still counts as equal; None leaves it to the published number. `reading` is
    what a published ± is taken to mean if its source does not say. `contrasts` are the comparisons
    of variants that the question asks for; if there are none, each adapter is compared with each
    baseline. `settings_from` names the study whose `tune` chose the settings that this one
    fixes, if one did. `claims` names claims (config/claims) that the question asks about.
    `language_loss` is how many rows of text saved runs are read on as language models; None: none.
    `contaminations` and `shared_texts` are what models.yaml and tasks.yaml say of the study's
    models and tasks (known.py).
    """

    name: str
    question: str
    runs: tuple[Run, ...]
    protocol: str = ""
    not_run: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    margin: Margin | None = None
    reading: Reading = "sd"
    switches: tuple[Switch, ...] = ()
    tuning: tuple[Run, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    settings_from: str | None = None
    contaminations: tuple[Contamination, ...] = ()
    shared_texts: tuple[SharedTexts, ...] = ()
    claims: tuple[str, ...] = ()
    language_loss: Count | None = None

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs that tune, then those that are reported, which may wait for them."""
        return self.tuning + self.runs

    def cells(self) -> dict[str, RunSpec]:
        """Return {cross-check's name: spec}; runs that differ in seed or method alone share one.

        The spec is that of the first of these runs.
        """
        specs: dict[str, RunSpec] = {}
        for run in self.runs:
            if run.spec.crosschecked:
                specs.setdefault(cell_id(run.spec, run.label), run.spec)
        return specs

    def chain(self, run: str) -> list[str]:
        """Return the names of a run and of those before it in its chain of warm starts."""
        specs = {one.id: one.spec for one in self.all_runs}
        names = [run]
        while start := specs[names[-1]].warm_start:
            names.append(start.run)
        return names

    def language_runs(self) -> list[Run]:
        """Return the runs that are read as language models: those whose base is another after them.

        Their weights, or their plain matrices A and B, are saved.
        """
        return [run for run in self.runs if self.language_loss and _changes_the_base(run.spec)]

    def cautions(self) -> list[str]:
        """Return what is known beforehand that changes what the results mean, as sentences."""
        sentences = [known.sentence() for known in self.contaminations]
        return sentences + [known.sentence() for known in self.shared_texts]

    def depths(self) -> dict[str, int]:
        """Return {run: how many runs it has to wait for, one after the other, by warm starts}."""
        runs = {run.id: run for run in self.all_runs}
        depths: dict[str, int] = {}

        def depth(name: str) -> int:
            if name not in depths:
                start = runs[name].spec.warm_start
                depths[name] = depth(start.run) + 1 if start else 0
            return depths[name]

        return {name: depth(name) for name in runs}

    def describe(self) -> str:
        """Return one line that counts the study's runs by method, and its cross-checks."""
        counts = Counter(run.spec.method for run in self.runs)
        methods = ", ".join(f"{count} {method}" for method, count in counts.items())
        warm = sum(run.spec.warm_start is not None for run in self.runs)
        started = f"; {warm} of them start from another run's adapter" if warm else ""
        checks = f"{len(self.cells())} cross-checks"
        tuning = f", after {len(self.tuning)} runs that tune" if self.tuning else ""
        return f"{len(self.runs)} runs ({methods}{started}){tuning}, {checks}"


def _changes_the_base(spec: RunSpec) -> bool:
    """Tell whether what a run has saved can be put on its base, under another head."""
    facts = spec.facts
    if spec.adapter is None:
        return facts.trains == "weights" and facts.saves
    return not spec.adapter.peft and not facts.masks_ranks  # PEFT's other methods have other files


def read_study(path: Path | str) -> Study:
    """Read a study.json.

    Raises:
        UserError: the file holds no study.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
    return validated(Study, content, str(path))
