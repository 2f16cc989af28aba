"""A caller's own job: read, or asked to end."""

from uuid import UUID

from api.auth import Caller
from api.deps import Services
from api.jobview import Row
from models.batch import BY_HAND
from models.database import read_one
from models.errors import NotFound
from models.job import CANCEL_JOB, SELECT_JOB
from models.lifecycle import JobStatus
from models.wakeups import CANCEL, DUE, FINISHED


async def read_job(services: Services, caller: Caller, job_id: UUID) -> Row:
    """The row of the caller's job; raises NotFound, for another tenant's too."""
    row = await read_one(services.pools.light, SELECT_JOB, {"id": job_id, "tenant_id": caller.tenant_id})
    if row is None:
        raise NotFound("There is no such job.")
    return row


async def ask_to_cancel(services: Services, caller: Caller, job_id: UUID) -> JobStatus | None:
    """Cancel a job that waits, or have the worker stop one that runs: its status now, None if it was finished."""
    params = {"id": job_id, "tenant_id": caller.tenant_id, "writer": BY_HAND}
    async with services.cancels.one_of(caller.tenant_id):
        asked = await read_one(services.pools.light, CANCEL_JOB, params)
    if asked is None:
        return None
    status = JobStatus(asked["status"])
    if status is JobStatus.CANCELLED:
        services.wakeups.announce(FINISHED, [job_id.hex])
        services.wakeups.announce(DUE)
    else:
        services.wakeups.announce(CANCEL, [job_id.hex])
    return status
