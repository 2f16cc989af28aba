"""What handlers ask for, as ``Annotated`` aliases that read as a signature."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from api.auth import Authenticator, Caller
from api.batches.clerks import Clerks
from api.batches.turns import Uploads
from api.batches.validators import Validators
from api.edge import Traffic
from api.health import Health
from api.ratelimits import RateLimiter
from api.settings import ApiSettings
from api.submission import Submitter
from api.textfeeds import TextFeeds
from api.vitals import VitalSigns
from api.waiting import Waiters
from models.catalog import Catalog
from models.errors import NotFound
from models.ids import BATCH, BUDGET, FILE, JOB, from_wire
from models.wakeups import Wakeups


@dataclass(frozen=True, slots=True)
class Services:
    """What one API process holds while it runs."""

    settings: ApiSettings
    engine: AsyncEngine
    wakeups: Wakeups
    catalog: Catalog
    catalog_changed_at: int
    authenticator: Authenticator
    limiter: RateLimiter
    submitter: Submitter
    waiters: Waiters
    feeds: TextFeeds
    validators: Validators
    uploads: Uploads
    clerks: Clerks
    vitals: VitalSigns
    health: Health
    traffic: Traffic


def services_of(request: Request) -> Services:
    """The services of the app that handles a request."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def _caller(request: Request, services: ServicesDep) -> Caller:
    return await services.authenticator.authenticate(request)


CallerDep = Annotated[Caller, Depends(_caller)]


def _job_id(job_id: Annotated[str, Path(description="A job's id.", examples=["job_..."])]) -> UUID:
    parsed = from_wire(JOB, job_id)
    if parsed is None:
        raise NotFound("There is no such job.")
    return parsed


JobId = Annotated[UUID, Depends(_job_id)]


def _budget_id(budget_id: Annotated[str, Path(description="A budget's id.", examples=["budget_..."])]) -> UUID:
    parsed = from_wire(BUDGET, budget_id)
    if parsed is None:
        raise NotFound("There is no such budget.")
    return parsed


BudgetId = Annotated[UUID, Depends(_budget_id)]


def _file_id(file_id: Annotated[str, Path(description="A file's id.", examples=["file-..."])]) -> UUID:
    parsed = from_wire(FILE, file_id)
    if parsed is None:
        raise NotFound("There is no such file.")
    return parsed


FileId = Annotated[UUID, Depends(_file_id)]


def _batch_id(batch_id: Annotated[str, Path(description="A batch's id.", examples=["batch_..."])]) -> UUID:
    parsed = from_wire(BATCH, batch_id)
    if parsed is None:
        raise NotFound("There is no such batch.")
    return parsed


BatchId = Annotated[UUID, Depends(_batch_id)]
