"""Task functions: ids in, nothing out."""

from workers.celery import TASK, app


@app.task(name=TASK)
def run_jobs(job_ids: list[str]) -> None:
    """Run jobs, given by their ids in hex."""
    app.run_jobs(job_ids)
