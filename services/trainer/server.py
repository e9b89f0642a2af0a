"""The trainer's process: jobs, their supervisor and the gRPC server, put together and taken apart.

`__main__` runs it with the environment's settings, tests with their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from prometheus_client import CollectorRegistry

from services.runtime.server import GrpcServer
from services.runtime.tls import ServerTls
from services.storage.catalog import FolderCatalog
from services.storage.database import open_engine
from services.trainer.backends.backend import RunBackend
from services.trainer.backends.subprocess_backend import SubprocessBackend
from services.trainer.changes import JobChanges
from services.trainer.cluster.reports import TrainingRunServicer, anonymous
from services.trainer.datasets import DatasetStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.servicer import grpc_services
from services.trainer.settings import TrainerSettings
from services.trainer.store import JobStore
from services.trainer.supervisor import Supervisor
from services.trainer.trainings import Trainings
from services.trainer.webhook_client import WebhookClient
from services.trainer.webhook_outbox import WebhookOutbox
from services.trainer.webhooks import WebhookDeliverer


class TrainerServer:
    """A running trainer; see `open_trainer_server`."""

    def __init__(
        self, settings: TrainerSettings, *, registry: CollectorRegistry, backend: RunBackend
    ) -> None:
        data = settings.data_dir.absolute()
        self._engine = open_engine(settings.jobs_url())
        self._changes = JobChanges()
        self._draining = asyncio.Event()
        self._supervising: asyncio.Task[None] | None = None
        self._draining_watch: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] | None = None
        metrics = TrainerMetrics(registry)
        catalog = FolderCatalog(settings.catalog_folder())
        webhooks = WebhookClient(settings.allowed_networks())
        self._deliverer = WebhookDeliverer(WebhookOutbox(self._engine), webhooks, metrics)
        self._delivering: asyncio.Task[None] | None = None
        self.store = JobStore(self._engine)
        self._datasets = DatasetStore(data / "datasets")
        self._supervisor = Supervisor(
            store=self.store,
            backend=backend,
            changes=self._changes,
            metrics=metrics,
            catalog=catalog,
            folder=data / "jobs",
            max_running=settings.max_running_jobs,
        )
        trainings = Trainings(
            store=self.store,
            datasets=self._datasets,
            supervisor=self._supervisor,
            changes=self._changes,
            metrics=metrics,
            draining=self._draining,
            bases=settings.bases(),
            folder=data / "jobs",
            class_image_cache=data / "class-images",
            max_queued=settings.max_queued_jobs,
            catalog=catalog,
            webhooks=webhooks,
            allow_unserved=settings.allow_unserved_models,
        )
        self.grpc = GrpcServer(
            settings.address,
            grpc_services(trainings),
            grace_s=settings.grace_s,
            credentials=settings.server_credentials(),
            registry=registry,
            draining=self._draining,
            health_address=settings.health_address,
        )
        self._reports = self._report_server(settings)
        self.port = 0
        """Where it listens, once started."""

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Gets what ended the supervisor or the deliverer of webhooks, which nobody would miss."""
        assert self._failed is not None, "the server has not been started"
        return self._failed

    async def start(self) -> None:
        """Open the database, listen, and take up what was left; raises OSError, ValueError or
        SQLAlchemyError."""
        self._failed = asyncio.get_running_loop().create_future()
        await self.store.migrate()
        await asyncio.to_thread(self._datasets.discard_unfinished)
        self.port = await self.grpc.start()
        if self._reports is not None:
            await self._reports.start()
        self._supervising = asyncio.create_task(self._supervisor.run())
        self._delivering = asyncio.create_task(self._deliverer.run())
        for task in (self._supervising, self._delivering):
            task.add_done_callback(self._one_ended)
        self._draining_watch = asyncio.create_task(self._end_watches())
        self.grpc.set_serving(True)

    async def stop(self) -> None:
        """Stop the runs at their next checkpoint, or leave them to go on in their cluster; the gRPC
        server must have been drained."""
        if self._reports is not None:
            await self._reports.drain(0)
        self._supervisor.stop()
        if self._supervising is not None and self._draining_watch is not None:
            self._draining_watch.cancel()
            await asyncio.wait([self._supervising, self._draining_watch])
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
        await self._engine.dispose()

    def _report_server(self, settings: TrainerSettings) -> GrpcServer | None:
        key = settings.kubernetes_run_key
        if settings.backend != "kubernetes" or key is None:
            return None
        servicer = TrainingRunServicer(self._supervisor.report, key.get_secret_value().encode())
        return GrpcServer(
            settings.kubernetes_reports_address,
            [servicer.service()],
            grace_s=0.0,
            credentials=_report_credentials(settings),
            identify=anonymous,
        )

    async def _end_watches(self) -> None:
        """Watches end as soon as the drain begins; runs may already write their checkpoints."""
        await self._draining.wait()
        self._supervisor.stop()
        self._changes.notify_all()

    def _one_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.grpc.set_serving(False)
            self.failed.set_result(error)


@asynccontextmanager
async def open_trainer_server(
    settings: TrainerSettings, *, registry: CollectorRegistry, backend: RunBackend | None = None
) -> AsyncIterator[TrainerServer]:
    """Start a server; on leaving, drain it without a grace unless that was done, and stop it."""
    server = TrainerServer(settings, registry=registry, backend=backend or _backend(settings))
    try:
        await server.start()
        yield server
    finally:
        await server.grpc.drain(0)
        await server.stop()


def _report_credentials(settings: TrainerSettings) -> grpc.ServerCredentials | None:
    """Runs show a token, never a certificate."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerTls(certificate=settings.tls_certificate, key=settings.tls_key).credentials()


def _backend(settings: TrainerSettings) -> RunBackend:
    if settings.backend == "subprocess":
        return SubprocessBackend(niceness=settings.run_niceness)
    # Its client is in the extra [cluster], and takes a second to import.
    from services.trainer.cluster.backend import KubernetesBackend

    return KubernetesBackend(settings)
