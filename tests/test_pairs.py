"""Which adapters are set side by side."""

from conftest import make_spec
from loraudit.pairs import lora_runs, rank_pairs, seed_pairs, weight_runs
from loraudit.study import Run, Study, run_id


def study(*cells: tuple[str, int, int, str]) -> Study:
    """Make a study of (method, rank, seed, label)."""
    runs = []
    for method, rank, seed, label in cells:
        spec = make_spec(method=method, rank=rank, seed=seed)
        runs.append(Run(id=run_id(spec, label), label=label, spec=spec))
    return Study(name="s", question="q", runs=tuple(runs))


def names(pairs) -> list[tuple]:
    return [tuple((run.spec.rank, run.spec.seed, run.label) for run in pair) for pair in pairs]


def test_the_smallest_and_largest_rank_meet_at_a_seed_that_both_have():
    made = study(*[("lora", r, s, "") for r, s in ((8, 2), (8, 1), (4, 0), (1, 0), (1, 2))])
    assert names(rank_pairs(made)) == [((1, 2, ""), (8, 2, ""))]
    assert names(seed_pairs(made)) == [((8, 1, ""), (8, 2, ""))]
    assert names([weight_runs(made)]) == [((8, 1, ""),)]


def test_groups_are_apart_by_label_and_peft_runs_are_left_out():
    made = study(("lora", 1, 0, "a"), ("lora", 8, 0, "b"), ("peft", 8, 0, "a"), ("peft", 8, 1, "b"))
    assert rank_pairs(made) == seed_pairs(made) == []
    assert len(lora_runs(made)) == 2
    assert names([weight_runs(made)]) == [((1, 0, "a"), (8, 0, "b"))]


def test_ranks_without_a_common_seed_make_no_pair():
    assert rank_pairs(study(("lora", 1, 0, ""), ("lora", 8, 1, ""))) == []


def test_a_study_without_lora_has_none():
    made = study(("peft", 8, 0, ""))
    assert lora_runs(made) == rank_pairs(made) == seed_pairs(made) == weight_runs(made) == []
