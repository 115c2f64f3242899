"""The runner that docs/plugins.md shows."""

from concurrent.futures import ThreadPoolExecutor

from ticketry.lab.runners.remote import Remote
from ticketry.lab.runners.remote_worker import work


class Mine(Remote):
    def __init__(self, workers, on_event, place):
        super().__init__(MyCluster(), place, on_event)


class MyCluster:
    name = "my cluster"

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)  # in its place: what runs a function on other machines

    def submit(self, request, needs):  # needs.cpus, needs.gpus, needs.memory of one training
        return self.pool.submit(work, request)

    def room(self):  # trainings at once; None for any number
        return 1

    def is_loss(self, error):  # whether another worker may try
        return isinstance(error, ConnectionError)

    def give_up(self, future):  # it did not stop in time
        future.cancel()

    def close(self):
        self.pool.shutdown()
