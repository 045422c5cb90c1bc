"""docs/recipes/django.md, in a project that django-admin makes."""

import json

from support.recipes import Recipe, get

from keyrot_middleware.testing import Reply

URLS = """
from django.urls import path
from summaries import views

urlpatterns = [path("summary", views.summary)]
"""


def test_a_view_answers_and_the_middleware_sets_retry_after(recipe: Recipe, port: int) -> None:
    """The pool is there from the first request; without a key the client gets a 429."""
    recipe.keys("A", "B")
    recipe.python("-m", "django", "startproject", "mysite", ".")
    recipe.python("manage.py", "startapp", "summaries")
    recipe.write("django.md")
    (recipe.folder / "mysite" / "urls.py").write_text(URLS)
    settings = recipe.folder / "mysite" / "settings.py"
    settings.write_text(
        settings.read_text()
        + "\nINSTALLED_APPS += ['summaries.apps.SummariesConfig']"
        + "\nMIDDLEWARE += ['summaries.middleware.KeyPoolMiddleware']\n"
    )
    recipe.gemini.script("A", Reply.QUOTA_DAY)
    url = f"http://127.0.0.1:{port}/summary?text=hi"
    with recipe.running("manage.py", "runserver", "--noreload", str(port)) as log:
        status, text, _ = get(url)
        assert (status, json.loads(text)) == (200, {"summary": "ok from B"}), log.read_text()
        recipe.gemini.script("B", Reply.QUOTA_DAY)
        for _ in ("B refuses it", "nothing is sent"):
            status, _, headers = get(url)
            assert status == 429, log.read_text()
            assert 0 < int(headers["Retry-After"]) <= 86_400
