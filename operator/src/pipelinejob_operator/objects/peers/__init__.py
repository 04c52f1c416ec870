"""Objects by which others are asked: Kueue for quota, an autoscaler for nodes."""
