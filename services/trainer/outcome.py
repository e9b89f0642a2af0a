"""What a run left becomes an entry of the catalogue, before its job is told to have succeeded.

Called by the supervisor on a thread. Publishing the same job twice changes nothing, so that a
service that dies in between only does it again.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from services.storage.catalog import Catalog, CatalogEntry
from services.trainer.job import TrainingJob

_RESULT_FOLDER = "result"  # services.trainer.run.export writes it, and is too heavy to import


def publish(catalog: Catalog, job: TrainingJob) -> CatalogEntry:
    """Take the outcome of a job into the catalogue. Raises OSError and ValueError."""
    result = Path(job.tree["output"]) / _RESULT_FOLDER
    facts = json.loads((result / "run.json").read_text(encoding="utf-8"))
    configuration = yaml.safe_load((result / "configuration.yaml").read_text(encoding="utf-8"))
    # Paths are the server's alone.
    for key in ("base_model", "output", "class_image_cache"):
        configuration.pop(key, None)
    configuration.get("instance", {}).pop("images", None)
    entry = CatalogEntry(
        name=job.model,
        job_id=job.id,
        account=job.account,
        base_model=job.request.base_model,
        base_revision=facts["base_revision"],
        revision="",
        method=job.request.method,
        token=job.request.token,
        instance_prompt=job.request.instance_prompt,
        class_prompt=job.request.class_prompt,
        dataset_digest=facts["dataset_digest"],
        configuration=configuration,
    )
    return catalog.publish(entry, result)
