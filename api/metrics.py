"""The Prometheus exposition: the traffic of this process, and what Postgres knows of queues and processes."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from api.edge import Traffic
from api.health import MOST_COUNTED, Snapshot
from api.vitals import VitalSigns
from models.circuit import CircuitState

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True, eq=False)
class _Scrape(Collector):
    traffic: Traffic
    waiters: int
    snapshot: Snapshot | None
    vitals: VitalSigns

    def collect(self) -> Iterator[Metric]:
        yield from self._traffic()
        yield GaugeMetricFamily("headrace_api_waiters", "Requests that wait for a job to finish.", self.waiters)
        yield GaugeMetricFamily("headrace_postgres_up", "Whether Postgres answered.", self.snapshot is not None)
        if self.snapshot is not None:
            yield self._jobs(self.snapshot)
            yield from self._processes(self.snapshot)
        yield from self._llms()

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

    def _llms(self) -> Iterator[Metric]:
        breaker = GaugeMetricFamily(
            "headrace_llm_breaker", "1 for the state that an LLM's circuit breaker is in.", labels=["llm", "state"]
        )
        for name, look in (self.vitals.breakers or {}).items():
            for state in CircuitState:
                breaker.add_metric([name, state], look.state is state)
        yield breaker
        for attribute, metric, meaning in _MEASURED:
            family = GaugeMetricFamily(metric, f"{meaning}, over its latest attempts.", labels=["llm"])
            for name, vitals in self.vitals.llms.items():
                if (value := getattr(vitals, attribute)) is not None:
                    family.add_metric([name], value)
            yield family


_MEASURED = (
    ("latency_s", "headrace_llm_latency_seconds", "Median seconds of an LLM's answer"),
    ("time_to_first_token_s", "headrace_llm_first_token_seconds", "Median seconds to an LLM's first token"),
    ("tokens_per_s", "headrace_llm_tokens_per_second", "Tokens that an LLM writes per second"),
    ("error_rate", "headrace_llm_error_rate", "Share of an LLM's calls that failed for reasons of its provider"),
)


def exposition(traffic: Traffic, waiters: int, snapshot: Snapshot | None, vitals: VitalSigns) -> bytes:
    """The metrics as Prometheus text; without a snapshot, what this process knows alone."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(traffic, waiters, snapshot, vitals))
    return generate_latest(registry)
