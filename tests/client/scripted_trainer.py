"""A trainer that answers what a test says, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from limner.v1 import model_pb2, model_pb2_grpc, training_pb2, training_pb2_grpc
from tests.client.scripted_server import PNG, error_info, fail

State = training_pb2.TrainingJob


def job(state: int = State.STATE_RUNNING, step: int = 2, **fields: Any) -> State:
    plain: dict[str, Any] = {
        "id": "job_1",
        "state": state,
        "step": step,
        "step_count": 4,
        "attempt": 1,
        "base_model": "emoji",
        "model": "emoji@job_1",
        "token": "sks",
        "method": training_pb2.TRAINING_METHOD_LORA,
        "dataset_id": "d" * 64,
        "progress": training_pb2.TrainingProgress(
            instance_loss=0.5,
            prior_loss=0.25,
            learning_rate=1e-4,
            eta=Duration(seconds=1, nanos=500_000_000),
        ),
    }
    return State(**(plain | fields))


class ScriptedTrainer(
    training_pb2_grpc.TrainingServiceServicer, model_pb2_grpc.ModelServiceServicer
):
    """Takes in what is sent and answers what a test says."""

    def __init__(self) -> None:
        self.uploaded: dict[str, bytes] = {}
        self.upload_faults: list[tuple[str, str]] = []
        self.created: list[training_pb2.CreateTrainingJobRequest] = []
        self.create_faults: list[tuple[str, str]] = []
        self.warnings: list[training_pb2.TrainingWarning] = []
        self.watches: list[Callable[[Any], Iterator[training_pb2.WatchTrainingJobResponse]]] = []
        self.called: list[str] = []
        self.bases = ["emoji"]
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        models = [
            model_pb2.Model(name=name, tasks=[1], limits=model_pb2.ImageLimits(max_side=64))
            for name in self.bases
        ]
        models.append(
            model_pb2.Model(
                name="emoji@old",
                tasks=[1],
                limits=model_pb2.ImageLimits(max_side=64),
                base_model="emoji",
            )
        )
        return model_pb2.ListModelsResponse(models=models)

    def UploadDataset(
        self, request_iterator: Any, context: Any
    ) -> training_pb2.UploadDatasetResponse:
        name = ""
        for message in request_iterator:
            if message.HasField("file_name"):
                name = message.file_name
                self.uploaded[name] = b""
            assert len(message.data) <= 256 * 1024
            self.uploaded[name] += message.data
        _refuse(context, self.upload_faults)
        return training_pb2.UploadDatasetResponse(
            dataset_id="d" * 64, picture_count=len(self.uploaded)
        )

    def CreateTrainingJob(
        self, request: Any, context: Any
    ) -> training_pb2.CreateTrainingJobResponse:
        self.created.append(request)
        _refuse(context, self.create_faults)
        changes = {"id": ""} if request.validate_only else {}
        created = job(State.STATE_QUEUED, 0, warnings=self.warnings, **changes)
        return training_pb2.CreateTrainingJobResponse(job=created)

    def GetTrainingJob(self, request: Any, context: Any) -> training_pb2.GetTrainingJobResponse:
        return training_pb2.GetTrainingJobResponse(job=job(id=request.id))

    def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        first = not request.page_token
        return training_pb2.ListTrainingJobsResponse(
            jobs=[job(id="job_1" if first else "job_2")], next_page_token="more" if first else ""
        )

    def WatchTrainingJob(
        self, request: Any, context: Any
    ) -> Iterator[training_pb2.WatchTrainingJobResponse]:
        yield from self.watches.pop(0)(context)

    def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        self.called.append(f"cancel {request.id}")
        return training_pb2.CancelTrainingJobResponse(job=job(State.STATE_CANCELLED))

    def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        self.called.append(f"resume {request.id}")
        return training_pb2.ResumeTrainingJobResponse(job=job(State.STATE_QUEUED, attempt=2))

    def DeleteTrainingJob(self, request: Any, context: Any) -> Any:
        self.called.append(f"delete {request.id}")
        return training_pb2.DeleteTrainingJobResponse()


def _refuse(context: Any, faults: list[tuple[str, str]]) -> None:
    if faults:
        bad = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                for field, text in faults
            ]
        )
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        fail(context, invalid, "bad", error_info("INVALID_REQUEST"), bad)


def says(*messages: training_pb2.WatchTrainingJobResponse, then: Any = None) -> Any:
    """What a watch does: messages, and then what `then` does with the call."""

    def watch(context: Any) -> Iterator[training_pb2.WatchTrainingJobResponse]:
        yield from messages
        if then is not None:
            then(context)

    return watch


def is_at(message: State) -> training_pb2.WatchTrainingJobResponse:
    return training_pb2.WatchTrainingJobResponse(job=message)


def drew(step: int) -> training_pb2.WatchTrainingJobResponse:
    sample = training_pb2.TrainingSample(step=step, index=0, image=PNG, mime_type="image/png")
    return training_pb2.WatchTrainingJobResponse(job=job(step=step), sample=sample)


def is_away(context: Any) -> None:
    fail(context, grpc.StatusCode.UNAVAILABLE, "away", error_info("SHUTTING_DOWN"))
