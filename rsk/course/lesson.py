'''What a notebook calls, under one name; each thing is in the module that is named for it.

A notebook in outline::

    # tagged "parameters": quick = True; device = "auto"; seed = 0
    from rsk.course import lesson

    device = lesson.begin(device)             # refuses unknown parameters, shows the banner
    guess = lesson.predict("waits", 64, "waits")
    guess.compare(waits)                      # "You predicted 64 waits. Measured: 451 ..."
    lesson.save_result("02_baseline", found)  # a benchmark, or anything that JSON holds
    lesson.ladder_row("baseline", record)     # last cell: adds a row and shows the ladder

An exercise is three cells: a skeleton tagged ``exercise``, its check tagged ``exercise-check``,
and Markdown whose ``<details>`` holds the solution in a fence of Python::

    def waits(accepted):
        """Times that the host waits ..."""
        lesson.todo()  # your code takes the place of this line

    with lesson.exercise("waits"):
        assert waits(0) == 3

An unsolved exercise says so and lets the notebook go on; a wrong solution fails.
'''

from rsk.course.beginning import begin
from rsk.course.exercise import exercise, todo
from rsk.course.ladder import ROOF, ladder_row, pick
from rsk.course.prediction import predict
from rsk.course.results import save_result

__all__ = [
    "ROOF",
    "begin",
    "exercise",
    "ladder_row",
    "pick",
    "predict",
    "save_result",
    "todo",
]
