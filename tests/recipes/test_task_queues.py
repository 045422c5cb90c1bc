"""docs/recipes/task-queues.md: real workers that fork, over a real Valkey."""

import time

from support.recipes import Recipe

from keyrot_middleware.testing import Reply

RQ_JOBS = """
import os, time
import redis
from rq import Queue
import jobs

queue = Queue(connection=redis.Redis.from_url(os.environ["BROKER_URL"]))
enqueued = [queue.enqueue(jobs.summarize, f"text {number}") for number in range(3)]
end = time.monotonic() + 90
while not all(job.is_finished for job in enqueued):
    assert time.monotonic() < end, [(job.get_status(), job.latest_result()) for job in enqueued]
    time.sleep(0.1)
print([job.return_value() for job in enqueued])
"""


def prepared(recipe: Recipe) -> None:
    """Share a state in which key A is exhausted for the day as soon as it is tried."""
    recipe.keys("A", "B")
    recipe.env["BROKER_URL"] = recipe.share()
    recipe.write("task-queues.md")
    recipe.gemini.always("A", Reply.QUOTA_DAY)


def test_a_celery_task_is_tried_later_when_no_key_is_available(recipe: Recipe) -> None:
    """A task for which no key is available ends at once and is repeated until one is."""
    recipe.keys("A")
    recipe.env["BROKER_URL"] = recipe.share()
    recipe.write("task-queues.md")
    recipe.gemini.script("A", *[Reply.custom(429, _retry_in(1))] * 12)
    (recipe.folder / "client.py").write_text(
        "from tasks import summarize\nprint(summarize.delay('a').get(timeout=90))\n"
    )
    worker = ("-m", "celery", "-A", "tasks", "worker", "--concurrency", "1", "--loglevel", "INFO")
    with recipe.running(*worker) as log:
        assert recipe.python("client.py").strip() == "ok from A", log.read_text()
        assert "Retry in" in log.read_text()


def test_an_rq_job_is_tried_later_when_no_key_is_available(recipe: Recipe) -> None:
    """The job returns a `Retry` with the pool's time, and the worker's scheduler repeats it."""
    recipe.keys("A")
    recipe.env["BROKER_URL"] = recipe.share()
    recipe.write("task-queues.md")
    recipe.gemini.script("A", Reply.custom(429, _retry_in(3)))
    (recipe.folder / "client.py").write_text(RQ_JOBS)
    with recipe.running("worker.py") as log:
        printed = recipe.python("client.py")
    assert printed.strip() == str(["ok from A"] * 3), log.read_text()


def test_a_dramatiq_task_is_tried_later_when_no_key_is_available(recipe: Recipe) -> None:
    """The actor raises `Retry` with the pool's time; the worker runs it again then."""
    recipe.keys("A")
    recipe.env["BROKER_URL"] = recipe.share()
    recipe.write("task-queues.md")
    recipe.gemini.script("A", *[Reply.custom(429, _retry_in(1))] * 12)
    (recipe.folder / "client.py").write_text(
        "from actors import summarize\nfor text in 'ab': summarize.send(text)\n"
    )
    worker = ("-m", "dramatiq", "actors", "--processes", "1", "--threads", "1")
    with recipe.running(*worker) as log:
        recipe.python("client.py")
        end = time.monotonic() + 90
        while recipe.gemini.sent("A") < 14:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


def test_the_commands_alone_are_enough(recipe: Recipe) -> None:
    """`keyrot run -m rq.cli worker` gives the pool to the forked jobs, without a line of code."""
    prepared(recipe)
    (recipe.folder / "client.py").write_text(RQ_JOBS)
    command = ("-m", "keyrot_middleware", "run", "-m", "rq.cli", "worker")
    with recipe.running(*command, "--url", recipe.env["BROKER_URL"]) as log:
        printed = recipe.python("client.py")
    assert printed.strip() == str(["ok from B"] * 3), log.read_text()
    assert recipe.gemini.sent("A") == 1


def _retry_in(seconds: int) -> dict[str, object]:
    info = {
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retryDelay": f"{seconds}s",
    }
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow", "details": [info]}
    return {"error": error}
