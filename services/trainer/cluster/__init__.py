"""Training runs as Kubernetes Jobs.

    backend ── cluster_run ──┬── manifests    Job, Secret and Service of a run, as pure functions
                             ├── diagnosis    what Job and pods mean for the run, as pure functions
                             ├── view         Jobs and pods as last seen, kept by `watching`
                             └── api          the only module that imports `kubernetes`
    reports ── tokens        what pods say of their run, and how they prove which one it is

Chosen by `LIMNER_TRAINER_BACKEND=kubernetes`; `docs/kubernetes.md` tells operators how.
"""
