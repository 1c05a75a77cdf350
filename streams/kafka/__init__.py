"""The Kafka edge: the only package that imports faust or aiokafka. Reading order, in which a module imports only those
above it:

    port         what a lane needs of a broker, about ten methods; the exceptions it may raise
    partitioner  which partition a key belongs to, and who owns it
    steps        waits for a step, but not past the order to stop
    follower     one partition of the consent topic, all of it, in memory
    work         what a lane and its agent say to each other
    lane         the exactly-once worker of one partition number, written against the port
    crowds       what a partition counts, and what is collected of all of them
    agents       `rekey`, `minimize` and `release`: what one transaction shall hold, from a batch
    lanes        the lanes and followers of the partition numbers that are one worker's
    withdraw     writes a withdrawal, and waits until it is in force everywhere
    topic_id     asks a broker for the id of a topic
    codecs       how compressed batches are unpacked, and how far
    internals    where we reach into aiokafka, each with its reason
    connections  how clients connect, what lanes share, what the library's errors become
    client       the port on aiokafka
    topics       creates the topics and checks them
    member       membership in the consumer group
    ops          the page for operators: metrics, health, readiness
    app          the Faust application that supervises all of it
    worker       the same, for the command `faust`
    traffic      those who write events and consents, and those who read what is published: the demo plays both
"""
