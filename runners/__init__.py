"""The farm: a Job in, a JobResult out. Never opens the database; heavy imports live inside functions."""
