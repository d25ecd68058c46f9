"""The processes that run all the time: API, projector, subscriber and worker, and what they share."""
