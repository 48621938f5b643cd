"""One table of looks: a method, a target set, a code and a word look alike in all figures."""

import pytest
from matplotlib.colors import to_rgb

from loraudit.report.looks import WORDS, cell_looks, lines_apart, look_of, study_looks
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


def test_in_a_study_a_cell_looks_alike_whichever_cells_a_figure_shows():
    """One cell was the palest in a figure without rank 1, and in the middle in others."""
    cells = [cell(rank=rank, label=label) for label in ("", "x") for rank in (1.0, 2.0, 8.0)]
    cells += [cell(label="y"), full("head"), full("head", "fixed")]
    alone = cell_looks(cells[1:3])["lora r2 q+v"]
    with study_looks(cells):
        whole = cell_looks(cells)
        for some in (cells[1:3], cells[3:], reversed(cells), [full("head", "fixed")]):
            assert all(whole[name] == look for name, look in cell_looks(some).items())
        assert "lora r16 q+v" in cell_looks([cell(rank=16.0)])  # no cell of the study
    assert cell_looks(cells[1:3])["lora r2 q+v"] == alone != whole["lora r2 q+v"]


def contrast(colour: str) -> float:
    """Return a colour's contrast on white (WCAG 2)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (0.05 + sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)))


def test_no_cell_is_too_pale_to_be_seen_and_labels_of_several_ranks_differ():
    """A label's shade was tinted once more by the rank: 1.25 to 1 on white."""
    cells = [cell(rank=rank, label=label) for label in ("", "x", "y") for rank in (1.0, 8.0, 64.0)]
    cells += [cell(rank=8.0, label=f"z{number}") for number in range(8)]
    looks = cell_looks(cells)
    assert min(contrast(look.colour) for look in looks.values()) > 1.9
    grid = [look for name, look in looks.items() if " z" not in name]
    assert len({(look.colour, str(look.line)) for look in grid}) == 9
    assert len({look.colour for name, look in looks.items() if " r8 " in name}) == 11


def test_words_have_looks_of_their_own():
    assert WORDS["supported"] == WORDS["reproduced"] != WORDS["contradicted"]


def test_target_sets_of_one_method_go_from_dark_to_pale_by_their_size():
    sets = ["all", "q", "q+v"]
    apart = lines_apart([look_of("lora", name) for name in sets])
    red = dict(zip(sets, (to_rgb(look.colour)[0] for look in apart), strict=True))
    assert red["q"] <= red["q+v"] < red["all"]
    assert len({look.colour for look in apart}) == 3
    two = [look_of("lora", "q"), look_of("lora", "all"), look_of("full")]
    assert lines_apart(two) == two


def test_a_label_of_one_rank_is_not_as_pale_as_a_low_rank_without_it():
    """A label's only cell was as pale as the lowest of the base's ranks."""
    cells = [cell(rank=rank) for rank in (1.0, 4.0, 8.0)] + [cell(rank=4.0, label="x")]
    assert len({look.colour for look in cell_looks(cells).values()}) == len(cells)
