"""Executors over workers: trials in several processes, or on a Ray cluster.

The executor in this process is a `core.protocols.TrialBench` itself. The two here feed many of
them: `processes.ProcessExecutor` and `ray_cluster.RayExecutor` are transports under one policy
(`pool.WorkerPool`, `dispatch.Dispatch`); `worker.serve` is what runs in a worker.
"""
