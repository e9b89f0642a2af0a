"""One training run as a process: `python -m services.trainer.run CONFIG.yaml`.

    configuration, reading   what is asked for, checked in full before anything is computed
    base_model, dataset      what is there to work with
    class_images             pictures of the class, drawn by the base model
    randomness, order        every draw and every order is a function of a counter
    rows, objective          the batch of a micro-step, and its loss
    weights, average         what is trained, and its moving average
    checkpoint, learning     full state, and the Lightning module that has it
    export                   what comes out

It knows no server and no database: files are its only interface.
"""
