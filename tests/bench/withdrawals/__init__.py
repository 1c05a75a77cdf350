"""The withdrawal table: a person withdraws, the broker acknowledges, at once comes an event of theirs. Published?

    make withdrawals                                          500 trials in each cell: about two hours on two cores
    make withdrawals ARGS="--cells idle,load --trials 100"    some cells
    make withdrawals ARGS="--systems celosia,control"         some systems

    trials      one trial, and the people, consents and events of many
    systems     what is put to it: celosia, two peers, and celosia without its gate
    clusters    the brokers it happens on, and what can be done to them
    cells       in which circumstances it happens
    latency     how long an event takes, and how long a receipt
    __main__    the command

The tests in `tests/kafka/test_withdrawals.py` run some of the cells with fewer trials.
"""
