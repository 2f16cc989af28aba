"""What a job's ``model`` may name, with what is loaded where: readable by OpenAI's clients."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.deps import CallerDep, Services, ServicesDep
from api.openapi import answer, refusals
from api.responses import json_response, listed
from api.schemas.models import ModelList, ModelResource
from models.catalog import AUTO, LLM
from models.database import read_all
from models.pricing import as_wire
from models.process import SELECT_LOADED
from models.routing import Vitals, no_such_model

OWNER = "headrace"
_NOT_TOLD = ("llm", "worker")
Resource = dict[str, Any]  # Any: JSON
Loaded = Mapping[str, Sequence[Resource]]

router = APIRouter(tags=["Models"])


@router.get("/v1/models", responses={200: answer("The models.", ModelList), **refusals()})
async def list_models(services: ServicesDep, caller: CallerDep) -> Response:
    """List every LLM, every tier and `auto`; for local LLMs, what each worker has loaded of them."""
    loaded = await _loaded(services)
    data = [_llm(services, name, loaded) for name in services.catalog.llms] + _choosers(services)
    return json_response(listed(data, len(data)))


@router.get("/v1/models/{model:path}", responses={200: answer("The model.", ModelResource), **refusals(404)})
async def get_model(
    services: ServicesDep,
    caller: CallerDep,
    model: Annotated[str, Path(description="An LLM's or a tier's name, or `auto`.", examples=["smollm2-135m"])],
) -> Response:
    """Read one model."""
    if not model:
        raise HTTPException(404)
    if model in services.catalog.llms:
        return json_response(_llm(services, model, await _loaded(services)))
    found = next((chooser for chooser in _choosers(services) if chooser["id"] == model), None)
    if found is None:
        raise no_such_model("model", model, [AUTO, *services.catalog.tiers, *services.catalog.llms])
    return json_response(found)


async def _loaded(services: Services) -> Loaded:
    """What each LLM's workers reported, by LLM, without the names of workers, which are those of hosts."""
    by_llm: defaultdict[str, list[Resource]] = defaultdict(list)
    for row in await read_all(services.pools.light, SELECT_LOADED):
        for report in row["models"]:
            by_llm[report["llm"]].append({key: value for key, value in report.items() if key not in _NOT_TOLD})
    return by_llm


def _llm(services: Services, name: str, loaded: Loaded) -> Resource:
    llm = services.catalog.llms[name]
    breakers = services.vitals.breakers
    return {
        **_common(services, name, llm.provider, "llm"),
        "tier": llm.tier,
        "provider": llm.provider,
        "context_window": llm.context_window,
        "quality": llm.quality,
        "prices": _prices(llm),
        "fallbacks": list(llm.fallbacks),
        "loaded": list(loaded.get(name, ())) if llm.provider == "llamacpp" else None,
        "measured": _measured(services.vitals.llms.get(name, Vitals())),
        "breaker": breakers[name].state if breakers is not None else None,
    }


def _choosers(services: Services) -> list[Resource]:
    """The tiers, and ``auto``, which chooses among all LLMs or what the catalogue's ``default`` names."""
    catalog = services.catalog
    tiers = {tier: catalog.llms_of_tier(tier) for tier in catalog.tiers}
    default = catalog.default
    auto = list(catalog.llms) if default is None else tiers.get(default, [default])
    found = [(name, "tier", llms) for name, llms in tiers.items()] + [(AUTO, "auto", auto)]
    return [{**_common(services, name, OWNER, kind), "chooses_from": llms} for name, kind, llms in found]


def _common(services: Services, name: str, owner: str, kind: str) -> Resource:
    created = services.catalog_changed_at
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "kind": kind}


def _prices(llm: LLM) -> Resource:
    price = llm.tariff.at(datetime.now(UTC))
    cached = price.cached_input
    return {
        "input": as_wire(price.input),
        "output": as_wire(price.output),
        "cached_input": None if cached is None else as_wire(cached),
    }


def _measured(vitals: Vitals) -> Resource:
    return {
        "tokens_per_s": vitals.tokens_per_s,
        "time_to_first_token_s": vitals.time_to_first_token_s,
        "latency_s": vitals.latency_s,
        "error_rate": vitals.error_rate,
    }
