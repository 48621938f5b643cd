"""Cost per cell: bytes for ten tasks, time per step, memory."""

import numpy as np
import pandas as pd
import pytest

from loraudit.analysis.cost import PRICES, TASKS, clearly_differ, cost, pareto, without_twins
from loraudit.analysis.pooling import Cell, Spread, pooled, unpaired
from loraudit.report.tables import cost_table


def tidy() -> pd.DataFrame:
    common = {"task": "t", "model": "m", "label": "", "metric": "accuracy", "rows_train": 100}
    rows = [
        {**common, "method": "lora", "rank": 8, "targets": "q+v", "bytes_adapter": 3_500_000},
        {**common, "method": "full", "rank": None, "targets": None, "bytes_adapter": 0},
    ]
    return pd.DataFrame(rows).assign(
        bytes_checkpoint=500_000_000,
        parameters_adapter=[294_912, 0],
        parameters_head=592_130,
        parameters_trainable=[887_042, 125_000_000],
        parameters_model=125_000_000,
        steps=50,
        last_epoch=2,
        seconds_train=[10.0, 20.0],
        seconds=[15.0, 25.0],
        tokens_real=1000,
        tokens_padded=1500,
        peak_memory_mib=[900.0, 1800.0],
        peak_device_memory_mib=None,
    )


def test_ten_tasks_are_five_gigabytes_or_one_checkpoint_and_ten_adapters():
    """The poster's claim: ten fully tuned RoBERTa-base models take 5 GB."""
    lora, full = cost(tidy()).itertuples()
    assert TASKS == 10
    assert full.bytes_tasks == 5_000_000_000
    assert lora.bytes_tasks == 500_000_000 + 35_000_000
    assert (lora.bytes_task, full.bytes_task) == (3_500_000, 500_000_000)


def test_full_fine_tuning_whose_weights_are_kept_takes_a_checkpoint_for_each_task():
    _, full = cost(tidy().replace({"method": {"full": "full_saved"}})).itertuples()
    assert full.bytes_tasks == TASKS * full.bytes_task


def test_time_per_step_and_rows_per_second():
    lora, full = cost(tidy()).itertuples()
    assert (lora.seconds_step, full.seconds_step) == (0.2, 0.4)
    assert (lora.rows_second, full.rows_second) == (20.0, 10.0)
    assert lora.padded_share == pytest.approx(1.5)


def test_a_fit_that_takes_no_steps_has_no_time_of_one_and_is_on_no_front_of_time():
    """The probe's one fit stood among steps with 11 seconds, and squeezed all others together."""
    probe = tidy()[1:].assign(method="probe", seconds_train=5.0)
    runs = pd.concat([tidy(), probe], ignore_index=True).assign(last=0.8, best=0.8, seed=0)
    table = cost(runs)
    assert table.step.isna().tolist() == [False, False, True]
    assert list(cost_table(table)["time per step, ms"]) == ["200", "400", ""]
    front = pareto(runs).set_index("method").front_milliseconds_step
    assert front["lora"] == "on" and pd.isna(front["probe"])


def test_readers_see_units_and_no_empty_column():
    table = cost_table(cost(tidy()))
    assert list(table["disk for 10 tasks"]) == ["535.0 MB", "5.0 GB"]
    assert list(table["time per step, ms"]) == ["200", "400"]
    assert "on the GPU, MiB" not in table


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_beats_and_it_beats_the_rest(seed):
    random = np.random.default_rng(seed)
    cells = pd.concat([tidy()[:1].assign(label=str(n)) for n in range(12)], ignore_index=True)
    cells = cells.assign(
        parameters_trainable=random.integers(1, 6, 12),
        best=0.0,
        last=random.integers(0, 5, 12) / 10,
        seconds_train=random.integers(1, 6, 12),
        peak_memory_mib=random.integers(1, 6, 12).astype(float),
        seed=0,
    )
    table = pareto(cells)
    for price in PRICES:
        front = table[table[f"front_{price}"] == "on"]
        for cell in table.itertuples():
            paid = getattr(cell, price)
            above = front[(front.last_mean >= cell.last_mean) & (front[price] <= paid)]
            beaten = above[(above.last_mean > cell.last_mean) | (above[price] < paid)]
            assert (getattr(cell, f"front_{price}") == "on") == beaten.empty
            if price != "parameters_trainable":  # with one run each no difference is clear
                assert getattr(cell, f"front_{price}") != "beaten"
            assert len(above)


def test_a_twin_is_not_weighed_beside_ours_and_a_gpus_memory_counts():
    runs = tidy().assign(best=0.5, last=0.5, peak_device_memory_mib=[100.0, None])
    twin = runs[:1].assign(method="peft")
    assert list(pareto(pd.concat([runs, twin])).method) == ["lora", "full"]
    assert list(pareto(twin).method) == ["peft"]
    assert list(pareto(runs).memory_mib) == [100.0, 1800.0]


def test_what_peft_alone_has_is_no_twin():
    rows = pd.concat(
        [tidy().assign(method=["peft", "full"], label=["dora", ""]), tidy()], ignore_index=True
    )
    assert list(without_twins(rows).method) == ["peft", "full", "lora", "full"]
    rows["label"] = ""
    assert list(without_twins(rows).method) == ["full", "lora", "full"]


def seeds_of(cells: dict[str, tuple[float, float]], noise: float, seeds: int = 5) -> pd.DataFrame:
    """Make runs of cells with these scores and processor seconds, and a spread of the seconds."""
    steps = np.linspace(-noise, noise, seeds)
    rows = [
        tidy()[:1].assign(label=name, last=score + step / 100, best=score, seed=seed, device="cpu",
                          cpu_seconds_train=50 * cpu * (1 + step), seconds_train=50.0 * (seed + 1))
        for name, (score, cpu) in cells.items()
        for seed, step in enumerate(steps)
    ]  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def test_a_step_costs_its_processor_time_and_not_that_of_a_busy_machines_clock():
    runs = seeds_of({"a": (0.8, 0.1), "b": (0.9, 0.2)}, noise=0.01)
    table = cost(runs).set_index("label")
    assert list(table.step) == pytest.approx([0.1, 0.2]) and set(table.clock) == {"CPU"}
    assert table.step_sd["b"] == pytest.approx(2 * table.step_sd["a"])
    assert table.steps_differ.all()
    assert not cost(seeds_of({"a": (0.8, 0.1), "b": (0.9, 0.101)}, noise=0.1)).steps_differ.any()
    gpu = cost(runs.assign(device="cuda:0")).set_index("label")
    assert set(gpu.clock) == {"wall"} and list(gpu.step) == list(gpu.seconds_step)
    assert list(cost_table(cost(runs))["CPU time per step, ms"]) == ["100 ± 1", "200 ± 2"]
    assert "CPU time per step, ms" not in cost_table(cost(runs.assign(device="cuda:0")))


def test_a_front_within_noise_is_none_and_a_clear_one_is_one():
    clear = pareto(seeds_of({"a": (0.8, 0.1), "b": (0.9, 0.2), "c": (0.7, 0.3)}, noise=0.01))
    assert list(clear.front_milliseconds_step) == ["on", "on", "beaten"]
    assert clear.clear_milliseconds_step.all()
    cells = {"a": (0.8, 0.1), "b": (0.8001, 0.101), "c": (0.7999, 0.1005)}
    noisy = pareto(seeds_of(cells, noise=0.2))
    assert list(noisy.front_milliseconds_step) == ["on", "on", "within noise"]
    assert not noisy.clear_milliseconds_step.any()


def test_of_a_log_loss_the_lowest_is_on_the_front():
    cells = seeds_of({"a": (0.8, 0.1), "b": (0.9, 0.2), "c": (0.7, 0.3)}, noise=0.01)
    table = pareto(cells.assign(metric="log_loss"))
    assert list(table.front_milliseconds_step) == ["on", "beaten", "on"]


@pytest.mark.parametrize("seed", range(3))
def test_means_differ_clearly_about_as_rarely_as_the_test_says(seed):
    """Of twelve equal cells, the pairs that differ at 5 % are few; a far one differs from all."""
    random = np.random.default_rng(seed)
    values = [random.normal(0, 1, 5) for _ in range(12)]
    found = clearly_differ([*values, random.normal(20, 1, 5), np.array([0.0])])
    assert (found == found.T).all() and not found.diagonal().any()
    assert found[:12, :12].mean() < 0.2
    assert found[12, :12].all() and not found[13].any()


def test_two_cells_differ_as_the_table_of_contrasts_says():
    random = np.random.default_rng(0)
    values = [random.normal(mean, 1, 4) for mean in np.linspace(0, 4, 8)]
    spreads = pooled([Spread(v.var(ddof=1), 3) for v in values])
    cells = [Cell(v.mean(), 4, spread) for v, spread in zip(values, spreads, strict=True)]
    p = [[unpaired(one, two, 24).p() for two in cells] for one in cells]
    assert (clearly_differ(values) == (np.array(p) < 0.05)).all()
