"""The rotation of a queue's tenants, which two dispatchers share."""

from datetime import UTC, datetime

from models.ids import new_id
from workers.rotation import Found, Rotation

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def test_a_tenant_that_is_forgotten_while_its_jobs_are_published_does_no_harm() -> None:
    """One dispatcher's whole look finds nothing of a tenant whose last jobs the other has just marked."""
    rotation, tenant_id, other = Rotation(), new_id(), new_id()
    rotation.add([Found(other, 1, 1, NOW)])
    for _ in range(3):
        rotation.serve(other, 1)
    rotation.add([Found(tenant_id, 1, 1, NOW)])
    asks = [ask for ask in rotation.choose(4, {}) if ask.tenant_id == tenant_id]
    rotation.replace([], rotation.version)
    for ask in asks:
        rotation.advance(ask, None)
        rotation.serve(ask.tenant_id, 1)
    assert asks
    assert not rotation.waits(rows=False)
