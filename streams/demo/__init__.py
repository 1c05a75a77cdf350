"""`celosia demo`: a shop with its own small broker, where one can watch events being filtered. Reading order:

shop     real purchases scanned at several tills, and people who change what may be done with them
audit    what came out, held against what went in
report   what is said at the end: the sums, and whether they agree
screen   what is drawn: a screen for people, lines for machines
run      the course: broker, topics, worker, shop, audit
"""

from streams.demo.run import RATE, run_demo, schemas_folder

__all__ = ["RATE", "run_demo", "schemas_folder"]
