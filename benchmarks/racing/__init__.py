"""The race of `benchmarks/race.py`: workloads, contestants, references, report.

- ``workload``, ``draw``: what is solved, as sizes and as numbers; need only numpy
- ``forms``: the same problems as dense QPs, cone programs, CVXPY problems
- ``references``: the answers to judge by
- ``contestants``: one file per library; ``roster`` says which exist and which environment each lives in
- ``worker``: one contestant in its process; ``process``: the other end of the pipe
- ``figures``: medians, ratios, who counts; ``report``: table and plot
"""
