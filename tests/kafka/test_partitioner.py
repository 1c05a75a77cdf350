"""The partitioner agrees with Kafka's own."""
