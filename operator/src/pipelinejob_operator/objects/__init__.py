"""What the cluster's objects say of a job, and what is said to the cluster for one. Pure."""
