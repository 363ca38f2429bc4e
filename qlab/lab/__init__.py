"""The lab around the engine: experiment, run, store, jobs. Importing it imports neither torch nor dask."""
