"""Planning of a job where it would run: `door.plan_job` turns a request into a plan."""
