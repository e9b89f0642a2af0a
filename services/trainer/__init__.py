"""The trainer: personalises a model from a few pictures.

    servicer ── trainings ──┬── store        jobs in SQL
                            ├── datasets     uploaded pictures
                            └── supervisor ── backends ── run (a process of its own)

`run` is what happens inside a job: a process with a configuration file, which knows no server.
"""
