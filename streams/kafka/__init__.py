"""The Kafka edge: the only package that imports faust or aiokafka. Reading order:

port       what a lane needs of a broker, about ten methods; the exceptions it may raise
follower   one partition of the consent topic, all of it, in memory
lane       the exactly-once worker of one partition number, written against the port
agents     `rekey` and `minimize`: what one transaction shall hold, from a batch
topic_id   asks a broker for the id of a topic
internals  the two places where we reach into aiokafka
client     the port on aiokafka
topics     creates the topics and checks them
member     membership in the consumer group, and the lanes of what is assigned
ops        the page for operators: metrics, health, readiness
app        the Faust application that supervises all of it
worker     the same, for the command `faust`
traffic    those who write events and consents, and those who read what is published: the demo plays both
"""
