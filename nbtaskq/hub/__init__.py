"""The process behind `ZeroMQBroker`: queue, leases, results, store. It runs no user code.

    protocol   what travels on its sockets
    state      who gets which task, and what became of it: pure; stimuli in, actions out
    store      one SQLite file, one writer thread
    vault      what of the store is at hand
    router     the socket
    server     the poll loop that joins them
    link       the other end: a DEALER that says hello again after each reconnect
    keeper     its parent's view of it: started, and started again

Nothing in here imports pickle, dill or cloudpickle: to the hub a payload is bytes.
"""
