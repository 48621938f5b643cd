"""Alpha as study files and claims write it: a number, or a rule that makes it from the rank."""

import math
from typing import Any

from loraudit.base.errors import UserError
from loraudit.studies.values import check_known

ALPHA_RULES = {"times_rank": lambda rank: rank, "times_sqrt_rank": math.sqrt}
"""Rules that make alpha from the rank, by a factor: {times_rank: 2} is 16 at rank 8."""

MOST_RANK = 2**53
"""Above it not every whole number is a float, and above 2^1024 none is."""


def alpha_of(value: Any, rank: Any, where: str) -> Any:
    """Return a run's alpha: a number as it is, or what a rule makes of the rank.

    "rank" is {times_rank: 1}: alpha / r is then 1 at every rank.

    Raises:
        UserError: there is no such rule, or its factor or the rank is no number above 0.
    """
    value = {"times_rank": 1} if value == "rank" else value
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise UserError(f"{where}: alpha = {value!r}: expected one of {', '.join(ALPHA_RULES)}")
    ((rule, factor),) = value.items()
    check_known([rule], ALPHA_RULES, f"{where}: alpha")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise UserError(f"{where}: alpha: {rule} = {factor!r}: expected a number above 0")
    number = isinstance(rank, int | float) and not isinstance(rank, bool)
    if not number or rank <= 0 or rank >= MOST_RANK:
        raise UserError(f"{where}: rank = {rank!r}: expected a number above 0, to make alpha of it")
    return factor * ALPHA_RULES[rule](rank)
