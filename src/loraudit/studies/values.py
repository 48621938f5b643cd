"""The base of frozen values, which are checked when made, and the error for a wrong one."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraudit.base.errors import UserError, unknown


class Frozen(BaseModel):
    """Base of all values: they can't be changed and allow no unknown key, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def check_known(keys: Iterable[str], legal: Iterable[str], where: str) -> None:
    """Refuse a key that is not legal.

    Raises:
        UserError: a key is not legal; the message names the nearest legal one.
    """
    legal = list(legal)
    for key in keys:
        if key not in legal:
            raise unknown(where, key, legal)


def validated(cls: type[BaseModel], data: object, where: str) -> Any:
    """Make a `cls` from `data`; `where` is its place, for error messages.

    Raises:
        UserError: names the first wrong key of `data`, its value and the legal values.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys and values, got {data!r}")
    check_known(data, cls.model_fields, f"{where}: key")
    try:
        return cls(**data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "literal_error":
            legal = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            raise unknown(f"{where}: {key}", first["input"], legal) from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key {key!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        place = f"{key} = {first['input']!r}: " if key else ""
        raise UserError(f"{where}: {place}{message}") from None
