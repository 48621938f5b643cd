"""How published numbers were made, and how far runs were made like them."""

import pytest

from loraudit.base.errors import UserError
from loraudit.studies.accounts import accounts, likeness, of_run
from loraudit.studies.expand import load_study
from loraudit.studies.reference import Published, load_all, select

NUMBERS = [number for _, numbers in load_all().values() for number in numbers]


def paper(task: str, table: str = "hu2022.table2", method: str = "lora") -> Published:
    numbers = [n for n in select((table,)) if (n.task, n.method) == (task, method)]
    return next(n for n in numbers if n.model == "roberta-base")


def runs_of(study: str, task: str, method: str = "lora") -> list[dict]:
    runs = load_study(f"config/studies/{study}.yaml").runs
    found = [r.spec for r in runs if (r.spec.task.name, r.spec.method) == (task, method)]
    return [of_run(found[0])]


def test_every_shipped_number_has_readable_accounts():
    assert sum(bool(accounts(number)) for number in NUMBERS) > 50


@pytest.mark.parametrize("task", ["sst2", "mrpc", "cola", "qnli"])
@pytest.mark.parametrize("study", ["paper-table2", "code-table2"])
def test_the_papers_protocol_and_its_codes_are_both_accounts_of_its_numbers(study, task):
    assert likeness(runs_of(study, task), accounts(paper(task))).word == "same"


def test_the_nearest_account_says_what_differs():
    found = likeness(runs_of("poster", "mrpc"), accounts(paper("mrpc")))
    assert found.word == "another"
    assert found.sentence == (
        "the number was made under another protocol (hu2022): epochs 30 (here 3), head trained "
        "(here frozen), alpha 8 (here 16), warm start from mnli's adapter (here none), "
        "max length 512 (here 128)"
    )


def test_the_posters_numbers_were_made_as_its_files_show():
    sst2 = accounts(paper("sst2", "poster2025.seeds"))
    assert likeness(runs_of("poster-as-run", "sst2"), sst2).word == "same"
    assert "alpha 8 (here 16)" in likeness(runs_of("poster", "sst2"), sst2).sentence


def test_what_a_protocol_assumes_is_said_of_no_number():
    stated = accounts(paper("sst2"))
    assert not {"weight_decay", "init_std"} & set(stated["hu2022"])
    assert stated["microsoft-lora"]["weight_decay"] == 0.1


def test_what_a_number_does_not_say_is_missed():
    (grid,) = [n for n in select(("poster2025.mnli_grid",)) if (n.rank, n.targets) == (8, "q+v")]
    found = likeness(runs_of("poster-mnli-grid", "mnli"), accounts(grid))
    assert (found.word, found.sentence) == ("partly stated", "not stated of the number: alpha")


def test_full_fine_tuning_is_of_another_paper():
    """Liu et al. 2019: ten epochs, beta2 0.98; its rates are not on record here."""
    full = accounts(paper("mrpc", method="full"))
    found = likeness(runs_of("paper-table2", "mrpc", "full"), full)
    assert found.word == "partly stated"
    assert found.sentence == "not stated of the number: learning rate, global batch, head"
    assert paper("mrpc", method="full").statistic == "median"


def test_a_number_without_an_account_says_so():
    (unknown, *_) = select(("others.gralora2025",))
    found = likeness(runs_of("paper-table2", "sst2"), accounts(unknown))
    assert (found.word, found.sentence) == ("not stated", "how the number was made is not stated")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": ("hu2021",)}, "protocol: 'hu2021' is not known; did you mean 'hu2022'"),
        ({"settings": {"epoch": 3}}, "settings: 'epoch' is not known; did you mean 'epochs'"),
        ({"unstated": ("alhpa",)}, "'alhpa' is not known; did you mean 'alpha'"),
    ],
)
def test_a_wrong_name_is_an_error(change, message):
    with pytest.raises(UserError, match=message):
        accounts(paper("sst2").model_copy(update=change))


def test_what_a_source_did_and_no_run_does_is_kept_with_the_study():
    study = load_study("config/studies/code-table2.yaml")
    assert any("epsilon before the bias correction" in sentence for sentence in study.not_run)
    assert load_study("config/studies/quickstart.yaml").not_run == ()


def test_what_our_own_account_leaves_out_is_told():
    """A run states all fields; scores that others made may not."""
    theirs = {"p": {"epochs": 3, "learning_rate": 1e-3, "global_batch": 16, "head": "trained"}}
    found = likeness([{"epochs": 3, "head": "trained"}], theirs)
    assert found.word == "partly stated"
    assert found.sentence == "not stated of our scores: learning rate, global batch"
