"""From a request to the LLMs that may answer it: pure rules over the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.catalog import AUTO, Catalog
from models.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class Route:
    """The LLMs of a job in the order they are tried: the chosen one, then its fallbacks."""

    llms: tuple[str, ...]

    @property
    def chosen(self) -> str:
        return self.llms[0]


def choose_route(catalog: Catalog, model: str, fallbacks: Sequence[str] | None) -> Route:
    """The route of a request.

    ``model`` is an LLM's name, a tier's name or ``auto``; ``fallbacks`` replaces the catalogue's.
    Raises ModelNotFound for a name the catalogue does not have.
    """
    chosen = _resolve(catalog, model)
    names = catalog.llms[chosen].fallbacks if fallbacks is None else fallbacks
    for name in names:
        if name not in catalog.llms:
            raise ModelNotFound(f"There is no LLM {name!r} to fall back to.", param="fallbacks")
    return Route(tuple(dict.fromkeys((chosen, *names))))


def _resolve(catalog: Catalog, model: str) -> str:
    if model in catalog.llms:
        return model
    if model == AUTO:
        default = catalog.default or next(iter(catalog.llms))
        return _resolve(catalog, default)
    names = catalog.llms_of_tier(model) if model in catalog.tiers else []
    if not names:
        raise ModelNotFound(f"There is no LLM or tier {model!r}.", param="model")
    return names[0]
