"""The Prometheus exposition: the traffic of this process, and what Postgres knows of queues and processes."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from api.edge import Traffic
from api.health import MOST_COUNTED, Snapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True, eq=False)
class _Scrape(Collector):
    traffic: Traffic
    waiters: int
    snapshot: Snapshot | None

    def collect(self) -> Iterator[Metric]:
        yield from self._traffic()
        yield GaugeMetricFamily("headrace_api_waiters", "Requests that wait for a job to finish.", self.waiters)
        yield GaugeMetricFamily("headrace_postgres_up", "Whether Postgres answered.", self.snapshot is not None)
        if self.snapshot is not None:
            yield self._jobs(self.snapshot)
            yield from self._processes(self.snapshot)

    def _traffic(self) -> Iterator[Metric]:
        labels = ["method", "route", "status"]
        requests = SummaryMetricFamily(
            "headrace_http_request_seconds", "Answered requests and the seconds they took.", labels=labels
        )
        for key, number in self.traffic.requests.items():
            method, route, status = key
            requests.add_metric([method, route, str(status)], number, self.traffic.seconds[key])
        yield requests

    def _jobs(self, snapshot: Snapshot) -> Metric:
        jobs = GaugeMetricFamily(
            "headrace_jobs",
            f"Unfinished jobs by queue and state; those that wait are counted up to {MOST_COUNTED}.",
            labels=["queue", "state"],
        )
        for row in snapshot.backlog:
            for state in ("waiting", "published", "in_progress"):
                jobs.add_metric([row["queue"], state], row[state])
        return jobs

    def _processes(self, snapshot: Snapshot) -> Iterator[Metric]:
        processes = GaugeMetricFamily("headrace_processes", "Live processes by role.", labels=["role"])
        capacity = GaugeMetricFamily("headrace_capacity", "Jobs that live workers keep in flight.", labels=["queues"])
        in_flight = GaugeMetricFamily("headrace_in_flight", "Jobs that live workers hold.", labels=["queues"])
        for role in sorted({row["role"] for row in snapshot.processes}):
            processes.add_metric([role], sum(row["role"] == role for row in snapshot.processes))
        workers = [row for row in snapshot.processes if row["role"] == "worker"]
        for queues in sorted({tuple(row["queues"]) for row in workers}):
            mine = [row for row in workers if tuple(row["queues"]) == queues]
            capacity.add_metric([",".join(queues)], sum(row["capacity"] for row in mine))
            in_flight.add_metric([",".join(queues)], sum(row["in_flight"] for row in mine))
        yield from (processes, capacity, in_flight)


def exposition(traffic: Traffic, waiters: int, snapshot: Snapshot | None) -> bytes:
    """The metrics as Prometheus text; without a snapshot, what this process knows alone."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(traffic, waiters, snapshot))
    return generate_latest(registry)
