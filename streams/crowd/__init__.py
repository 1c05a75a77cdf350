"""The crowd gate: what many people did, counted so that nobody can be found in it. Reading order:

    rule      what a policy says about one crowd purpose, compiled
    counts    stage one: what the people of one partition add to the cells of open windows, each within their bounds
    release   which cells of a window may be told: the threshold, and the guard against subtraction
    noise     the same with differential privacy
    rounds    stage two: when a window closes, and that it is released once

Everything here is a pure fold over records: bytes and times in, values out. `streams/kafka/agents.py` puts stage one
into the transaction of the event lane, and runs stage two as a lane of its own.
"""
