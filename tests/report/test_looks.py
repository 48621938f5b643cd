"""One table of looks: a method, a target set, a code and a word look alike in all figures."""

import pytest
from matplotlib.colors import to_rgb

from loraudit.report.looks import WORDS, cell_looks, look_of
from loraudit.studies.methods import METHODS


def cell(method="lora", rank=8.0, targets="q+v", label="") -> dict:
    return {"method": method, "rank": rank, "targets": targets, "label": label}


def full(method="full", label="") -> dict:
    return cell(method, float("nan"), None, label)


def test_a_colour_is_a_method_a_marker_a_target_set_and_a_ring_peft():
    ours, peft = look_of("lora", "q+v"), look_of("peft", "q+v")
    assert ours.colour == peft.colour and ours.marker == peft.marker
    assert ours.filled and not peft.filled
    assert peft.marks()["markerfacecolor"] == "none"
    assert look_of("lora", "all").colour == ours.colour
    assert look_of("lora", "all").marker != ours.marker == look_of("adalora", "q+v").marker
    own = {look_of(name).colour for name in METHODS if name not in ("peft", "full_saved")}
    assert len(own) == len(METHODS) - 2


def test_a_look_hangs_on_nothing_but_the_cell():
    """Full fine-tuning was pink, light blue and yellow, by its place in the study."""
    some, others = [cell(), full()], [full("head"), full("bitfit"), full(), cell(targets="all")]
    assert cell_looks(some)["full"] == cell_looks(others)["full"] == look_of("full")
    odd = look_of("lora", "q+v+down")
    assert odd == look_of("lora", "q+v+down") and odd.marker


def test_ranks_go_from_pale_to_the_colour_itself_and_twins_share_them():
    cells = [cell(method, rank) for rank in (8.0, 1.0, 2.0) for method in ("lora", "peft")]
    looks = cell_looks(cells)
    red = [to_rgb(looks[f"lora r{rank} q+v"].colour)[0] for rank in (1, 2, 8)]
    assert red == sorted(red, reverse=True) and len(set(red)) == 3
    assert looks["lora r8 q+v"].colour == look_of("lora").colour.lower() or red[2] == 0
    assert looks["peft r2 q+v"].colour == looks["lora r2 q+v"].colour


@pytest.mark.parametrize("count", [2, 6])
def test_labels_of_one_cell_have_colours_and_lines_of_their_own_and_the_base_the_methods(count):
    cells = [cell(label=f"x{number}") for number in range(count)]
    looks = list(cell_looks(cells).values())
    assert looks[0].colour == look_of("lora").colour
    assert len({look.colour for look in looks}) == len({look.line for look in looks}) == count


def test_words_have_looks_of_their_own():
    assert WORDS["supported"] == WORDS["reproduced"] != WORDS["contradicted"]
