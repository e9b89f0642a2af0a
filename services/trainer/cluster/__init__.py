"""Training runs as Kubernetes Jobs.

    backend ──┬── manifests     Job, Secret and Service of a run, as pure functions
              ├── watching      what the cluster has of them, kept up to date
              ├── diagnosis     what it means for the run, as pure functions
              └── api           the cluster's API; the one module that imports `kubernetes`
    reports ───── tokens        what the run's pods say, and how they prove who they are

Chosen by `LIMNER_TRAINER_BACKEND=kubernetes`; `docs/kubernetes.md` tells operators how.
"""
