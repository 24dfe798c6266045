"""The libraries that race, one file each: ``load(workload, data, **options) -> Case``, in the process of that library's environment.

A library that cannot state a workload raises NotImplementedError with the reason in words.
"""
