"""Do one job to many samples in other processes, on this machine or on others.

The folder knows how work is spread and how it comes back, whatever the job is: how many files make
a task, where their payloads lie until they are written, what a dead worker was at.

What travels here: a `Job` goes to each worker and starts a `Worker` there, which is given keys and
fills a `Buffer` (`tasks`). Of a task come back the results, in order, and the buffer that holds
their payloads: the parent yields both as a `Batch`, in plan order.

- `pool` and `pool_worker` are the two ends of a pipe: a `Task` goes out, an `Answer` comes back.
  The payloads stay where they are, in memory that both ends share (`shared_memory`).
- `launcher` and `launcher_process` start the workers of a pool where no user code has run.
- `executor` and `executor_worker` do the same through a ``concurrent.futures.Executor``, whose
  `Returned` brings the payloads along; `dask` knows the cluster behind one.
- `once` keeps what was read before there was a file to write it to.
"""
