"""How cells are named for readers."""

import pytest

from loraudit.report.formatting import shown_cells, shown_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lora r8 q+v", "LoRA (ours) r8 q+v"),
        ("full", "full fine-tuning"),
        ("head as-in-the-quickstart", "head only as-in-the-quickstart"),
        ("lora r64 q+v alpharank", "LoRA (ours) r64 q+v alpha = r"),
        ("lora r8 q+v alpha-times_sqrt_rank2", "LoRA (ours) r8 q+v alpha = 2√r"),
        ("lora r8 q+v alpha-times_rank0.5", "LoRA (ours) r8 q+v alpha = 0.5r"),
        ("peft r4 all peft-use_doraTrue", "LoRA (PEFT) r4 all dora"),
        ("peft r4 all peft-pissa", "LoRA (PEFT) r4 all pissa"),
        ("lora r4 all base_bits4-loftq", "LoRA (ours) r4 all 4 bits-loftq"),
        ("lora r8 q+v alpha-tuned", "LoRA (ours) r8 q+v alpha-tuned"),
        ("x1", "x1"),
    ],
)
def test_a_cell_is_named_for_readers(name, shown):
    assert shown_name(name) == shown


def test_cells_that_a_text_names_are_written_for_readers():
    assert shown_cells("lora r8 q+v minus full_saved") == (
        "LoRA (ours) r8 q+v minus full fine-tuning (saved)"
    )
    assert shown_cells("peft r4 all peft-use_doraTrue in learning rate; head in epochs") == (
        "LoRA (PEFT) r4 all dora in learning rate; head only in epochs"
    )
    assert shown_cells("alpha over the rank") == "alpha over the rank"
