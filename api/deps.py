"""What handlers ask for, as ``Annotated`` aliases that read as a signature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Path
from starlette.requests import Request

from api.access import Network
from api.auth import Authenticator, Caller
from api.batches.clerks import Clerks
from api.batches.turns import Uploads
from api.batches.validators import Validators
from api.edge import Traffic
from api.health import Health
from api.pools import Pools
from api.ratelimits import RateLimiter
from api.settings import ApiSettings
from api.shares import Control, Reads, Shares
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
    pools: Pools
    reads: Reads
    control: Control
    cancels: Shares
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
    metrics_networks: Sequence[Network]
    traffic: Traffic


def services_of(request: Request) -> Services:
    """The services of the app that handles a request."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def _caller(request: Request, services: ServicesDep) -> Caller:
    return await services.authenticator.authenticate(request)


CallerDep = Annotated[Caller, Depends(_caller)]


def _id_in_path(kind: str, example: str) -> Any:  # Any: what FastAPI takes as a dependency
    """A dependency: the id in the path of a resource of this kind; raises NotFound for what cannot be one."""
    described = Path(alias=f"{kind}_id", description=f"A {kind}'s id.", examples=[example])

    def parse(given: Annotated[str, described]) -> UUID:
        parsed = from_wire(kind, given)
        if parsed is None:
            raise NotFound(f"There is no such {kind}.")
        return parsed

    return Depends(parse)


JobId = Annotated[UUID, _id_in_path(JOB, "job_...")]
BudgetId = Annotated[UUID, _id_in_path(BUDGET, "budget_...")]
FileId = Annotated[UUID, _id_in_path(FILE, "file-...")]
BatchId = Annotated[UUID, _id_in_path(BATCH, "batch_...")]
