"""Task functions: ids in, nothing out."""

from workers.celery import TASK, app


@app.task(name=TASK)
def run_jobs(job_ids: list[str], rows: bool = False) -> None:
    """Run jobs, given by their ids in hex; ``rows`` of batches, or single jobs."""
    app.run_jobs(job_ids, rows=rows)
