"""Corpora into shards of tokens: the job, the work on a shard, the same by a cluster."""
