"""Learners: which loss a training step minimizes, from the stream and from memory."""
