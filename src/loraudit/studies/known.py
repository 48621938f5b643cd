"""What is known of tasks and models beforehand that changes no number, but what numbers mean.

It stands in tasks.yaml and models.yaml, and not in a run's spec: to learn of it retrains nothing.
"""

from collections.abc import Iterable
from pathlib import Path

from loraudit.base.errors import UserError
from loraudit.studies.entry_files import listed_model, listed_task
from loraudit.studies.values import Frozen


class Contamination(Frozen):
    """A model that was trained on a task's data before, and what these were in."""

    model: str
    task: str
    what: str

    def sentence(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.model} was trained on data of {self.task} before ({self.what}): its scores on "
            f"{self.task} are those of a model that knows the task"
        )


class SharedTexts(Frozen):
    """Two tasks that are largely made of the same texts, and how far."""

    task: str
    other: str
    what: str

    def sentence(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.task} and {self.other} have texts in common ({self.what}): a result on one is "
            "no confirmation of a result on the other"
        )


def contaminations(pairs: Iterable[tuple[str, str]], path: Path) -> tuple[Contamination, ...]:
    """Return those of some pairs (model, task) in which the model was trained on the task's data.

    Args:
        pairs: names of models and tasks.
        path: models.yaml.
    """
    known = []
    for model, task in dict.fromkeys(pairs):
        what = listed_model(model, path).trained_on.get(task)
        known += [Contamination(model=model, task=task, what=what)] if what else []
    return tuple(known)


def shared_texts(tasks: Iterable[str], path: Path) -> tuple[SharedTexts, ...]:
    """Return the pairs of some tasks that share their texts; `path` is tasks.yaml.

    The entry of either task may say so.
    """
    names = list(dict.fromkeys(tasks))
    said = {name: listed_task(name, path).shares_texts_with for name in names}
    return tuple(
        SharedTexts(task=one, other=two, what=what)
        for i, one in enumerate(names)
        for two in names[i + 1 :]
        if (what := said[one].get(two) or said[two].get(one))
    )


def check_start(task: str, start: str, known: Iterable[SharedTexts], where: str) -> None:
    """Refuse a warm start from a run on a task that shares the started task's texts.

    Raises:
        UserError: it does.
    """
    for shared in known:
        if {shared.task, shared.other} == {task, start}:
            raise UserError(
                f"{where}: warm_start: {task!r} can't start from {start!r}: the two have texts in "
                f"common ({shared.what}), so the start has seen validation rows with their labels"
            )
