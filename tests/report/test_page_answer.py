"""What stands first on a page: effects with intervals, n and verdict, and doubts."""

import re

import pandas as pd

import tiny_tables
from loraudit.report.page_answer import answer, belief, best_cells, rows_fact
from tiny_claims import verdict_table
from tiny_study import small_study


def runs(task: str = "t", **scores: list[float]) -> pd.DataFrame:
    """Make runs of cells lora, peft, full and head, a score per seed each."""
    rows = []
    for name, values in scores.items():
        method, _, rank = name.partition("_")
        for seed, score in enumerate(values):
            cell = {"method": method, "rank": float(rank) if rank else float("nan")}
            cell |= {"targets": "q+v" if rank else None, "label": "", "metric": "accuracy"}
            cell |= {"run": f"{task}/m/{name}/s{seed}", "seed": seed, "last": score, "best": score}
            rows.append({"task": task, "model": "m", **cell})
    made = pd.DataFrame(rows).assign(seconds=60.0, rows_train=1000, rows_validation=400)
    return made.assign(best_collapsed=False, last_collapsed=False)


CELLS = {
    "lora_1": [0.80, 0.81, 0.82],
    "lora_8": [0.84, 0.85, 0.86],
    "peft_8": [0.84, 0.85, 0.87],
    "full": [0.85, 0.86, 0.84],
    "head": [0.60, 0.61, 0.62],
}


def told(**changes) -> dict[str, pd.DataFrame]:
    names = ("crosscheck", "verdicts", "switches", "pairs", "missing", "twins", "claims")
    return {"runs": runs(**CELLS), **dict.fromkeys(names, pd.DataFrame()), **changes}


def test_the_best_adapter_stands_beside_full_fine_tuning_and_the_head():
    text = best_cells(runs(**CELLS)).text
    assert text.startswith("The best adapter is LoRA (ours) r8 q+v, 85.0 ± 1.0 % accuracy (n = 3;")
    assert "the best of 2 by these very scores, so optimistic" in text  # a twin is no other cell
    number = r"[+-]\d+\.\d"
    pattern = rf"\): ({number}) points \[({number}), ({number})\] beside full fine-tuning \(open\)"
    found = re.search(pattern, text)
    assert found and float(found[1]) == 0.0 and float(found[2]) < 0 < float(found[3])
    assert re.search(rf"\+24\.0 points \[{number}, {number}\] beside head only \(higher\)\.$", text)


def test_the_best_adapter_stands_beside_a_probe_that_is_better_than_the_head():
    cells = CELLS | {"probe": [0.83, 0.83, 0.83]}
    text = best_cells(runs(**cells)).text
    number = r"[+-]\d+\.\d"
    found = re.search(rf" and ({number}) points \[{number}, {number}\] beside ([\w ,()]+)\.$", text)
    assert found and float(found[1]) == 2.0 and "probe" in found[2]
    assert all(text.count(f"beside {name}") == 1 for name in ("full fine-tuning", "head only"))


def test_full_fine_tuning_whose_weights_are_kept_is_a_baseline_too():
    """The answer of a study with `full_saved` left full fine-tuning out."""
    made = runs(**CELLS)
    made["method"] = made.method.replace("full", "full_saved")
    assert "beside full fine-tuning (saved) (open)" in best_cells(made).text


def test_the_answer_of_an_untuned_study_says_so_beside_what_it_found():
    text = best_cells(runs(**CELLS), untuned=True).text
    assert text.endswith("beside head only (higher, untuned).") and "(open)" in text
    assert "untuned" not in best_cells(runs(**CELLS)).text
    assert any("(higher, untuned)" in one.text for one in answer(small_study(), told()))


def test_the_largest_switch_has_its_finding_and_a_p_of_equality_says_so():
    """ "+0.4 points, adjusted p 0.046" read as a difference where equality was asked and shown."""
    row = {"task": "t", "model": "m", "metric": "accuracy", "switch": "fast path", "n": 5}
    row |= {"epoch": "last", "difference": 0.004, "low": -0.003, "high": 0.0098, "p_holm": 0.046}
    row |= {"asks": "equivalence", "margin": 0.01, "collapsed_base": 0, "collapsed": 0}
    (said, *_) = answer(small_study(), told(switches=pd.DataFrame([row])))
    assert said.text == (
        "Largest effect: fast path on t (m), +0.4 points [-0.3, +1.0] (last epoch, n=5, equal "
        "within 1 point, Holm-adjusted p of equality 0.046)."
    )
    asked = row | {"asks": "difference", "p_holm": 0.2}
    (said, *_) = answer(small_study(), told(switches=pd.DataFrame([asked])))
    assert "n=5, open, Holm-adjusted p 0.200)" in said.text


def chose(rate: float, rank: int) -> dict:
    """Make a row of the table of tuning."""
    cell = {"method": "lora", "rank": rank, "targets": "q+v", "label": ""}
    return {"task": "t", "model": "m", **cell, "chosen": f'{{"learning_rate": {rate}}}'}


def test_a_study_that_asks_nothing_else_says_which_values_its_cells_chose():
    rows = pd.DataFrame([chose(0.002, 64), *(chose(0.004, rank) for rank in (1, 4, 8))])
    first = answer(small_study(), told(tuning=rows))[0].text
    assert first == (
        "Of the values that were tried, held-out rows chose learning rate 0.004 for 3 cells; "
        "learning rate 0.002 for LoRA (ours) r64 q+v."
    )
    both = told(tuning=pd.concat([rows[:1], rows[:1].assign(task="u")]))
    text = answer(small_study(), both)[0].text
    assert "for LoRA (ours) r64 q+v on t (m) and LoRA (ours) r64 q+v on u (m)." in text
    asked = told(tuning=rows, claims=verdict_table().assign(listed=True))
    assert not any("held-out rows chose" in one.text for one in answer(small_study(), asked))


def contrasted(right: str, difference: float, p: float, **fields) -> dict:
    """Make a row of the table of pairs, of lora-r8-q+v and another variant."""
    return {
        **{"task": "t", "model": "m", "metric": "accuracy", "epoch": "last"},
        **{"left": "lora r8 q+v", "right": right, "left_variant": "lora-r8-q+v"},
        **{"right_variant": right, "asks": "difference", "margin": 0.01, "role": "test"},
        **{"n_left": 5, "n_right": 5, "difference": difference, "p_holm": p},
        **{"low": difference - 0.01, "high": difference + 0.01, **fields},
    }


def test_the_contrasts_that_a_study_asks_for_are_told_what_shows_something_first():
    pairs = [contrasted("head", 0.004, 0.3), contrasted("full", -0.02, 0.001)]
    asked = tuple({"left": "lora-r8-q+v", "right": row["right"]} for row in pairs)
    study = small_study(contrasts=asked)
    texts = [one.text for one in answer(study, told(pairs=pd.DataFrame(pairs)))]
    assert (
        "The 2 differences that the study asks about (1 open, 1 lower): LoRA (ours) r8 q+v "
        "less full fine-tuning, -2.0 points [-3.0, -1.0] (n = 5, lower); LoRA (ours) r8 q+v less "
        "head only, +0.4 points [-0.6, +1.4] (n = 5, open)."
    ) in texts
    (said,) = [
        one.text
        for one in answer(small_study(contrasts=asked[:1]), told(pairs=pd.DataFrame(pairs[:1])))
        if "asks about" in one.text
    ]
    start = "The difference that the study asks about: LoRA (ours) r8 q+v less head only, +0.4"
    assert said.startswith(start)
    other = answer(small_study(), told(pairs=pd.DataFrame(pairs)))
    assert not any("asks about" in one.text for one in other)


def test_many_contrasts_are_cut_and_those_of_several_tasks_name_theirs():
    pairs = [contrasted(f"x{n}", 0.0, 0.5, task=task) for n in (1, 2) for task in "tu"]
    asked = tuple({"left": "lora-r8-q+v", "right": f"x{n}"} for n in (1, 2))
    texts = [
        one.text for one in answer(small_study(contrasts=asked), told(pairs=pd.DataFrame(pairs)))
    ]
    (said,) = [text for text in texts if "asks about" in text]
    assert (
        "(4 open): t (m): LoRA (ours) r8 q+v less x1, +0.0 points" in said
        and said.count("less") == 3
    )
    assert said.endswith("; the others are in the table of methods compared.")


def test_an_effect_without_a_unit_is_named_with_its_two_sides():
    named = {"unit": "number", "quantity": "amplification", "part": "lora r8 minus lora r1"}
    claims = verdict_table().head(1).assign(listed=True, **named)
    (said,) = answer(small_study(), told(claims=claims))[0].verdicts
    assert "median over layers; LoRA (ours) r8 minus LoRA (ours) r1): " in said.text


def test_collapsed_runs_of_the_best_adapter_are_counted_beside_its_score():
    sick = runs(**CELLS)
    sick["best_collapsed"] = sick.run == "t/m/lora_8/s1"
    assert "1 of 3 runs collapsed" in best_cells(sick).text


def test_one_run_is_compared_with_nothing_and_several_tasks_are_named():
    text = best_cells(runs(lora_8=[0.8], full=[0.9])).text
    assert "not compared with full fine-tuning, which takes two runs of both" in text
    both = pd.concat([runs(**CELLS), runs(task="u", **CELLS)], ignore_index=True)
    text = best_cells(both).text
    assert text.startswith("Best adapters: t (m), LoRA") and "; u (m), LoRA" in text
    assert best_cells(runs(lora_8=[0.8, 0.9])).text == ""


def test_the_answer_names_claims_with_effect_n_and_verdict_the_decided_first():
    claims = verdict_table().assign(listed=True)
    first = answer(small_study(), told(claims=claims))[0]
    assert first.text.startswith(f"Of the {len(claims)} claims that the study asks about: ")
    words = [one.word.split()[0].rstrip(",") for one in first.verdicts]
    order = ["contradicted", "supported", "undecided", "not"]
    assert len(words) == 5 and words == sorted(words, key=order.index)
    assert all(re.search(r": .*, n = \d+$", one.text) for one in first.verdicts)
    assert answer(small_study(), told(claims=claims.assign(listed=False)))[0].text[:8] == "The best"


def test_claims_of_several_tasks_name_theirs():
    claims = verdict_table().head(1).assign(listed=True, task="t", model="m")
    (alone,) = answer(small_study(), told(claims=claims))[0].verdicts
    assert not alone.text.startswith("t (m): ")
    claims = pd.concat([claims, claims.assign(task="u")])
    said = [one.text for one in answer(small_study(), told(claims=claims))[0].verdicts]
    assert [text[:7] for text in said] == ["t (m): ", "u (m): "]


def test_the_answer_tells_of_twins_and_published_numbers():
    twins = pd.DataFrame({"equal_share": [1.0, 0.99]})
    pairs = pd.DataFrame({"role": ["twins", "test"], "epoch": "best", "difference": [0.001, 0.2],
                          "n_left": 3})  # fmt: skip
    checks = tiny_tables.checks().assign(ok=True)
    published = tiny_tables.compared().assign(collapsed=0)
    tables = told(twins=twins, pairs=pairs, crosscheck=checks, verdicts=published)
    said = answer(small_study(), tables)
    texts = [one.text for one in said]
    assert "1 reproduced, 1 not reproduced, 1 undecided, 1 not comparable" in texts[0]
    assert "-2.00 points [-2.50, -1.50], n = 5, not reproduced" in texts[0]
    assert "in 1 of 2 pairs of runs (at least 99.0 % in the others)" in texts[-1]
    assert "differ by +0.1 to +0.1 points (n = 3)" in texts[-1]
    assert texts[-1].endswith("4 of 4 cross-checks are in tolerance.")


def test_belief_names_what_speaks_against_the_answer():
    sick = runs(**CELLS)
    sick["best_collapsed"] = sick.run == "t/m/lora_8/s1"
    lost = pd.DataFrame(
        {"what": ["run"], "name": ["t/m/x/s0"], "known": ["error: the loss is nan"]}
    )
    said = dict(belief(small_study(), told(runs=sick, missing=lost), {"Xeon (family 6)": 15}))
    assert said["Seeds"].startswith("3 per cell, 5 cells. Few")
    assert "t/m/lora_8/s1" in said["Sick runs"] and "t/m/x/s0" in said["Sick runs"]
    assert said["Machine"] == "Xeon, 15 minutes of run time in all."
    assert said["Tuned"].startswith("Untuned: ") and "edge" not in said["Tuned"]
    own = sick.assign(at_edge=["learning_rate", *[""] * (len(sick) - 1)])
    edge = dict(belief(small_study(), told(runs=own), {}))["Tuned"]
    assert "chosen values of 1 of 5 cells lie at the edge of what was tried" in edge
    well = dict(belief(small_study(), told(), {}))
    here = "All 4 runs of the study are here. No run collapsed and none failed."
    assert well["Sick runs"] == here
    verdicts = dict(belief(small_study(), told(verdicts=tiny_tables.compared()), {}))
    assert verdicts["Comparable"] == "3 of 4 rows are comparable with published numbers."


def test_the_sampling_error_of_the_validation_rows_is_binomial():
    half = runs(lora_8=[0.5, 0.5]).assign(rows_validation=2500)
    assert "an accuracy of 50 % on 2,500 rows is 1.0 points" in rows_fact(half)
    assert "standard error" not in rows_fact(half.assign(metric="matthews"))
    many = runs(task="u", lora_8=[0.9, 0.9, 0.9]).assign(rows_validation=10_000)
    assert "an accuracy of 50 % on 2,500 rows is 1.0 points" in rows_fact(pd.concat([half, many]))
