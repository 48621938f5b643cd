"""Each rule reruns by an edit of what it runs and of nothing else: its digest's closure."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loraudit.base.code_digest import _module_file, closure
from loraudit.report.figure_registry import FIGURES
from loraudit.report.table_registry import TABLES, early_tables, late_tables, table_modules
from loraudit.studies.methods import METHODS

TEXT = "\n".join(file.read_text() for file in sorted(Path("workflow/rules").glob("*.smk")))

RULES: dict[str, str] = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", TEXT, re.M | re.S))
"""{rule: what stands below its name}."""

LOOPED = re.compile(r"^    rule:\n +name:\n +f\"(\w+)_\{[^\n]*\n(.*?)(?=^\S|\Z)", re.M | re.S)
LOOPS: dict[str, str] = dict(LOOPED.findall(TEXT))
"""Rules that a loop makes, by what their names have in common."""

RULES |= LOOPS

SCRIPTS = {name: Path(re.findall(r"scripts/\w+\.py", text)[-1]) for name, text in RULES.items()}
"""{rule: its program}, the last one that the rule names: training is started by another."""

PLAN = {"base", "studies"}
SCORED = {*PLAN, "analysis"}
PACKAGES = {
    "study": PLAN,
    "fetch_model": {*PLAN, "data"},
    "fetch_task": {*PLAN, "data"},
    "tokenise": {"base", "data"},
    "train": {*PLAN, "data", "adapters", "training"},
    "train_packed": {*PLAN, "data", "adapters", "training"},
    "crosscheck": {*PLAN, "data", "adapters", "training", "crosscheck"},
    "forgetting": {*PLAN, "data", "adapters", "training"},
    "language_loss": {*PLAN, "data", "adapters", "training"},
    "collect": SCORED,
    "subspace": {*SCORED, "adapters"},
    "tables": {*SCORED, "report"},
    "figures": {*SCORED, "report"},
    "claims": {*SCORED, "report"},
    "report": {*SCORED, "report"},
    "partial": {*SCORED, "report", "adapters"},  # its list of products names section 7's too
    "published": {*SCORED, "report"},
}
"""The packages that a rule's modules may be of."""

OTHERS_WORK = {
    "fetch_model": {"data.fetch_task", "data.tokenise", "data.batches"},
    "fetch_task": {"data.fetch_model", "data.tokenise", "data.batches"},
    "tokenise": {"data.fetch_model", "data.fetch_task", "data.sources", "data.batches"},
    "train": {
        *("data.fetch_model", "data.fetch_task", "data.sources", "data.tokenise"),
        *("training.packing", "adapters.pack", "studies.packs"),
    },
    "train_packed": {"data.fetch_model", "data.tokenise", "studies.study", "studies.expand"},
    "crosscheck": {
        *("data.fetch_model", "data.fetch_task", "data.sources", "data.tokenise"),
        *("training.run", "training.loop", "training.checkpoint", "training.metrics"),
    },
    "forgetting": {"data.tokenise", "data.sources", "training.run", "training.methods.lora"},
    "language_loss": {"data.sources", "training.run", "training.methods.lora"},
    "collect": {"analysis.section7", "analysis.saved_updates", "analysis.verdicts"},
    "subspace": {
        *("analysis.collect", "analysis.statistics", "analysis.verdicts", "analysis.cost"),
        *("studies.expand", "studies.reference", "studies.record"),
        *("adapters.lora", "adapters.inject", "adapters.peft_twin", "adapters.base_model"),
    },
    "tables": {"analysis.section7", "analysis.collect", "report.figures", "report.page"},
    "claims": {"analysis.section7", "analysis.collect", "report.figures", "report.page"},
    "figures": {"analysis.section7", "analysis.collect", "report.page", "report.page_facts"},
}
"""Modules of those packages that a rule does not run and must not wait for."""

DRAWN = {figure.module for figure in FIGURES.values()}
NAMED = {
    "train": {method.module for method in METHODS.values()},
    "train_packed": {METHODS["lora"].module},
    "figures": DRAWN,
    "tables": table_modules(early_tables()),
    "claims": table_modules(late_tables()),
    "report": {*DRAWN, *table_modules(TABLES)},
    "partial": {*DRAWN, *table_modules(TABLES)},
}
"""Modules that a rule names when it runs, because entries of a table name them."""

LIGHT = (
    "study",
    "fetch_model",
    "fetch_task",
    "collect",
    "tables",
    "claims",
    "figures",
    "report",
    "published",
)
"""Rules without torch: they start in a second and run beside the training."""


def closure_of(rule: str) -> set[str]:
    """Return the modules behind a rule, for all its methods, figures or tables at once."""
    found = closure(SCRIPTS[rule], *NAMED.get(rule, ()))
    return {name.removeprefix("loraudit.") for name in found if name != "loraudit"}


def test_every_rule_with_a_program_is_spoken_of():
    assert set(SCRIPTS) == set(PACKAGES)
    assert len(re.findall(r"^ *(?:rule|checkpoint) +\w+:", TEXT, re.M)) == len(SCRIPTS) - len(LOOPS)
    assert len(re.findall(r"^ +rule:", TEXT, re.M)) == len(LOOPS) == 1


@pytest.mark.parametrize("rule", PACKAGES)
def test_a_rule_digests_no_module_of_anothers_work(rule):
    found = closure_of(rule)
    assert {name.split(".")[0] for name in found} == PACKAGES[rule]
    others = OTHERS_WORK.get(rule, set())
    assert not others & found
    assert all(_module_file(f"loraudit.{name}") for name in others), "a module was renamed"


def test_a_digest_in_the_rules_is_of_the_rules_own_program():
    for name, text in RULES.items():
        for script in re.findall(r'code_digest\(\s*"([^"]+)"', text):
            assert Path(script) == SCRIPTS[name], name


def test_what_reads_adapter_folders_needs_no_other_part_of_the_adapters():
    read = {name for name in closure_of("subspace") if name.startswith("adapters.")}
    assert read == {"adapters.peft_folder", "adapters.base_layers", "adapters.parts"}


def libraries(file: Path) -> set[str]:
    """Return the first names of what a file imports."""
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("rule", LIGHT)
def test_a_light_rule_imports_no_torch(rule):
    files = [_module_file(f"loraudit.{name}") for name in closure_of(rule)]
    used = set().union(libraries(SCRIPTS[rule]), *map(libraries, files))
    assert not used & {"torch", "peft", "transformers", "accelerate"}


def test_reading_the_rules_imports_nothing_heavy():
    """The Snakefile's imports run in every call of Snakemake, and in every job's process."""
    heavy = ("torch", "transformers", "peft", "pandas", "scipy", "statsmodels", "matplotlib")
    common = Path("workflow/rules/common.smk").read_text()
    imports = re.findall(r"^(?:from loraudit\S* import .*|import \w+)$", common, re.M)
    assert any("code_digest" in line for line in imports)
    code = "; ".join([*imports, "import sys", f"print({{*{heavy}}} & {{*sys.modules}} or 'none')"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
