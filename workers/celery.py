"""The Celery app: one queue per tier, and the runner inside each worker process.

celery -A workers.celery worker -P threads -Q small
"""

import sys
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from celery import Celery, bootsteps
from celery.exceptions import Reject
from celery.signals import celeryd_init
from kombu import Queue
from kombu.transport import redis as redis_transport

from models.catalog import load_catalog, read_catalog, select_optional
from models.settings import read_settings
from models.startup import ending_in_one_line, require_stores
from models.telemetry import configure_logging
from workers.gpu_pool import refuse_without_gpu
from workers.runner import Runner
from workers.settings import WorkerSettings, WorkSettings

TASK = "headrace.run_jobs"
_VISIBILITY_TIMEOUT_S = 3600
_EVENTS_EVERY_S, _EVENTS_AT_A_TIME = 0.5, 1000

log = structlog.get_logger()


class HeadraceCelery(Celery):
    """The app; in a worker process it has a runner."""

    runner: Runner | None = None

    def run_jobs(self, job_ids: list[str], *, rows: bool) -> None:
        """Hand the jobs of one message to the runner and wait for their ends.

        Raises Reject when some were not claimed: the broker delivers the message again, to whoever can.
        """
        assert self.runner is not None  # started before the worker consumes
        if not self.runner.run([UUID(job_id) for job_id in job_ids], rows=rows):
            raise Reject("this worker cannot claim its jobs now", requeue=True)


def celery_config() -> dict[str, Any]:  # Any: Celery's settings have many types
    """Celery's settings, read from the environment when the app is first used.

    The reasons of each are measured facts about Celery 5.7: Postgres is the truth, so a message may be
    lost or come twice; what must not happen is that one blocks, or that its body says more than ids.
    """
    with ending_in_one_line():
        settings = read_settings(WorkSettings)
        queues = select_optional(read_catalog(settings.catalog), settings.optional_llms).queues
    is_redis = settings.broker.startswith("redis")
    arguments = None if is_redis else {"x-queue-type": "quorum"}
    return {
        "broker_url": settings.broker,
        "task_queues": [Queue(name, routing_key=name, queue_arguments=arguments) for name in queues],
        "task_create_missing_queues": False,
        "task_default_queue": queues[0],
        "task_default_exchange": "headrace",
        "task_default_exchange_type": "direct" if is_redis else "topic",
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_acquire_timeout": 5,
        "broker_transport_options": _REDIS_OPTIONS if is_redis else {"confirm_publish": True},
    }


_REDIS_OPTIONS = {
    "visibility_timeout": _VISIBILITY_TIMEOUT_S,
    "unacked_restore_interval": 30,
    "health_check_interval": 25,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "max_retries": 3,
    "global_keyprefix": "headrace:",
}


class _QoS(redis_transport.QoS):
    """Acknowledgements that survive the loss of the connection that brought the message.

    kombu 5.7 looks for that connection when a task ends or unacknowledged messages are put back, finds None, and
    the AttributeError ends the worker. Headrace needs neither: the claim makes a second delivery a no-op,
    and the relay publishes again what nobody claimed.
    """

    restore_at_shutdown = False

    def ack(self, delivery_tag: str) -> None:
        if self._is_connected():
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self._is_connected():
            super().reject(delivery_tag, requeue)

    def _is_connected(self) -> bool:
        return not self.channel.closed and getattr(self.channel.connection, "client", None) is not None


redis_transport.Channel.QoS = _QoS


@celeryd_init.connect
def _take_concurrency_from_catalog(conf: Any, options: Mapping[str, Any], **_: object) -> None:  # Any: Celery's own
    """Let a worker without ``--concurrency`` keep as many jobs in flight as the catalogue says of its queues' pool."""
    with ending_in_one_line():
        settings = read_settings(WorkSettings)
        catalog = select_optional(read_catalog(settings.catalog), settings.optional_llms)
    conf.worker_concurrency = catalog.concurrency_of(options.get("queues") or catalog.queues)


class RunnerStep(bootsteps.StartStopStep):
    """Starts the runner before the worker consumes, and drains it when the worker shuts down."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:  # Any: Celery's WorkController
        configure_logging(sys.__stderr__)  # Celery made a logger of sys.stderr
        with ending_in_one_line():
            settings = read_settings(WorkerSettings)
            catalog = load_catalog(settings.catalog, settings.optional_llms)
            queues = list(worker.app.amqp.queues.consume_from)
            refuse_without_gpu(catalog, queues, settings)
            require_stores(settings)
        worker.app.runner = Runner(
            settings,
            catalog,
            name=worker.hostname,
            queues=queues,
            capacity=worker.concurrency,
        )
        worker.app.runner.start()

    def close(self, worker: Any) -> None:  # Any: Celery's WorkController
        worker.app.runner.drain()

    def stop(self, worker: Any) -> None:  # Any: Celery's WorkController
        worker.app.runner.stop()


class ConsumingStep(bootsteps.StartStopStep):
    """Consumes only while the runner can claim. A new connection to the broker starts consuming by itself, so each
    start of this step looks again."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _consuming = True

    def start(self, consumer: Any) -> None:  # Any: Celery's Consumer
        self._consuming = True
        runner = consumer.app.runner
        runner.listen(lambda may_consume: consumer.call_soon(self._apply, consumer))
        if not runner.may_consume:
            consumer.call_soon(self._apply, consumer)

    def _apply(self, consumer: Any) -> None:  # Any: Celery's Consumer
        """Start or stop consuming; called by Celery's own thread."""
        is_running = consumer.blueprint.state == bootsteps.RUN  # type: ignore[attr-defined]  # its types lack it
        if not is_running or consumer.task_consumer is None:
            return
        runner = consumer.app.runner
        if runner.may_consume:
            if not self._consuming:
                log.warning("consuming.resumed")
            consumer.task_consumer.consume()
            self._consuming = True
            return
        if self._consuming:
            log.warning("consuming.stopped", meaning="Postgres cannot be used; messages wait or go to other workers")
        consumer.task_consumer.cancel()
        self._consuming = False
        runner.consuming_stopped()


class EventsStep(bootsteps.StartStopStep):
    """Sends the events of tasks, which Flower shows, twice a second; Celery's way, with every turn of its loop, is a
    sixth of a busy worker's work."""

    requires = ("celery.worker.consumer.events:Events",)
    _timer: Any = None  # Any: kombu's timer entry

    def start(self, consumer: Any) -> None:  # Any: Celery's Consumer
        if consumer.hub is not None:
            consumer.event_dispatcher.buffer_limit = _EVENTS_AT_A_TIME
            consumer.event_dispatcher.on_send_buffered = None
            self._timer = consumer.hub.call_repeatedly(_EVENTS_EVERY_S, consumer.event_dispatcher.flush)

    def stop(self, consumer: Any) -> None:  # Any: Celery's Consumer
        if self._timer is not None:
            self._timer.cancel()


app = HeadraceCelery("headrace", include=["workers.tasks"])
app.add_defaults(celery_config)
app.steps["worker"].add(RunnerStep)
app.steps["consumer"].update((ConsumingStep, EventsStep))
