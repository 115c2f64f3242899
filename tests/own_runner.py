"""The runner that docs/plugins.md shows."""

from concurrent.futures import ThreadPoolExecutor

from ticketry.lab.runners.executor_runner import ExecutorRunner, Pool


class Mine(ExecutorRunner):
    def __init__(self, workers, on_event, place):
        super().__init__(MyPool(), place, on_event)


class MyPool(Pool):
    def __init__(self):
        # ThreadPoolExecutor stands for a client that runs functions on other machines.
        super().__init__(ThreadPoolExecutor(1), "my cluster")

    def is_loss(self, error):  # whether another worker may try
        return isinstance(error, ConnectionError)

    def close(self):
        self.executor.shutdown()
