"""Which adapters are set side by side."""

import torch

from loraudit.adapters import inject
from loraudit.analysis.section7_runs import (
    lora_runs,
    rank_pairs,
    rank_pairs_by_seed,
    seed_pairs,
    weight_runs,
)
from loraudit.studies.names import run_id
from loraudit.studies.study import Run, Study
from tiny import make_spec, tiny_model


def study(*cells: tuple[str, int, int, str]) -> Study:
    """Make a study of (method, rank, seed, label)."""
    runs = []
    for method, rank, seed, label in cells:
        spec = make_spec(method=method, rank=rank, seed=seed)
        runs.append(Run(id=run_id(spec, label), label=label, spec=spec))
    return Study(name="s", question="q", runs=tuple(runs))


def names(pairs) -> list[tuple]:
    return [tuple((run.spec.lora.rank, run.spec.seed, run.label) for run in pair) for pair in pairs]


def test_the_smallest_and_largest_rank_meet_at_different_seeds():
    made = study(*[("lora", r, s, "") for r, s in ((8, 2), (8, 1), (4, 0), (1, 1), (1, 2))])
    assert names(rank_pairs(made)) == [((1, 2, ""), (8, 1, "")), ((1, 1, ""), (8, 2, ""))]
    assert names(seed_pairs(made)) == [((8, 1, ""), (8, 2, ""))]
    assert names([weight_runs(made)]) == [((8, 1, ""),)]


def test_three_pairs_are_drawn_of_many_seeds_and_no_run_of_two_ranks_twice():
    cells = [("lora", rank, seed, "") for rank in (1, 8) for seed in range(5)]
    pairs = rank_pairs(study(*cells))
    assert len(pairs) == len({run.id for pair in pairs for run in pair}) / 2 == 3
    assert all(one.spec.seed != two.spec.seed for one, two in pairs)
    seeds = [(one.spec.seed, two.spec.seed) for one, two in seed_pairs(study(*cells))]
    assert seeds == [(0, 1), (0, 2), (1, 2)]


def test_ranks_whose_seeds_overlap_in_one_are_paired_at_others():
    made = study(("lora", 1, 0, ""), ("lora", 1, 1, ""), ("lora", 8, 1, ""))
    assert names(rank_pairs(made)) == [((1, 0, ""), (8, 1, ""))]


def test_all_pairs_of_different_seeds_are_compared_where_both_ranks_have_three():
    cells = [("lora", rank, seed, "") for rank in (1, 4, 8) for seed in (0, 1, 2)]
    found = names(rank_pairs_by_seed(study(*cells, ("lora", 8, 3, ""))))
    wanted = [(i, j) for i in range(3) for j in range(3) if i != j]
    assert found == [((1, i, ""), (8, j, "")) for i, j in wanted]
    assert rank_pairs_by_seed(study(*(one for one in cells if one[2] < 2))) == []
    assert rank_pairs_by_seed(study(*(one for one in cells if one[1] == 8))) == []


def test_groups_are_apart_by_label_and_peft_runs_are_left_out():
    made = study(("lora", 1, 0, "a"), ("lora", 8, 0, "b"), ("peft", 8, 0, "a"), ("peft", 8, 1, "b"))
    assert rank_pairs(made) == seed_pairs(made) == []
    assert len(lora_runs(made)) == 2
    assert names([weight_runs(made)]) == [((1, 0, "a"), (8, 0, "b"))]


def test_ranks_of_one_seed_are_still_a_pair():
    made = study(("lora", 8, 0, ""), ("lora", 1, 0, ""))
    assert names(rank_pairs(made)) == [((1, 0, ""), (8, 0, ""))]


def test_equal_seeds_start_in_a_shared_direction():
    """Why pairs of ranks are taken from different seeds."""
    starts = [
        inject.lora_layers(inject.apply(tiny_model(), make_spec(rank=rank, seed=3)))
        for rank in (1, 8)
    ]
    for small, large in zip(*(layers.values() for layers in starts), strict=True):
        assert torch.allclose(small.lora_A[0], large.lora_A[0])


def test_runs_on_a_base_of_few_bits_are_left_out():
    """Their update stands beside the packed weights, so W + BA is not what they computed."""
    made = study(("lora", 8, 0, ""), ("lora", 8, 1, ""))
    packed = Run(id="t/m/packed/s0", label="", spec=make_spec(base_bits=4))
    both = made.model_copy(update={"runs": (packed, *made.runs)})
    assert lora_runs(both) == list(made.runs)


def test_a_study_without_lora_has_none():
    made = study(("peft", 8, 0, ""))
    assert lora_runs(made) == rank_pairs(made) == seed_pairs(made) == weight_runs(made) == []
