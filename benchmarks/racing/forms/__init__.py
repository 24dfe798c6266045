"""The workloads' problems, stated for libraries of different kinds; one file per kind of statement."""
