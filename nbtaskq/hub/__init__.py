"""The process behind `ZeroMQBroker`: queue, leases, results, store. It runs no user code.

    protocol   what travels on its sockets
    state      who gets which task, and what became of it: pure
    store      one SQLite file, one writer thread
    server     the poll loop that joins the three
    link       the other end: a DEALER that says hello again after each reconnect

Nothing in here imports pickle, dill or cloudpickle: to the hub a payload is bytes.
"""
