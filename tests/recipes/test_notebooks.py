"""docs/recipes/notebooks.md: a cell in a real kernel, and an app in Streamlit."""

from support.recipes import Recipe

from keyrot_middleware.testing import Reply

RUNS_A_CELL = """
import json
from pathlib import Path
import nbformat
from nbclient import NotebookClient

cells = [Path("cell.py").read_text(), "keyrot_middleware.uninstall()"]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
print(json.dumps(notebook.cells[0].outputs))
"""
RUNS_AN_APP = """
from streamlit.testing.v1 import AppTest

app = AppTest.from_file("streamlit_app.py", default_timeout=60).run()
assert not app.exception, app.exception
for question in ("one", "two", "three"):
    app.text_input[0].input(question).run()
    assert not app.exception, app.exception
    print([box.value for kind in (app.markdown, app.error, app.warning) for box in kind])
"""


def test_a_cell_runs_and_says_how_the_pool_is(recipe: Recipe) -> None:
    """The kernel prints the answer, and the value of the cell is the headline."""
    recipe.keys("A", "B")
    recipe.write("notebooks.md")
    recipe.gemini.script("A", Reply.KEY_INVALID)
    (recipe.folder / "run.py").write_text(RUNS_A_CELL)
    printed = recipe.python("run.py")
    assert "ok from B" in printed
    assert "1 of 2 keys is available." in printed
    assert "Last hour: 0 of 1 call failed." in printed


def test_the_streamlit_app_answers_and_warns(recipe: Recipe) -> None:
    """An answer by another key; then the error of a bad request; then when to try again."""
    recipe.keys("A", "B")
    recipe.write("notebooks.md")
    recipe.gemini.always("A", Reply.QUOTA_DAY)
    recipe.gemini.script("B", Reply.OK, Reply.BAD_REQUEST, Reply.QUOTA_DAY)
    (recipe.folder / "run.py").write_text(RUNS_AN_APP)
    answered, refused, warned = recipe.python("run.py").splitlines()
    assert answered == "['ok from B']"
    assert refused == "['Gemini refused: INVALID_ARGUMENT']"
    assert warned.startswith("['No key is available. Try again at ")
    assert [recipe.gemini.sent("A"), recipe.gemini.sent("B")] == [1, 3]
