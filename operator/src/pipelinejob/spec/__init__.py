"""What a manifest says and what its status reports: one model of each part, and the CRDs made from them."""
